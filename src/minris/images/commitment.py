"""Storage commitment: requests, verdicts, forwarding, results (PS3.4 J, PS3.18 13)."""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydicom.uid import UID

from minris import log
from minris.access.context import Context, archive_of, audit, device_of, needs_reason
from minris.dataset.checks import check_attributes
from minris.dataset.elements import (
    ElementIndex,
    encode_element,
    encode_items,
    sequence_elements,
    text_elements,
)
from minris.images.arrivals import end_by_images
from minris.images.availability import record_found
from minris.images.references import Evidence, Reference, checked_references, is_by_study, places_of
from minris.outbox import (
    REQUEST_LANE,
    RESULT_LANE,
    RETRY_AFTER,
    WAITING,
    Event,
    due_events,
    retry_wait,
    try_again,
)
from minris.standard.commitment import (
    COMMITMENT_EVENTS,
    COMMITMENT_RESULT,
    COMMITTED,
    NO_ROOM,
    NOT_CHECKED,
    NOT_STORED,
    NOT_THERE,
    OF_ANOTHER_CLASS,
    REFERENCED_SOP,
    UID_IN_USE,
)
from minris.standard.dictionary import tag_of, value_problem
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.uids import STORAGE_COMMITMENT_INSTANCE
from minris.standard.ups import TRANSACTION_UID
from minris.store.models import Commitment, CommitmentInstance, Outbox, database
from minris.store.rows import erase, fetch_rows, first_row, insert_row, insert_rows, update_row


def request_commitment(ctx: Context, uid: str, data: bytes, door: str = "dimse") -> None:
    """Store a storage commitment request, to be judged later.

    uid      Transaction UID
    data     the references, stored form
    door     `dimse`: the requester gets the result; `web`: the requester asks for it
    Refuses  0115, 0120, 0121; 0213 for too many; 0124 if the requester has no address; over HTTP
             0111 for a UID in use (over DIMSE all of such a request fails, in its result)
    Source   PS3.4 J.3.2; PS3.18 13.4
    """
    if not uid or value_problem("UI", uid):
        problem = Problem(TRANSACTION_UID, Message("{value} is not a UID", value=uid[:64]))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    index = ElementIndex(data).without([TRANSACTION_UID])
    by_study = door == "web" and is_by_study(index)
    references = checked_references(ctx, index, by_study)
    requester = ctx.actor.name
    device = device_of(ctx, requester)
    if door == "dimse" and not (device and device.host):
        words = Message("{ae} is not registered with an address", ae=requester)
        raise Refusal(Status.NOT_AUTHORIZED, words)
    with database.atomic():
        known = first_row(Commitment, "transaction_uid = ? AND repeats = 0", uid)
        if known and door == "web":
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, Message("{uid} is in use", uid=uid))
        same = (door, requester, bytes(index))
        again = known and (known.door, known.requester, bytes(known.data)) == same
        if again and known.state in ("asked", "judged"):
            log.info("commitment %s: requested again by %s", uid, ctx.actor)
            return
        row_id = insert_row(
            Commitment,
            transaction_uid=uid,
            requester=requester,
            called=ctx.actor.called or ctx.config.dicom.ae_title,
            door=door,
            by_study=int(by_study),
            repeats=int(bool(known)),
            state="judged" if known else "asked",
            data=bytes(index),
            created_at=ctx.stamp(),
            judged_at=ctx.stamp() if known else "",
        )
        if known:
            _enter_result(ctx, row_id, requester)
        insert_rows(
            "commitment_instance (commitment_id, sop_class_uid, sop_instance_uid,"
            " study_instance_uid, series_instance_uid, verdict)",
            ((row_id, *one, first_verdict(one.sop_class_uid, bool(known))) for one in references),
        )
        audit(ctx, "commitment asked", uid, Message("{count} images", count=len(references)))
    log.info("commitment %s: requested by %s; instances: %d", uid, ctx.actor, len(references))


def first_verdict(sop_class_uid: str, repeated: bool) -> str:
    """The verdict without a check: "", 0131, or 0122 for a class that is not stored."""
    if repeated:
        return UID_IN_USE
    known = UID(sop_class_uid)
    if known.is_private or known.name == sop_class_uid:  # of a vendor, or of a later edition
        return ""
    is_storage = "Storage" in known.name and "Commitment" not in known.name
    return "" if known.type == "SOP Class" and is_storage else NOT_STORED


def _enter_result(ctx: Context, commitment_id: int, requester: str) -> None:
    """Queue the result of a request for its requester."""
    insert_row(Outbox, kind="commitment result", lane=RESULT_LANE, receiver=requester,
               commitment_id=commitment_id, created_at=ctx.stamp())  # fmt: skip


