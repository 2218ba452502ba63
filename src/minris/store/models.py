"""The tables of the database."""

from typing import Any

import peewee

APPLICATION_ID = 0x6D726973  # "mris"
database = peewee.DatabaseProxy()


class StoreError(Exception):
    """The database cannot be used: foreign, empty, newer than this version, locked, or closed.

    kind  a key of TROUBLES if disk or file are in a bad condition, else empty
    """

    def __init__(self, words: str, kind: str = "") -> None:
        super().__init__(words)
        self.kind = kind


class StoreInUse(StoreError):
    """Another process holds the database."""


class Stored(peewee.Model):
    """Base class of the models."""

    id: Any  # added by peewee to a model without another primary key

    class Meta:
        database = database
        legacy_table_names = False


def text_columns(count: int, default: str | None = None) -> tuple["peewee.TextField[str]", ...]:
    """Several text columns, not null."""
    return tuple(peewee.TextField(default=default) for _ in range(count))


def keyed_by(*columns: str) -> Any:
    """The Meta class of a model with a primary key of several columns, without row ids."""
    return type("Meta", (), {"primary_key": peewee.CompositeKey(*columns), "without_rowid": True})


class Patient(Stored):
    """A patient; `data` holds the patient's attributes in the stored form."""

    patient_id, issuer_of_patient_id, patient_name, name_key = text_columns(4)
    patient_birth_date = peewee.TextField()
    data = peewee.BlobField()
    created_at, updated_at = text_columns(2)
    initials = peewee.TextField(default="")


class FormerIdentity(Stored):
    """A Patient ID that a patient had, with the other attributes of identity_of in `data`.

    merged  1 if it was that of another record, which is now this patient's
    """

    patient = peewee.ForeignKeyField(Patient, on_delete="CASCADE")
    former_id = peewee.TextField()
    data = peewee.BlobField(default=b"")
    at = peewee.TextField()
    merged = peewee.IntegerField()


class RequestedProcedure(Stored):
    """A requested procedure with its imaging service request and visit."""

    patient = peewee.ForeignKeyField(Patient)
    study_instance_uid, requested_procedure_id, accession_number = text_columns(3)
    data = peewee.BlobField()
    created_at = peewee.TextField()


class ScheduledProcedureStep(Stored):
    """A scheduled procedure step; `data` is its complete worklist data set."""

    procedure = peewee.ForeignKeyField(RequestedProcedure)
    scheduled_procedure_step_id, study_instance_uid = text_columns(2)
    requested_procedure_id, accession_number, patient_id, name_key = text_columns(4)
    modality, start_date, start_time, status = text_columns(4)
    data = peewee.BlobField()
    version = peewee.IntegerField()
    created_at, arrived_at, started_at, ended_at, remark = text_columns(5)
    told_by = peewee.TextField(default="")  # a key of TOLD_BY, or the user who ended it


class ScheduledStation(Stored):
    """One of the station AE titles of a scheduled procedure step."""

    ae_title, start_date = text_columns(2)
    step = peewee.ForeignKeyField(ScheduledProcedureStep)
    Meta = keyed_by("ae_title", "start_date", "step")


class PatientView(Stored):
    """Who has opened which page about a patient; what: the rule of the page."""

    at, who, address, what = text_columns(4)
    patient = peewee.ForeignKeyField(Patient, on_delete="CASCADE")

    class Meta:
        autoincrement = True


class WaitingNumber(Stored):
    """The number of a patient in the waiting room of a day (DA), and the exam called last."""

    day = peewee.TextField()
    patient = peewee.ForeignKeyField(Patient, on_delete="CASCADE")
    number = peewee.IntegerField()
    called_step = peewee.IntegerField(default=0)
    called_at = peewee.TextField(default="")
    Meta = keyed_by("day", "patient")


class StepSeen(Stored):
    """When a scheduled procedure step was first returned to a device."""

    step = peewee.ForeignKeyField(ScheduledProcedureStep)
    ae_title, at = text_columns(2)
    Meta = keyed_by("step", "ae_title")


