"""The tables of the store."""

from typing import Any

import peewee

APPLICATION_ID = 0x6D726973  # "mris"
database = peewee.DatabaseProxy()


class StoreError(Exception):
    """The store cannot be opened: foreign, empty, newer than this program, or in use."""


class Stored(peewee.Model):
    """What all models have in common."""

    id: Any  # the row, made by peewee where a model has no other key

    class Meta:
        database = database
        legacy_table_names = False


class Patient(Stored):
    """A patient; `data` holds the attributes of the patient alone, in the stored form."""

    patient_id = peewee.TextField()
    issuer_of_patient_id = peewee.TextField()
    patient_name = peewee.TextField()
    name_key = peewee.TextField()
    patient_birth_date = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()
    initials = peewee.TextField(default="")


class RequestedProcedure(Stored):
    """A requested procedure with its imaging service request and visit."""

    patient = peewee.ForeignKeyField(Patient)
    study_instance_uid = peewee.TextField()
    requested_procedure_id = peewee.TextField()
    accession_number = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()


class ScheduledProcedureStep(Stored):
    """A scheduled procedure step; `data` is the complete worklist data set, folded together."""

    procedure = peewee.ForeignKeyField(RequestedProcedure)
    scheduled_procedure_step_id = peewee.TextField()
    study_instance_uid = peewee.TextField()
    requested_procedure_id = peewee.TextField()
    accession_number = peewee.TextField()
    patient_id = peewee.TextField()
    name_key = peewee.TextField()
    modality = peewee.TextField()
    start_date = peewee.TextField()
    start_time = peewee.TextField()
    status = peewee.TextField()
    data = peewee.BlobField()
    version = peewee.IntegerField()
    created_at = peewee.TextField()
    arrived_at = peewee.TextField()
    started_at = peewee.TextField()
    ended_at = peewee.TextField()
    remark = peewee.TextField()
    told_by = peewee.TextField(default="")  # a key of TOLD_BY, or the person who said that it ended


class ScheduledStation(Stored):
    """One of the station AE titles of a scheduled procedure step."""

    ae_title = peewee.TextField()
    start_date = peewee.TextField()
    step = peewee.ForeignKeyField(ScheduledProcedureStep)

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "start_date", "step")
        without_rowid = True


class StepSeen(Stored):
    """When a scheduled procedure step was first among the answers to a device."""

    step = peewee.ForeignKeyField(ScheduledProcedureStep)
    ae_title = peewee.TextField()
    at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("step", "ae_title")
        without_rowid = True


class PerformedProcedureStep(Stored):
    """A modality performed procedure step, as the modality told it."""

    sop_instance_uid = peewee.TextField()
    status = peewee.TextField()
    performed_station_ae_title = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()
    remark = peewee.TextField()
    raw = peewee.BlobField(null=True)  # type: ignore[assignment]  # as received, if recovered
    settled = peewee.TextField(default="")  # why a person left it without an order


class PerformedScheduledStep(Stored):
    """Which scheduled steps a performed one satisfies, n to m."""

    performed = peewee.ForeignKeyField(PerformedProcedureStep)
    scheduled = peewee.ForeignKeyField(ScheduledProcedureStep)
    found_by = peewee.TextField()
    status_before = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("performed", "scheduled")
        without_rowid = True


class DeviceRecord(Stored):
    """A device made on the page; `settings` is JSON of texts by key of DEVICE_SETTINGS."""

    name = peewee.TextField(unique=True)
    settings = peewee.TextField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()


class Procedure(Stored):
    """A row of the procedure catalogue."""

    code = peewee.TextField(unique=True)
    scheme = peewee.TextField()
    meaning = peewee.TextField()
    modality = peewee.TextField()
    ae_title = peewee.TextField()
    minutes = peewee.IntegerField()
    protocol_code = peewee.TextField()
    protocol_meaning = peewee.TextField()
    retired = peewee.IntegerField()


class QueryTrace(Stored):
    """Worklist queries of one device with the same keys in one hour, folded."""

    hour = peewee.TextField()
    ae_title = peewee.TextField()
    address = peewee.TextField()
    keys = peewee.BlobField()
    raw = peewee.BlobField()  # type: ignore[assignment]  # a column, not the query of peewee
    count = peewee.IntegerField()
    answers = peewee.IntegerField()
    status = peewee.IntegerField()
    last_at = peewee.TextField()