def commitment_rows(where: str, *values: Any) -> list[Any]:
    """Requests under a condition, without their data sets, which may have megabytes."""
    names = [name for name in Commitment._meta.sorted_field_names if name != "data"]
    return fetch_rows(Commitment, where, *values, columns=", ".join(names))


def due_commitments(ctx: Context) -> list[Any]:
    """Requests that are due to be judged."""
    due = "state = 'asked' AND (try_at <= ? OR try_at > ?) ORDER BY try_at, id LIMIT 100"
    return commitment_rows(due, ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1]))


def open_references(commitment_id: int) -> list[Reference]:
    """The unjudged instances of a request, with study and series if known."""
    cursor = database.execute_sql(
        "SELECT sop_class_uid, sop_instance_uid, study_instance_uid, series_instance_uid"
        " FROM commitment_instance WHERE commitment_id = ? AND verdict = ''",
        (commitment_id,),
    )
    found = [Reference(*row) for row in cursor]
    unknown = {one.sop_instance_uid for one in found if not one.study_instance_uid}
    places = places_of(unknown) if unknown else {}
    return [Reference(*one[:2], *places.get(one.sop_instance_uid, one[2:])) for one in found]


def record_evidence(ctx: Context, commitment_id: int, evidence: Evidence) -> None:
    """Judge the instances that there is evidence of; the others are checked again until time-out.

    Source  PS3.4 J.3.3.1.2: only instances found in the archive are confirmed
    """
    [commitment] = fetch_rows(Commitment, "id = ?", commitment_id)
    if commitment.state != "asked":
        return
    keep = ctx.config.commitment
    waited = commitment.created_at <= ctx.stamp(minutes=-keep.missing_minutes)
    over = commitment.created_at <= ctx.stamp(hours=-keep.give_up_hours)
    verdicts = []
    for one in fetch_rows(CommitmentInstance, "commitment_id = ? AND verdict = ''", commitment_id):
        sop_class, source = evidence.found.get(one.sop_instance_uid, (None, ""))
        if sop_class is not None:
            right = sop_class in ("", one.sop_class_uid)
            verdict = COMMITTED if right else OF_ANOTHER_CLASS
        elif one.sop_instance_uid in evidence.missing and waited:
            verdict = evidence.reasons.get(one.sop_instance_uid, NOT_THERE)
        elif (one.sop_instance_uid in evidence.unchecked and waited) or over:
            verdict = NOT_CHECKED
        else:
            continue
        verdicts.append((verdict, source, one.id))
    sql = "UPDATE commitment_instance SET verdict = ?, evidence = ? WHERE id = ?"
    with database.atomic():
        database.connection().executemany(sql, verdicts)
        _settle_commitment(ctx, commitment, evidence.problem)
        if evidence.places and (archive := archive_of(ctx)):
            record_found(ctx, archive.ae_title, evidence)
        for study in sorted({place[0] for place in evidence.places.values()}):
            end_by_images(ctx, study, "commitment", commitment.requester)


def _settle_commitment(ctx: Context, commitment: Any, problem: str) -> None:
    """Finish a request if all its instances are judged, else set its next check."""
    good, bad, open_ = commitment_counts([commitment.id])[commitment.id]
    if open_:
        failures = commitment.failures + 1
        update_row(Commitment, commitment.id, failures=failures, problem=problem[:500],
                   try_at=ctx.stamp(seconds=retry_wait(failures)))  # fmt: skip
        return
    update_row(Commitment, commitment.id, state="judged", judged_at=ctx.stamp(), failures=0,
               problem="", try_at="")  # fmt: skip
    database.execute_sql(
        "UPDATE outbox SET given_up_at = ?, problem = 'judged', data = x''"
        f" WHERE commitment_id = ? AND {WAITING}",
        (ctx.stamp(), commitment.id),
    )
    if commitment.door == "dimse":
        _enter_result(ctx, commitment.id, commitment.requester)
    words = Message("in the archive: {good}, not: {bad}", good=good, bad=bad)
    audit(ctx, "commitment judged", commitment.transaction_uid, words)
    log.info("commitment %s: committed %d, failed %d", commitment.transaction_uid, good, bad)


REPORTED = "reported"  # the answer of a request whose report has arrived
# Failure reasons of an archive that are kept; any other becomes 0110.
REASONS_OF_ARCHIVE = frozenset({NOT_THERE, OF_ANOTHER_CLASS, NOT_STORED, NO_ROOM})