class PerformedProcedureStep(Stored):
    """A modality performed procedure step, as reported."""

    sop_instance_uid, status, performed_station_ae_title = text_columns(3)
    data = peewee.BlobField()
    created_at, updated_at, remark = text_columns(3)
    raw = peewee.BlobField(null=True)  # type: ignore[assignment]  # as received, if recovered
    settled = peewee.TextField(default="")  # why a user left it without an order
    patient_id = peewee.TextField(default="")


class PerformedScheduledStep(Stored):
    """The scheduled steps that a performed step belongs to, n to m.

    patient  `differs` from the order's, undecided; `agrees` since that was corrected; `accepted` by
             a person; else empty
    told     the patient that a refused N-SET named
    """

    performed = peewee.ForeignKeyField(PerformedProcedureStep)
    scheduled = peewee.ForeignKeyField(ScheduledProcedureStep)
    found_by, status_before = text_columns(2)
    patient = peewee.TextField(default="")
    told = peewee.BlobField(default=b"")
    Meta = keyed_by("performed", "scheduled")


class DeviceRecord(Stored):
    """A device from the page; `settings` is a JSON object of texts by key of DEVICE_SETTINGS."""

    name = peewee.TextField(unique=True)
    settings, created_at, updated_at = text_columns(3)


class Procedure(Stored):
    """An entry of the procedure catalogue."""

    code = peewee.TextField(unique=True)
    scheme, meaning, modality, ae_title = text_columns(4)
    minutes = peewee.IntegerField()
    protocol_code, protocol_meaning = text_columns(2)
    retired = peewee.IntegerField()
    preparation = peewee.TextField(default="")  # what the patient is told


class BlockedTime(Stored):
    """A time in which a device has no exams: each day (DA) from `first` to `last`, in minutes."""

    ae_title, first, last, reason = text_columns(4)
    begins, ends = peewee.IntegerField(), peewee.IntegerField()
    created_at = peewee.TextField()


class Referrer(Stored):
    """A referring physician (PN) of orders, and when last."""

    name = peewee.TextField(primary_key=True)
    used_at = peewee.TextField()


class QueryTrace(Stored):
    """The worklist queries of one device with the same keys in one hour."""

    hour, ae_title, address = text_columns(3)
    keys = peewee.BlobField()
    raw = peewee.BlobField()  # type: ignore[assignment]  # a column, not the query of peewee
    count = peewee.IntegerField()
    answers = peewee.IntegerField()
    status = peewee.IntegerField()
    last_at = peewee.TextField()


class Workitem(Stored):
    """A unified procedure step; its Transaction UID, the lock, is kept out of `data`.

    accession_number  of its request; * if there are several
    performer  who claimed it: an AE title or, if `by_person`, a user
    declined   why that user declined to cancel it
    """

    sop_instance_uid, state, transaction_uid, performer = text_columns(4)
    by_person = peewee.IntegerField()
    declined, worklist_label, priority, readiness, start_at, expires_at = text_columns(6)
    patient_id, accession_number, name_key, label = text_columns(4)
    data = peewee.BlobField()
    version = peewee.IntegerField()
    created_at, updated_at, claimed_at, ended_at = text_columns(4)


class PurgedWorkitem(Stored):
    """The UID of a purged workitem, to remember that it existed."""

    sop_instance_uid = peewee.TextField(primary_key=True)
    purged_at = peewee.TextField()


class Subscription(Stored):
    """A subscription of an AE to one workitem, with or without a deletion lock."""

    workitem = peewee.ForeignKeyField(Workitem)
    ae_title = peewee.TextField()
    deletion_lock = peewee.IntegerField()
    created_at = peewee.TextField()
    Meta = keyed_by("workitem", "ae_title")


class GlobalSubscription(Stored):
    """A global subscription of an AE; `keys` holds the filter of a filtered one."""

    ae_title, uid = text_columns(2)
    deletion_lock = peewee.IntegerField()
    keys = peewee.BlobField()
    created_at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "uid")