class Workitem(Stored):
    """A unified procedure step; the Transaction UID, its lock, is in no data set.

    accession_number  that of its request, * where it has several
    performer  the AE title or, `by_person`, the user that claimed it
    declined   why that person does not have it cancelled
    """

    sop_instance_uid = peewee.TextField()
    state = peewee.TextField()
    transaction_uid = peewee.TextField()
    performer = peewee.TextField()
    by_person = peewee.IntegerField()
    declined = peewee.TextField()
    worklist_label = peewee.TextField()
    priority = peewee.TextField()
    readiness = peewee.TextField()
    start_at = peewee.TextField()
    expires_at = peewee.TextField()
    patient_id = peewee.TextField()
    accession_number = peewee.TextField()
    name_key = peewee.TextField()
    label = peewee.TextField()
    data = peewee.BlobField()
    version = peewee.IntegerField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()
    claimed_at = peewee.TextField()
    ended_at = peewee.TextField()


class PurgedWorkitem(Stored):
    """The UID of a workitem that was deleted, so that it is known to have been."""

    sop_instance_uid = peewee.TextField(primary_key=True)
    purged_at = peewee.TextField()


class Subscription(Stored):
    """An AE that hears of one workitem, with or without a deletion lock."""

    workitem = peewee.ForeignKeyField(Workitem)
    ae_title = peewee.TextField()
    deletion_lock = peewee.IntegerField()
    created_at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("workitem", "ae_title")
        without_rowid = True


class GlobalSubscription(Stored):
    """An AE that is subscribed to what is created; `keys` holds the filter of a filtered one."""

    ae_title = peewee.TextField()
    uid = peewee.TextField()
    deletion_lock = peewee.IntegerField()
    keys = peewee.BlobField()
    created_at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "uid")


class WorkitemEvent(Stored):
    """Something that happened to a workitem, as watchers are told it; kept as history.

    initial  it is what a new subscriber is told, and no happening
    """

    sop_instance_uid = peewee.TextField()
    event_type = peewee.IntegerField()
    data = peewee.BlobField()
    created_at = peewee.TextField()
    who = peewee.TextField()
    initial = peewee.IntegerField(default=0)


class EventChannel(Stored):
    """A way by which an AE is told of workitems, one of EVENT_CHANNELS."""

    ae_title = peewee.TextField()
    channel = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "channel")
        without_rowid = True


class Receiver(Stored):
    """How deliveries to an AE go in a lane: failures in a row, the seconds they have cost, the next try."""

    lane = peewee.TextField()
    ae_title = peewee.TextField()
    failures = peewee.IntegerField(default=0)
    failing_s = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    problem = peewee.TextField(default="")
    heard_at = peewee.TextField(default="")

    class Meta:
        primary_key = peewee.CompositeKey("lane", "ae_title")
        without_rowid = True


class Commitment(Stored):
    """A request for storage commitment.

    requester  the AE title that asked, or the login over HTTP; called: ours, as it asked
    door       `dimse` or `web`; by_study: how its references are written
    repeats    it asks under a Transaction UID that was in use already
    state      `asked`, `judged`, `told`, or `given up`: nobody could be told
    failures   in a row: of judging it, then of telling it; try_at: when it is judged
    """

    transaction_uid = peewee.TextField()
    requester = peewee.TextField()
    called = peewee.TextField()
    door = peewee.TextField()
    by_study = peewee.IntegerField()
    repeats = peewee.IntegerField()
    state = peewee.TextField()
    data = peewee.BlobField()
    problem = peewee.TextField(default="")
    failures = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    created_at = peewee.TextField()
    judged_at = peewee.TextField(default="")
    told_at = peewee.TextField(default="")


class CommitmentInstance(Stored):
    """An instance that is to be committed: "" while it is not judged, `0000`, or why not."""

    commitment = peewee.ForeignKeyField(Commitment, on_delete="CASCADE")
    sop_class_uid = peewee.TextField()
    sop_instance_uid = peewee.TextField()
    study_instance_uid = peewee.TextField()
    series_instance_uid = peewee.TextField()
    verdict = peewee.TextField(default="")
    evidence = peewee.TextField(default="")