def request_state(ctx: Context, commitment_id: int, archive: str) -> tuple[bool, str]:
    """Whether an archive may still answer a forwarded request, and the problem if any."""
    asked = f"sent_at > ? AND answer <> '{REPORTED}'"
    found = database.execute_sql(
        f"SELECT max(({WAITING}) OR ({asked})) OVER (), CASE WHEN o.sent_at <> '' THEN ''"
        " WHEN o.given_up_at <> '' THEN o.answer ELSE coalesce(r.problem, '') END FROM outbox o"
        " LEFT JOIN receiver r ON r.lane = o.lane AND r.ae_title = o.receiver"
        " WHERE o.commitment_id = ? AND o.lane = ? AND o.receiver = ? ORDER BY o.id DESC LIMIT 1",
        (ctx.stamp(minutes=-ctx.config.commitment.answer_minutes),
         commitment_id, REQUEST_LANE, archive),
    ).fetchone()  # fmt: skip
    return (bool(found[0]), found[1]) if found else (False, "")


def pass_request_on(ctx: Context, commitment_id: int, archive: str, references: bytes = b"") -> str:
    """Queue a request for the archive; return its new Transaction UID.

    references  Referenced SOP Sequence, stored form
    Returns     "" if it is judged meanwhile, by the archive's report on an earlier one
    """
    [commitment] = fetch_rows(Commitment, "id = ?", commitment_id)
    if commitment.state != "asked":
        return ""
    uid = ctx.new_uid()  # stored before it is sent: the report may follow at once
    insert_row(Outbox, kind="commitment request", lane=REQUEST_LANE, receiver=archive,
               commitment_id=commitment_id, operation="N-ACTION", sop_instance_uid=uid,
               event_type=1, data=references, created_at=ctx.stamp())  # fmt: skip
    return uid


def written_references(references: list[Reference]) -> bytes:
    """The Referenced SOP Sequence of a forwarded request (PS3.4 Table J.3-1)."""
    items = [
        text_elements(ReferencedSOPClassUID=one.sop_class_uid,
                      ReferencedSOPInstanceUID=one.sop_instance_uid)
        for one in references
    ]  # fmt: skip
    return bytes(sequence_elements(ReferencedSOPSequence=items))


def due_request(archive: str) -> list[Event]:
    """The next request to be forwarded to an archive, as a list of at most one."""
    return [
        one._replace(
            uid=STORAGE_COMMITMENT_INSTANCE,
            data=bytes(text_elements(TransactionUID=one.uid).merged(ElementIndex(one.data))),
        )
        for one in due_events(archive, 1, REQUEST_LANE)
    ]


def follow_requests(ctx: Context, archive: str, problem: str) -> None:
    """Note the problem of requests that could not be forwarded to an archive."""
    if problem:
        database.execute_sql(
            "UPDATE commitment SET problem = ? WHERE state = 'asked' AND EXISTS (SELECT 1"
            " FROM outbox o WHERE o.commitment_id = commitment.id AND o.lane = ?"
            " AND o.receiver = ? AND o.sent_at = '')",
            (problem[:500], REQUEST_LANE, archive),
        )


def take_commitment_report(ctx: Context, uid: str, event_type: int, data: bytes) -> None:
    """Take an archive's report on a forwarded request as evidence.

    uid      our Transaction UID
    Refuses  0115 unless it was forwarded to the sender of the report; 0120, 0121
    Source   PS3.4 J.3.3
    """
    request = first_row(Outbox, "sop_instance_uid = ? AND lane = ?", uid, REQUEST_LANE)
    archive = device_of(ctx, request.receiver) if request else None
    if not archive or ctx.actor.name not in archive.ae_titles:
        problem = Problem(TRANSACTION_UID, Message("is not known"))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    index = ElementIndex(data).without([TRANSACTION_UID])
    all_good = event_type == COMMITMENT_EVENTS[True]
    check_attributes(index, COMMITMENT_RESULT, "all" if all_good else "some")
    failed = {one.get("ReferencedSOPInstanceUID"): one.get("FailureReason")
              for one in index.items(tag_of("FailedSOPSequence"))}  # fmt: skip
    title = index.get("RetrieveAETitle") or request.receiver
    good: dict[str, tuple[str, str]] = {}
    for one in index.items(REFERENCED_SOP):
        uid_, sop_class = one.get("ReferencedSOPInstanceUID"), one.get("ReferencedSOPClassUID")
        if good.get(uid_, (sop_class,))[0] != sop_class:  # it cannot have two classes
            failed[uid_] = str(int(OF_ANOTHER_CLASS, 16))
        good[uid_] = sop_class, one.get("RetrieveAETitle") or title
    good = {uid_: said for uid_, said in good.items() if uid_ not in failed}
    with database.atomic():
        if request.answer != REPORTED:  # it has the request, even if its response was lost
            sent_at = request.sent_at or ctx.stamp()
            update_row(Outbox, request.id, sent_at=sent_at, answer=REPORTED, data=b"")
            words = Message("in the archive: {good}, not: {bad}", good=len(good), bad=len(failed))
            audit(ctx, "commitment of the archive", uid, words)
            reasons = {one: _failure_reason(text) for one, text in failed.items()}
            evidence = Evidence(good, frozenset(failed), reasons=reasons)
            record_evidence(ctx, request.commitment_id, evidence)
    log.info("commitment report of %s: committed %d, failed %d", ctx.actor, len(good), len(failed))


