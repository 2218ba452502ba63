"""The tables of settings: those of config.ini, and those of a device."""

from typing import NamedTuple

from minris.config.values import SETTING_KINDS
from minris.standard.tables import table


class Setting(NamedTuple):
    """One key of config.ini."""

    section: str
    key: str
    default: str
    kind: str
    meaning: str


def setting_table(text: str) -> tuple[Setting, ...]:
    """Read `section | key | default | kind | meaning`; an unknown kind is refused."""
    found = tuple(Setting(*row) for row in table(text))
    for setting in found:
        if setting.kind.partition(" ")[0] not in SETTING_KINDS:
            raise ValueError(f"kind of {setting}")
    if len({(setting.section, setting.key) for setting in found}) < len(found):
        raise ValueError("a setting stands twice")
    return found


SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    dicom | ae_title | MINRIS | ae | our AE title, to be entered at every machine
    dicom | host | 0.0.0.0 | text | address to listen on
    dicom | port | 11112 | int 0 65535 | port to listen on; 104 is the registered one (0: any free)
    dicom | check_called_ae_title | yes | bool | refuse calls to another AE title than ours
    dicom | accept_unknown_devices | no | bool | serve AE titles that are not registered as devices
    dicom | character_set | | charset | set of answers where neither device nor query name one; empty: ISO_IR 192 (UTF-8)
    dicom | hide_steps | COMPLETED, DISCONTINUED, CANCELED, NO SHOW, DEPARTED | states | steps in these states are not shown to modalities
    dicom | answer_limit | 10000 | int 1 1000000 | most answers to one query; past it the query ends with A700
    dicom | strict_mpps | no | bool | refuse a performed step without its type 2 attributes (0120), or discontinued without series
    dicom | maximum_pdu_length | 131072 | int 4096 1048576 | largest PDU accepted, bytes
    dicom | maximum_command_length | 16384 | int 1024 1048576 | largest command set, bytes
    dicom | maximum_dataset_length | 4194304 | int 65536 268435456 | largest data set, bytes; a larger one is read over and answered 0213
    dicom | maximum_drained_length | 33554432 | int 65536 1073741824 | past so many bytes of one data set the association is aborted
    dicom | maximum_nesting | 16 | int 2 64 | deepest nesting of sequences
    dicom | maximum_elements | 100000 | int 1000 10000000 | most elements in one data set
    dicom | associate_timeout | 10 | seconds 0.1 600 | time for a caller to ask for an association
    dicom | pdu_timeout | 5 | seconds 0.1 600 | time for a PDU that has begun, and one second more for each 16 KiB
    dicom | idle_timeout | 60 | seconds 0.1 86400 | an association without a message for so long is aborted
    dicom | send_timeout | 10 | seconds 0.1 600 | time for a caller to take what we send
    dicom | maximum_associations | 256 | int 1 10000 | associations at once
    dicom | maximum_associations_per_address | 128 | int 1 10000 | of them from one address
    dicom | maximum_pending | 256 | int 1 10000 | connections not yet associated
    dicom | maximum_pending_per_address | 128 | int 1 10000 | of them from one address
    dicom | tls_port | 0 | int 0 65535 | port for associations over TLS (0: none; 2762 is the registered one)
    dicom | tls_certificate | | text | file with our certificate and those above it, PEM
    dicom | tls_key | | text | file with its private key, PEM
    dicom | tls_client_ca | | text | callers must show a certificate of one of the authorities in this file, PEM
    ups | worklist_label | MAIN | value LO 64 | Worklist Label (0074,1202) of workitems created without one
    ups | strict | no | bool | refuse a workitem without its type 2 attributes (0120)
    ups | grant_locks | yes | bool | grant deletion locks; no: subscribers get none (B301)
    ups | restart_receivers | | titles | AE titles told of our restart beside all subscribers, separated by commas
    ups | auto_subscribe_creator | no | bool | subscribe whoever creates a workitem to it
    ups | tell_going_down | yes | bool | tell subscribers when the appliance is stopped
    commitment | evidence | archive | evidence | what proves that an image is safe, in this order, by commas: archive, commitment, availability
    commitment | archive | | ae_or_none | AE title of the archive that is asked; empty: the device whose role is archive
    commitment | answer_minutes | 60 | int 1 1440 | an archive that was passed a request on, for its own commitment, is asked anew after so many minutes
    commitment | look_minutes | 5 | int 0 1440 | the archive is asked every so many minutes for images that are to come (0: never)
    commitment | quiet_minutes | 10 | int 0 1440 | the exam of a machine that does not report has ended when no image has come for so long
    commitment | missing_minutes | 5 | int 0 1440 | an image that the archive does not have is looked for again for so long
    commitment | give_up_hours | 24 | int 1 720 | without evidence, as the archive is down, images are called not safe after so many hours
    commitment | report_hours | 72 | int 1 720 | a result that the machine does not take is given up after so many hours
    commitment | keep_days | 90 | int 1 36500 | results, and what was notified of availability, are kept so many days
    commitment | maximum_instances | 20000 | int 1 1000000 | most images in one request
    web | host | 0.0.0.0 | text | address to listen on
    web | port | 8080 | int 0 65535 | port to listen on (0: any free)
    web | tls_certificate | | text | file with the certificate of the pages, PEM: they are served by https
    web | tls_key | | text | file with its private key, PEM
    web | public_url | | url | address that browsers use, where a proxy stands before this port
    web | anonymous_loopback | no | bool | calls from 127.0.0.1 to /api and /dicom-web need no token
    web | session_hours | 12 | int 1 720 | a login ends after so many hours
    web | login_attempts | 10 | int 3 1000 | wrong passwords from one address or for one user in 15 minutes before both must wait
    web | maximum_body | 16777216 | int 65536 1073741824 | largest request, bytes
    web | request_timeout | 20 | seconds 1 600 | time for a request to come in
    web | maximum_connections_per_address | 128 | int 1 10000 | connections from one address, without WebSockets
    web | maximum_websockets | 1000 | int 1 100000 | WebSockets open at once
    web | requests_per_second | 1000 | int 0 100000 | requests from one address, before it is told to wait (429); 0: no limit
    web | cors_origins | | origins | sites whose pages may call /api and /dicom-web with a token, https://viewer.example and so on
    store | url | sqlite:///minris.db | store | where everything is kept; a relative path counts from config.ini
    clinic | name | minris | text | shown on the pages
    clinic | timezone | | zone | time zone of the clinic, such as Asia/Shanghai; empty: that of the machine
    clinic | language | en | choice en zh-CN | language of the pages where the browser asks for neither
    clinic | opens | 08:00 | clock | when the first exam may begin, for the calendar
    clinic | closes | 18:00 | clock | when the last exam has ended, for the calendar and no_show_after_closing
    clinic | closed_days | | weekdays | days of the week without exams, such as sat, sun
    clinic | slot_minutes | 15 | int 5 240 | how long an exam takes whose procedure the catalogue does not know
    clinic | patient_id_format | P{number:06} | id 64 | Patient ID made when none is given
    clinic | accession_number_format | {yy}{month}{day}{number:04} | id 16 | Accession Number made when none is given
    clinic | requested_procedure_id_format | R{yy}{month}{day}{number:04} | id 16 | Requested Procedure ID made when none is given
    clinic | scheduled_procedure_step_id_format | S{yy}{month}{day}{number:04} | id 16 | Scheduled Procedure Step ID made when none is given
    housekeeping | backup_time | 02:30 | clock | time of the nightly backup, made up for at the next start if it was missed; empty: none
    housekeeping | backup_folder | backups | text | where backups go; a relative path counts from config.ini
    housekeeping | backups_kept | 14 | int 1 1000 | as many backups are kept, the oldest goes
    housekeeping | no_show_after_closing | no | bool | who has not come by closing time did not come, where the machine reports its exams
    housekeeping | keep_queries_days | 7 | int 1 3650 | worklist queries are remembered for so many days
    housekeeping | keep_steps_days | 0 | int 0 36500 | steps that ended so many days ago are erased, with what was performed for them (0: never)
    housekeeping | keep_patients_days | 0 | int 0 36500 | patients without any step, unchanged for so many days, are erased (0: never)
    housekeeping | keep_workitems_days | 7 | int 1 36500 | a workitem that has ended stays so many days at least, and as long as a deletion lock
    housekeeping | keep_workitem_history_days | 0 | int 0 36500 | events of purged workitems are erased after so many days (0: never)
    housekeeping | keep_deliveries_days | 30 | int 1 3650 | who was told of an event, or passed on what, and when, is remembered for so many days
    housekeeping | stuck_lock_hours | 24 | int 1 8760 | a deletion lock on what ended so many hours ago is listed as stuck
    housekeeping | stuck_workitem_hours | 8 | int 1 8760 | a workitem in progress without news for so many hours is listed as stuck
    housekeeping | stuck_exam_hours | 4 | int 1 8760 | an exam that has begun, without news for so many hours, is listed as stuck
    housekeeping | stuck_events_minutes | 10 | int 1 10080 | events, and what is passed on, that could not be delivered for so many minutes are listed as stuck
    housekeeping | give_up_events_hours | 72 | int 1 8760 | an event, or what is passed on, that cannot be delivered is given up after so many hours
    housekeeping | release_locks_days | 0 | int 0 3650 | deletion locks on ended workitems are released after so many days (0: only by a person)
    housekeeping | cancel_silent_workitems_hours | 0 | int 0 87600 | workitems in progress without news for so many hours are canceled (0: only by a person)
    housekeeping | cancel_expired_workitems | no | bool | scheduled workitems past their expiration are canceled
    housekeeping | keep_audit_days | 0 | int 0 36500 | audit lines are erased after so many days (0: never)
    log | level | INFO | choice DEBUG INFO WARNING ERROR | least level that is written
    log | format | text | choice text json | form of a line
    log | file | | text | file to write to, rotated at 10 MB; empty: standard error
    """)
# The keys of each [device NAME].
DEVICE_SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    device | ae_title | | aes 8 | AE titles of the machine, separated by commas
    device | host | | text | address of the machine, where we call it
    device | port | 104 | int 1 65535 | port of the machine, where we call it
    device | check_address | no | bool | refuse its AE titles from another address than host
    device | modality | | value CS 16 | CT, MR, US, DX ...: what it is offered for on the registration page
    device | station_name | | value SH 16 | Scheduled Station Name (0040,0010) of its steps
    device | location | | value SH 16 | Scheduled Procedure Step Location (0040,0011) of its steps
    device | character_set | | charset | set of answers to it and of its texts without one; empty: as its query says, else UTF-8
    device | fallback_character_set | ISO_IR 192 | charset | set of an answer that character_set cannot carry
    device | role | modality | choice modality archive workstation | what it is
    device | own_steps_only | no | bool | show it only steps scheduled for its own AE titles, whatever it asks for
    device | days_back | | days | show it no step from before so many days ago; empty: no limit
    device | days_ahead | | days | show it no step from more than so many days ahead; empty: no limit
    device | answer_limit | | limit | most answers to one query of it; empty: as [dicom] answer_limit
    device | empty_sequences | yes | bool | answer sequences without items; no: leave them out
    device | name_groups | all | choice all alphabetic ideographic | what it is sent of a name: all groups, or one as the only one
    device | relational_queries | no | bool | an archive that finds images by their own UIDs alone
    device | mpps | auto | choice auto yes no | whether it reports performed steps; auto: if it ever has; else its exams end by what the archive tells
    device | report_on_same_association | no | bool | tell it the result of storage commitment on its own association first, while that is open
    device | passed_on | | passed_on | what it is passed on, separated by commas: mpps (performed steps), mpps_notification, availability
    device | events | as_subscribed | choice as_subscribed dimse websocket both | how it is told of workitems: as it has subscribed, or whoever subscribed it
    device | events_without_role | no | bool | send it UPS events though it does not take us as SCP
    device | combined_pdvs | yes | bool | send command and data set in one PDU
    """)