class WorkitemEvent(Stored):
    """An event of a workitem, as sent to subscribers; kept as history.

    initial  1 for the report to a new subscriber, which is not a change
    """

    sop_instance_uid = peewee.TextField()
    event_type = peewee.IntegerField()
    data = peewee.BlobField()
    created_at, who = text_columns(2)
    initial = peewee.IntegerField(default=0)


class EventChannel(Stored):
    """A channel, one of EVENT_CHANNELS, by which an AE receives events of workitems."""

    ae_title, channel = text_columns(2)
    Meta = keyed_by("ae_title", "channel")


class Receiver(Stored):
    """Deliveries to an AE in a lane: consecutive failures, their total seconds, next try."""

    lane, ae_title = text_columns(2)
    failures = peewee.IntegerField(default=0)
    failing_s = peewee.IntegerField(default=0)
    try_at, problem, heard_at = text_columns(3, default="")
    Meta = keyed_by("lane", "ae_title")


class Commitment(Stored):
    """A request for storage commitment.

    requester  AE title or, over HTTP, login of the requester; called: the called AE title
    door       `dimse` or `web`; by_study: whether it lists references by study
    repeats    its Transaction UID was in use already
    state      `asked`, `judged`, `told`, or `given up`: the result could not be delivered
    failures   consecutive, of judging it, then of delivery; try_at: when it is judged next
    """

    transaction_uid, requester, called, door = text_columns(4)
    by_study = peewee.IntegerField()
    repeats = peewee.IntegerField()
    state = peewee.TextField()
    data = peewee.BlobField()
    problem = peewee.TextField(default="")
    failures = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    created_at = peewee.TextField()
    judged_at, told_at = text_columns(2, default="")


class CommitmentInstance(Stored):
    """An instance of a request; verdict: "" until judged, `0000`, or the Failure Reason."""

    commitment = peewee.ForeignKeyField(Commitment, on_delete="CASCADE")
    sop_class_uid, sop_instance_uid, study_instance_uid = text_columns(3)
    series_instance_uid = peewee.TextField()
    verdict, evidence = text_columns(2, default="")


class Outbox(Stored):
    """A message to one receiver; the messages of a lane are sent in order.

    kind        `event`, a key of PASSED_ON, `commitment result`, `commitment request`
    lane        one of EVENT_LANES, or another lane of the outbox
    event       its content, if kept once for all receivers
    event_type  Event Type ID or Action Type ID
    answer      the receiver's status, 4 hexadecimal digits, and comment
    refused     number of temporary failures that the receiver answered
    """

    kind, lane, receiver = text_columns(3)
    event = peewee.ForeignKeyField(WorkitemEvent, null=True)
    commitment = peewee.ForeignKeyField(Commitment, null=True)
    operation = peewee.TextField(default="N-EVENT-REPORT")
    sop_instance_uid = peewee.TextField(null=True)
    event_type = peewee.IntegerField(default=0)
    data = peewee.BlobField(default=b"")
    created_at = peewee.TextField()
    sent_at, given_up_at, answer = text_columns(3, default="")
    refused = peewee.IntegerField(default=0)
    problem = peewee.TextField(default="")

    class Meta:
        autoincrement = True


class Availability(Stored):
    """The availability last notified of an instance at a Retrieve AE Title."""

    sop_instance_uid, retrieve_ae_title, sop_class_uid, study_instance_uid = text_columns(4)
    series_instance_uid, availability, who, at = text_columns(4)
    Meta = keyed_by("sop_instance_uid", "retrieve_ae_title")


class StudySeen(Stored):
    """The images of an exam without MPPS: their number, and since when it is the same.

    seen_at  when the number was last confirmed
    """

    study_instance_uid = peewee.TextField(primary_key=True)
    instances = peewee.IntegerField()
    told_by, since = text_columns(2)
    seen_at = peewee.TextField(default="")