def _failure_reason(text: str) -> str:
    """An archive's Failure Reason (0008,1197) as four hex digits; 0110 unless we use it."""
    known = f"{int(text):04X}" if text.isdigit() else ""
    return known if known in REASONS_OF_ARCHIVE else NOT_CHECKED


def commitment_counts(commitment_ids: Iterable[int]) -> dict[int, tuple[int, int, int]]:
    """The numbers of committed, failed and unjudged instances of requests, by row id."""
    counts = dict.fromkeys(commitment_ids, (0, 0, 0))
    cursor = database.execute_sql(
        "SELECT commitment_id, count(*) FILTER (WHERE verdict = '0000'),"
        " count(*) FILTER (WHERE verdict NOT IN ('', '0000')),"
        " count(*) FILTER (WHERE verdict = '') FROM commitment_instance"
        f" WHERE commitment_id IN ({', '.join(map(str, counts))}) GROUP BY commitment_id"
    )
    return counts | {row_id: (good, bad, open_) for row_id, good, bad, open_ in cursor}


class Result(NamedTuple):
    """The result of a request, as sent by DIMSE and the web.

    archive  AE title of the archive with all committed instances, "" if they are in several
    """

    all_good: bool
    data: bytes
    archive: str


def commitment_result(commitment: Any) -> Result:
    """The result of a judged request, in the form of the request (PS3.4 Table J.3-2)."""
    verdicts = fetch_rows(CommitmentInstance, "commitment_id = ? ORDER BY id", commitment.id)
    good = [one for one in verdicts if one.verdict == COMMITTED]
    bad = [one for one in verdicts if one.verdict != COMMITTED]
    sources = {one.evidence for one in good}
    data = (_by_study if commitment.by_study else _flat)(good, bad)
    archive = sources.pop() if len(sources) == 1 else ""
    return Result(bool(good) and not bad, data, archive)


def _reason(verdict: str) -> bytes:
    """Failure Reason (0008,1197); empty for a committed instance."""
    if verdict == COMMITTED:
        return b""
    return encode_element(tag_of("FailureReason"), b"US", struct.pack("<H", int(verdict, 16)))


def _flat(good: list[Any], bad: list[Any]) -> bytes:
    def item(one: Any) -> bytes:
        uids = {"ReferencedSOPClassUID": one.sop_class_uid,
                "ReferencedSOPInstanceUID": one.sop_instance_uid}  # fmt: skip
        return bytes(text_elements(**uids)) + _reason(one.verdict)

    pairs = (("FailedSOPSequence", bad), ("ReferencedSOPSequence", good))
    return b"".join(encode_items(tag_of(name), map(item, some)) for name, some in pairs if some)


def _by_study(good: list[Any], bad: list[Any]) -> bytes:
    """PS3.18 Table J.2-1: studies, series, classes, instances; failed ones with the reason."""

    def instance(one: Any) -> ElementIndex:
        uid = text_elements(ReferencedSOPInstanceUID=one.sop_instance_uid)
        return uid.merged(ElementIndex(_reason(one.verdict)))

    def level(some: list[Any], steps: tuple[tuple[str, str, str], ...]) -> list[ElementIndex]:
        if not steps:
            return [instance(one) for one in some]
        (column, keyword, sequence), *rest = steps
        groups: dict[str, list[Any]] = {}
        for one in some:
            groups.setdefault(getattr(one, column), []).append(one)
        return [
            text_elements(**{keyword: uid}).merged(
                sequence_elements(**{sequence: level(members, tuple(rest))})
            )
            for uid, members in groups.items()
        ]

    steps = (
        ("study_instance_uid", "StudyInstanceUID", "ReferencedSeriesSequence"),
        ("series_instance_uid", "SeriesInstanceUID", "ReferencedInstancesBySOPClassSequence"),
        ("sop_class_uid", "ReferencedSOPClassUID", "ReferencedInstanceSequence"),
    )
    pairs = (("ReferencedStudySequence", good), ("FailedStudySequence", bad))
    return b"".join(encode_items(tag_of(name), level(some, steps)) for name, some in pairs if some)