class Outbox(Stored):
    """A message for one receiver; those of a lane are sent to it in order.

    kind        `event`, a key of PASSED_ON, `commitment result`, `commitment request`
    lane        one of EVENT_LANES, or another of the outbox's
    event       what it tells, where that is kept once for all receivers
    event_type  Event Type ID or Action Type ID
    answer      status that it was answered with, 4 hexadecimal digits, and the comment
    refused     how often it was answered with a failure that may pass
    """

    kind = peewee.TextField()
    lane = peewee.TextField()
    receiver = peewee.TextField()
    event = peewee.ForeignKeyField(WorkitemEvent, null=True)
    commitment = peewee.ForeignKeyField(Commitment, null=True)
    operation = peewee.TextField(default="N-EVENT-REPORT")
    sop_instance_uid = peewee.TextField(null=True)
    event_type = peewee.IntegerField(default=0)
    data = peewee.BlobField(default=b"")
    created_at = peewee.TextField()
    sent_at = peewee.TextField(default="")
    given_up_at = peewee.TextField(default="")
    answer = peewee.TextField(default="")
    refused = peewee.IntegerField(default=0)
    problem = peewee.TextField(default="")

    class Meta:
        autoincrement = True


class Availability(Stored):
    """What was last notified of an instance at an AE that it can be retrieved from."""

    sop_instance_uid = peewee.TextField()
    retrieve_ae_title = peewee.TextField()
    sop_class_uid = peewee.TextField()
    study_instance_uid = peewee.TextField()
    series_instance_uid = peewee.TextField()
    availability = peewee.TextField()
    who = peewee.TextField()
    at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("sop_instance_uid", "retrieve_ae_title")
        without_rowid = True


class StudySeen(Stored):
    """Of an exam that its machine does not report: its images so far, and since when so many.

    seen_at  when that was last known to be so
    """

    study_instance_uid = peewee.TextField(primary_key=True)
    instances = peewee.IntegerField()
    told_by = peewee.TextField()
    since = peewee.TextField()
    seen_at = peewee.TextField(default="")


class SettledStudy(Stored):
    """A study in the archive that a person has said to be without an order of ours, and why."""

    study_instance_uid = peewee.TextField(primary_key=True)
    why = peewee.TextField()
    at = peewee.TextField()


class AvailabilityNotice(Stored):
    """An Instance Availability Notification: its UID is not taken twice."""

    sop_instance_uid = peewee.TextField(unique=True)
    who = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()


class UndoNote(Stored):
    """What a person has changed, as it was before and after, so that it can be taken back.

    about   the page that offers it: `patient 3`, `step 7`
    images  JSON: [table, row, before, after], what has changed by name; nothing after a row's end
    """

    about = peewee.TextField()
    what = peewee.TextField()
    who = peewee.TextField()
    at = peewee.TextField()
    images = peewee.TextField()

    class Meta:
        autoincrement = True


class Mark(Stored):
    """What the store remembers of the box: its last start, when a job last ran."""

    name = peewee.TextField(primary_key=True)
    value = peewee.TextField()


class User(Stored):
    """Someone who logs in."""

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    password = peewee.TextField()
    created_at = peewee.TextField()


class Session(Stored):
    """A login; only the hash of its cookie is kept."""

    digest = peewee.TextField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    csrf = peewee.TextField()
    created_at = peewee.TextField()
    expires_at = peewee.TextField()


class Token(Stored):
    """An API token; only its hash is kept.

    ae_titles  those that it may subscribe, and hear of, separated by backslashes
    """

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    digest = peewee.TextField(unique=True)
    created_at = peewee.TextField()
    ae_titles = peewee.TextField(default="")


class LoginFailure(Stored):
    """A wrong password, for the throttle."""

    who = peewee.TextField()
    at = peewee.TextField()


class Counter(Stored):
    """The last number given out for a kind of identifier on a day."""

    name = peewee.TextField(primary_key=True)
    last = peewee.IntegerField()


class Audit(Stored):
    """Who did what to which object: never changed, and erased by the purge alone.

    digest  of this line and of the digest before it, as audit_digest has it; "" of old stores
    """

    at = peewee.TextField()
    who = peewee.TextField()
    what = peewee.TextField()
    about = peewee.TextField()
    detail = peewee.TextField()
    digest = peewee.TextField(default="")


MODELS = (
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    ScheduledStation,
    StepSeen,
    PerformedProcedureStep,
    PerformedScheduledStep,
    Workitem,
    PurgedWorkitem,
    Subscription,
    GlobalSubscription,
    WorkitemEvent,
    EventChannel,
    Receiver,
    Commitment,
    CommitmentInstance,
    Outbox,
    Availability,
    AvailabilityNotice,
    StudySeen,
    SettledStudy,
    UndoNote,
    Mark,
    DeviceRecord,
    Procedure,
    QueryTrace,
    User,
    Session,
    Token,
    LoginFailure,
    Counter,
    Audit,
)
