"""The tables of settings: the sections of config.ini, and the settings of a device."""

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
    """Read `section | key | default | kind | meaning`; refuse an unknown kind and a duplicate."""
    found = tuple(Setting(*row) for row in table(text))
    for setting in found:
        if setting.kind.partition(" ")[0] not in SETTING_KINDS:
            raise ValueError(f"unknown kind: {setting}")
    if len({(setting.section, setting.key) for setting in found}) < len(found):
        raise ValueError("duplicate setting")
    return found


SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    dicom | ae_title | MINRIS | ae | AE title of this system; configure it on every machine
    dicom | host | 0.0.0.0 | text | address to listen on
    dicom | port | 11112 | port | port to listen on; 104 is the registered one (0: any free; off: none but tls_port)
    dicom | check_called_ae_title | yes | bool | reject calls to any other AE title
    dicom | accept_unknown_devices | no | bool | accept calls from AE titles that are not registered as devices
    dicom | character_set | | charset | character set of answers if neither device nor query specifies one; empty: ISO_IR 192 (UTF-8)
    dicom | hide_steps | COMPLETED, DISCONTINUED, CANCELED, NO SHOW, DEPARTED | states | states in which steps are hidden from modalities
    dicom | answer_limit | 10000 | int 1 1000000 | maximum answers per query; beyond it the query ends with A700
    dicom | strict_mpps | no | bool | refuse a performed step without its type 2 attributes (0120), or discontinued without series
    dicom | maximum_pdu_length | 131072 | int 4096 1048576 | maximum PDU accepted, bytes
    dicom | maximum_command_length | 16384 | int 1024 1048576 | maximum command set, bytes
    dicom | maximum_dataset_length | 4194304 | int 65536 268435456 | maximum data set, bytes; larger ones are discarded and answered 0213
    dicom | maximum_drained_length | 33554432 | int 65536 1073741824 | bytes of one data set to discard before the association is aborted
    dicom | maximum_nesting | 16 | int 2 64 | maximum nesting of sequences
    dicom | maximum_elements | 100000 | int 1000 10000000 | maximum elements in one data set
    dicom | associate_timeout | 10 | seconds 0.1 600 | seconds a caller has to request an association
    dicom | pdu_timeout | 5 | seconds 0.1 600 | seconds to receive one PDU, plus 1 s per 16 KiB
    dicom | idle_timeout | 60 | seconds 0.1 86400 | seconds without a message before an association is aborted
    dicom | exam_timeout | 14400 | seconds 0.1 86400 | the same while an exam that began on the association goes on
    dicom | send_timeout | 10 | seconds 0.1 600 | seconds a caller has to accept what is sent
    dicom | maximum_associations | 256 | int 1 10000 | maximum associations at once
    dicom | maximum_associations_per_address | 128 | int 1 10000 | maximum per address
    dicom | maximum_pending | 256 | int 1 10000 | maximum connections without an association yet
    dicom | maximum_pending_per_address | 128 | int 1 10000 | maximum per address
    dicom | tls_port | 0 | int 0 65535 | port for associations over TLS (0: none; 2762 is the registered one)
    dicom | tls_certificate | | text | certificate chain file (PEM)
    dicom | tls_key | | text | private key file (PEM)
    dicom | tls_client_ca | | text | authorities file (PEM); callers must present a certificate issued by one of them
    dicom | tls_ca | | text | authorities file (PEM) of devices called over TLS; empty: tls_client_ca, else those of the system
    ups | worklist_label | MAIN | value LO 64 | Worklist Label (0074,1202) of workitems created without one
    ups | strict | no | bool | refuse a workitem without its type 2 attributes (0120)
    ups | grant_locks | yes | bool | grant deletion locks; no: subscribers get none (B301)
    ups | restart_receivers | | titles | further AE titles notified after a restart, comma-separated
    ups | auto_subscribe_creator | no | bool | subscribe whoever creates a workitem to it
    ups | tell_going_down | yes | bool | notify subscribers when minris is stopped
    commitment | evidence | archive | evidence | accepted proofs of images in the archive, in order, comma-separated: archive, commitment, availability
    commitment | archive | | ae_or_none | AE title of the archive to query; empty: the device whose role is archive
    commitment | answer_minutes | 60 | int 1 1440 | minutes to wait for the archive's own commitment before asking again
    commitment | look_minutes | 5 | int 0 1440 | minutes between archive queries for expected images (0: never)
    commitment | quiet_minutes | 10 | int 0 1440 | minutes without a new image before an exam counts as ended, for machines without MPPS
    commitment | missing_minutes | 5 | int 0 1440 | minutes to keep looking for an image that the archive does not have
    commitment | give_up_hours | 24 | int 1 720 | hours without proof, such as with the archive down, before images are reported as not in the archive
    commitment | report_hours | 72 | int 1 720 | hours to keep retrying delivery of a result to the machine
    commitment | keep_days | 90 | int 1 36500 | days to keep results and availability notifications
    commitment | maximum_instances | 20000 | int 1 1000000 | maximum images per request
    web | host | 0.0.0.0 | text | address to listen on
    web | port | 8080 | int 0 65535 | port to listen on (0: any free)
    web | tls_certificate | | text | certificate chain file of the pages (PEM); set it to serve them by https
    web | tls_key | | text | private key file (PEM)
    web | public_url | | url | public URL if behind a reverse proxy, such as https://ris.clinic.example or https://clinic.example/minris
    web | hosts | | hosts | further names of this system; once these or public_url are set, requests for any other name are refused (421)
    web | trusted_proxies | | networks | addresses or networks of reverse proxies, comma-separated; their X-Forwarded-For names the caller
    web | anonymous_loopback | no | bool | allow calls from 127.0.0.1 to /api and /dicom-web without a token
    web | session_hours | 12 | int 1 720 | hours until a login expires
    web | login_attempts | 10 | int 3 1000 | failed logins of a user, or of different users from one address, in 15 minutes before a lock-out
    web | maximum_body | 16777216 | int 65536 1073741824 | maximum request of a program or with a file, bytes; a form has 64 KiB
    web | request_timeout | 20 | seconds 1 600 | seconds to receive a request
    web | maximum_connections_per_address | 128 | int 1 10000 | maximum connections per address, not counting WebSockets
    web | maximum_websockets | 1000 | int 1 100000 | maximum open WebSockets
    web | requests_per_second | 1000 | int 0 100000 | requests per second and address before 429; 0: no limit
    web | access_log | no | bool | keep who has viewed which patient; administrators see it on the patient's page
    web | cors_origins | | origins | origins whose pages may call /api and /dicom-web with a token, such as https://viewer.example
    store | url | sqlite:///minris.db | store | database; a relative path is relative to config.ini
    clinic | name | minris | text | name of the clinic, shown on the pages
    clinic | address | | text | address of the clinic, printed on appointment slips
    clinic | phone | | text | phone number of the clinic, printed on appointment slips
    clinic | label_size | 50x30 | choice 50x30 57x32 89x36 | size of labels, width x height in mm
    clinic | slip_size | A5 | choice A5 A6 | paper of appointment slips
    clinic | timezone | | zone | time zone of the clinic, such as Asia/Shanghai; empty: that of the machine
    clinic | language | en | language | default language of the pages: en, zh-CN or another of static/i18n
    clinic | opens | 08:00 | clock | opening time, for the calendar
    clinic | closes | 18:00 | clock | closing time, for the calendar and no_show_after_closing
    clinic | closed_days | | weekdays | days of the week without exams, such as sat, sun
    clinic | slot_minutes | 15 | int 5 240 | default length of an exam, minutes, if its procedure is not in the catalogue
    clinic | import_encoding | | encoding | encoding of imported files other than UTF-8, such as GB18030 or windows-1252; empty: asked for if uncertain
    clinic | viewer_url | | viewer | an exam's images in the viewer, with {accession} or {study}: https://viewer.example/?study={study}
    clinic | patient_id_format | P{number:06} | id 64 | pattern of generated Patient IDs
    clinic | accession_number_format | {yy}{month}{day}{number:04} | id 16 | pattern of generated Accession Numbers
    clinic | requested_procedure_id_format | R{yy}{month}{day}{number:04} | id 16 | pattern of generated Requested Procedure IDs
    clinic | scheduled_procedure_step_id_format | S{yy}{month}{day}{number:04} | id 16 | pattern of generated Scheduled Procedure Step IDs
    housekeeping | backup_time | 02:30 | clock | time of the nightly backup; a missed one is made at the next start; empty: none
    housekeeping | backup_folder | backups | text | backup folder; a relative path is relative to config.ini
    housekeeping | second_backup_folder | | text | second folder that each backup is copied to, such as a stick or a share; empty: none
    housekeeping | backups_kept | 7 | int 1 1000 | number of days whose last backup is kept, as far as there is room
    housekeeping | backups_kept_weeks | 4 | int 0 1000 | number of weeks whose last backup is kept
    housekeeping | backups_kept_months | 12 | int 0 1000 | number of months whose last backup is kept
    housekeeping | restore_damaged | no | bool | replace a damaged database by the newest good backup; what came after it is missing then
    housekeeping | no_show_after_closing | no | bool | mark open exams as no-show at closing time (devices with MPPS only)
    housekeeping | keep_queries_days | 7 | int 1 3650 | days to keep the query log
    housekeeping | keep_steps_days | 0 | int 0 36500 | days to keep ended steps and what was performed for them (0: for ever)
    housekeeping | keep_patients_days | 0 | int 0 36500 | days to keep patients without steps (0: for ever)
    housekeeping | keep_workitems_days | 7 | int 1 36500 | minimum days to keep an ended workitem; a deletion lock keeps it longer
    housekeeping | keep_workitem_history_days | 0 | int 0 36500 | days to keep the events of purged workitems (0: for ever)
    housekeeping | keep_views_days | 365 | int 1 36500 | days to keep who has viewed a patient, see [web] access_log
    housekeeping | keep_deliveries_days | 30 | int 1 3650 | days to keep the record of deliveries
    housekeeping | stuck_lock_hours | 24 | int 1 8760 | hours after a workitem's end before a deletion lock on it is listed under Other problems
    housekeeping | stuck_workitem_hours | 8 | int 1 8760 | hours without an update before a workitem in progress is listed under Other problems
    housekeeping | stuck_exam_hours | 4 | int 1 8760 | hours without an update before a started exam is listed under Other problems
    housekeeping | stuck_events_minutes | 10 | int 1 10080 | minutes before undelivered events and reports are listed under Other problems
    housekeeping | give_up_events_hours | 72 | int 1 8760 | hours to keep retrying delivery of an event or report
    housekeeping | release_locks_days | 0 | int 0 3650 | days before deletion locks on ended workitems are released (0: only by hand)
    housekeeping | cancel_silent_workitems_hours | 0 | int 0 87600 | hours without an update before workitems in progress are cancelled (0: only by hand)
    housekeeping | cancel_expired_workitems | no | bool | cancel scheduled workitems past their expiration
    housekeeping | keep_audit_days | 0 | int 0 36500 | days to keep audit lines (0: for ever)
    housekeeping | audit_megabytes | 64 | int 1 65536 | maximum audit entries in the database, MB; older ones move to compressed files in the backup folder
    housekeeping | audit_files_megabytes | 1024 | int 1 1048576 | maximum size of all these files, MB; the oldest are deleted first, at night
    alert | url | | hook | address that is sent a JSON message when a light of the system turns, and when it is well; empty: none
    alert | smtp_host | | text | mail server for alerts by e-mail; empty: none
    alert | smtp_port | 587 | int 1 65535 | port of the mail server
    alert | smtp_security | starttls | choice starttls tls none | encryption towards the mail server
    alert | smtp_user | | text | user at the mail server; empty: no login
    alert | smtp_password | | secret | password of that user
    alert | sender | | text | sender of alerts by e-mail
    alert | receivers | | text | receivers of alerts by e-mail, comma-separated
    alert | steady_minutes | 5 | int 0 1440 | minutes a light must have changed before it is told
    log | level | INFO | choice DEBUG INFO WARNING ERROR | minimum log level; at DEBUG the log may hold patient data
    log | format | text | choice text json | log format
    log | file | | text | log file, rotated at 10 MB; empty: standard error
    """)
# Those that the page Settings may change too: kept in the store, and taken at once.
PAGE_SETTINGS = tuple(
    setting
    for row in table("""
    section      | key
    clinic       | name
    clinic       | address
    clinic       | phone
    clinic       | label_size
    clinic       | slip_size
    clinic       | timezone
    clinic       | opens
    clinic       | closes
    clinic       | closed_days
    clinic       | language
    dicom        | ae_title
    housekeeping | second_backup_folder
    """)
    for setting in SETTINGS
    if (setting.section, setting.key) == row
)
# The keys of each [device NAME].
DEVICE_SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    device | ae_title | | aes 8 | AE titles of the machine, comma-separated
    device | host | | text | address of the machine (needed only if minris connects to it)
    device | port | 104 | int 1 65535 | port of the machine (needed only if minris connects to it)
    device | tls | no | choice no yes any_name | whether minris calls it over TLS; any_name: even if its certificate names another host
    device | check_address | no | bool | reject its AE titles from any address other than host
    device | modality | | value CS 16 | modality (CT, MR, US, DX ...), preselected at registration
    device | station_name | | value SH 16 | Scheduled Station Name (0040,0010) of its steps
    device | location | | value SH 16 | Scheduled Procedure Step Location (0040,0011) of its steps
    device | character_set | | charset | character set of answers to it, and of its texts without one; empty: as its query says, else UTF-8
    device | fallback_character_set | ISO_IR 192 | charset | character set of answers that character_set cannot encode
    device | role | modality | choice modality archive workstation | kind of device
    device | hours | | hours | hours in which exams are booked on it, such as 08:00-12:00, 13:00-17:00; empty: those of the clinic
    device | own_steps_only | no | bool | show only steps scheduled for its own AE titles, whatever it asks for
    device | days_back | | days | days back: hide older steps; empty: no limit
    device | days_ahead | | days | days ahead: hide later steps; empty: no limit
    device | answer_limit | | limit | maximum answers per query of this device; empty: as [dicom] answer_limit
    device | empty_sequences | yes | bool | return empty sequences; no: omit them
    device | name_groups | all | choice all alphabetic ideographic | name groups it receives: all, or only one
    device | relational_queries | no | bool | archive supports relational queries
    device | mpps | auto | choice auto yes no | whether it sends MPPS; auto: if it ever has; no: its exams end when their images are in the archive
    device | report_on_same_association | no | bool | send storage commitment results on its own association first, while that is open
    device | passed_on | | passed_on | what is forwarded to it, comma-separated: mpps (performed steps), mpps_notification, availability
    device | events | as_subscribed | choice as_subscribed dimse websocket both | how workitem events reach it: as_subscribed, or always dimse, websocket or both
    device | events_without_role | no | bool | send UPS events even if it rejects the SCP role
    device | combined_pdvs | yes | bool | send command and data set in one PDU
    """)