def commitment_by_uid(uid: str) -> Any:
    """A request by its Transaction UID. Refuses 0112."""
    commitment = first_row(Commitment, "transaction_uid = ? AND repeats = 0", uid)
    if not commitment:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such request"))
    return commitment


def due_result(requester: str) -> list[Event]:
    """The next result for a requester, as a list of at most one."""
    for one in due_events(requester, 1, RESULT_LANE):
        [commitment] = fetch_rows(Commitment, "id = ?", one.commitment_id)
        result, uid = commitment_result(commitment), commitment.transaction_uid
        told = text_elements(TransactionUID=uid, RetrieveAETitle=result.archive)
        return [
            one._replace(
                uid=STORAGE_COMMITMENT_INSTANCE,
                event_type=COMMITMENT_EVENTS[result.all_good],
                data=bytes(ElementIndex(result.data).merged(told)),
                ours=commitment.called,
            )
        ]
    return []


def follow_results(ctx: Context, requester: str, problem: str) -> None:
    """Update a requester's requests after an attempt to deliver results."""
    if problem:
        database.execute_sql(
            "UPDATE commitment SET failures = failures + 1, problem = ?"
            " WHERE state = 'judged' AND door = 'dimse' AND requester = ?",
            (problem[:500], requester),
        )
    ended = database.execute_sql(
        "UPDATE commitment SET told_at = o.sent_at,"
        " state = CASE WHEN o.sent_at <> '' THEN 'told' ELSE 'given up' END,"
        " problem = CASE WHEN o.sent_at <> '' THEN '' ELSE commitment.problem END FROM outbox o"
        " WHERE commitment.state = 'judged' AND commitment.requester = ?"
        " AND o.commitment_id = commitment.id AND o.lane = ?"
        " AND (o.sent_at <> '' OR o.given_up_at <> '') RETURNING transaction_uid, state",
        (requester, RESULT_LANE),
    ).fetchall()
    for uid in (uid for uid, state in ended if state == "given up"):
        audit(ctx, "commitment not told", uid, problem[:200])


def try_commitment_again(ctx: Context, uid: str) -> None:
    """Retry the check or the delivery of a result now. Refuses 0112; C300 if it has ended.

    A delivered result is final: its Transaction UID is used up (PS3.4 J.3.3.1.2)
    """
    commitment = commitment_by_uid(uid)
    done = commitment.state in ("told", "dropped")
    if done or (commitment.door == "web" and commitment.state != "asked"):
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
    update_row(Commitment, commitment.id, failures=0, try_at="")
    if commitment.state == "given up":  # its time starts again
        update_row(Commitment, commitment.id, state="judged", judged_at=ctx.stamp())
        database.execute_sql(
            "UPDATE outbox SET given_up_at = '', created_at = ? WHERE commitment_id = ?"
            " AND lane = ?",
            (ctx.stamp(), commitment.id, RESULT_LANE),
        )
    try_again(commitment.requester, RESULT_LANE)
    if archive := archive_of(ctx):
        try_again(archive.ae_title, REQUEST_LANE)
    audit(ctx, "commitment tried again", uid)


def drop_commitment(ctx: Context, uid: str, why: str) -> None:
    """Discard a request and its result. Refuses 0106, 0112; C300 if it has ended."""
    needs_reason(why)
    commitment = commitment_by_uid(uid)
    if commitment.state in ("told", "dropped"):
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
    update_row(Commitment, commitment.id, state="dropped", data=b"")
    for table in ("commitment_instance", "outbox"):
        erase(f"{table} WHERE commitment_id = ?", commitment.id)
    audit(ctx, "commitment dropped", uid, why.strip()[:500])


def recent_commitments(most: int = 200) -> list[tuple[Any, int, int, int]]:
    """The newest requests, each with its numbers of committed, failed and unjudged instances."""
    found = commitment_rows(f"1 = 1 ORDER BY id DESC LIMIT {most}")
    counts = commitment_counts(one.id for one in found)
    return [(one, *counts[one.id]) for one in found]


def judged_instances(commitment_id: int) -> list[Any]:
    """The instances of a request with their verdicts, failed ones first."""
    where = "commitment_id = ? ORDER BY verdict = '0000', id LIMIT 1000"
    return fetch_rows(CommitmentInstance, where, commitment_id)