class SettledStudy(Stored):
    """A study in the archive that a user marked as having no order here, and why."""

    study_instance_uid = peewee.TextField(primary_key=True)
    why, at = text_columns(2)


class AvailabilityNotice(Stored):
    """An Instance Availability Notification, kept so that its UID is accepted only once."""

    sop_instance_uid = peewee.TextField(unique=True)
    who = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()


class UndoNote(Stored):
    """A change by a user, with the values before and after, so that it can be undone.

    about   the page that offers the undo: `patient 3`, `step 7`
    images  JSON: [table, row, before, after], changed columns by name; no `after` if deleted
    """

    about, what, who, at, images = text_columns(5)

    class Meta:
        autoincrement = True


class ValueChange(Stored):
    """Values that somebody changed, told on the page of what it is about as long as that is kept.

    about   `patient 3`, `step 7`
    what    in words, to be translated
    before, after  values, as JSON: text by keyword
    """

    about, at, who, what, before, after = text_columns(6)


class ImportedFile(Stored):
    """A file that is looked at or imported, or was imported.

    digest   of the file and of how it is read: the mark by which it is known again
    who      the Actor, as JSON
    state    checking, then checked or refused; or importing, then done; or taking back, taken back
    problem  status and words of a refusal, as JSON
    left_out columns that were left out, as JSON
    wanted   1 to import it, 0 to look at it
    done     number of items that are imported, of `total`
    content  the file; empty when its import has ended
    """

    digest, name, how, who, state = text_columns(5)
    problem = peewee.TextField(default="")
    left_out = peewee.TextField(default="[]")
    created_at, ended_at = text_columns(2)
    wanted = peewee.IntegerField()
    total = peewee.IntegerField(default=0)
    done = peewee.IntegerField(default=0)
    content = peewee.BlobField()

    class Meta:
        autoincrement = True


class ImportedStep(Stored):
    """A scheduled step that came with a file."""

    import_id = peewee.IntegerField()
    step_id = peewee.IntegerField()

    Meta = keyed_by("import_id", "step_id")


class ImportedPatient(Stored):
    """A patient as it was before an import changed it, until that has ended; triggers keep it.

    after  as the import left it last; one zero byte if somebody else changed it in between
    """

    import_id = peewee.IntegerField()
    patient = peewee.ForeignKeyField(Patient, on_delete="CASCADE")
    before = peewee.BlobField()
    after = peewee.BlobField(default=b"")

    Meta = keyed_by("import_id", "patient")


class Mark(Stored):
    """A named value of the system, such as the time of its last start or of a job."""

    name = peewee.TextField(primary_key=True)
    value = peewee.TextField()


class User(Stored):
    """A user who can log in."""

    name = peewee.TextField(unique=True)
    role, password, created_at = text_columns(3)


class Session(Stored):
    """A login session; only the hash of its cookie is kept."""

    digest = peewee.TextField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    csrf, created_at, expires_at = text_columns(3)


class Token(Stored):
    """An API token; only its hash is kept.

    ae_titles  AE titles that it may act for, separated by backslashes
    """

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    digest = peewee.TextField(unique=True)
    created_at = peewee.TextField()
    ae_titles = peewee.TextField(default="")


class LoginFailure(Stored):
    """A failed login, for the throttle."""

    who, at = text_columns(2)


class Counter(Stored):
    """The last number issued for a kind of identifier on a day."""

    name = peewee.TextField(primary_key=True)
    last = peewee.IntegerField()


class LostIdentifier(Stored):
    """An identifier that a store had which a backup replaced: it is not given again.

    kind  the column that held it
    """

    kind, value = text_columns(2)
    Meta = keyed_by("kind", "value")


class Audit(Stored):
    """An audit line: who did what to which object. Never changed; only the purge deletes it.

    digest  audit_digest of this line and of the digest before it; "" in lines of old databases
    """

    at, who, what, about, detail = text_columns(5)
    digest = peewee.TextField(default="")


MODELS = tuple(Stored.__subclasses__())
