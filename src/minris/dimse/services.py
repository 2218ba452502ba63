"""Services: SOP class and operation, with the core function they call (PS3.7 9, 10)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.dataset.elements import EMPTY, ElementIndex
from minris.images.availability import notify_availability
from minris.images.commitment import request_commitment, take_commitment_report
from minris.mpps.performed import create_mpps, get_mpps, set_mpps
from minris.orders.worklist import find_worklist
from minris.standard.commitment import COMMITMENT_ACTIONS, COMMITMENT_EVENTS
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.uids import (
    INSTANCE_AVAILABILITY,
    MODALITY_WORKLIST,
    MPPS,
    MPPS_RETRIEVE,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    UPS_CLASSES,
    UPS_EVENT,
    UPS_PULL,
    UPS_PUSH,
    UPS_QUERY,
    UPS_WATCH,
    VERIFICATION,
)
from minris.standard.ups import TRANSACTION_UID, UPS_ACTIONS, UPS_ATTRIBUTES, UPS_STATE
from minris.standard.worklist import MWL_ATTRIBUTES
from minris.store.writer import Core
from minris.upper_layer.messages import Request
from minris.ups.search import find_workitems
from minris.ups.subscriptions import subscribe, suspend_global_subscription, unsubscribe
from minris.ups.workitems import (
    change_state,
    create_workitem,
    get_workitem,
    request_cancel,
    update_workitem,
)


class Service(NamedTuple):
    """An operation of a SOP class: which core function it calls, and how.

    access  `none`, `find` (a generator of answers), `read` or `write` (in the store thread)
    clause  where the operation is defined
    read    turns a request into the arguments of the core function after ctx
    answer  response fields that its result fills, in order; `data` is the data set
    """

    sop_class: str
    operation: str
    core: Core | None
    access: str
    clause: str
    read: Callable[[Request], tuple[Any, ...]] = lambda request: ()
    answer: tuple[str, ...] = ("Status",)


def _data(request: Request) -> tuple[str, bytes]:
    return request.uid, bytes(request.index)


def _data_and_raw(request: Request) -> tuple[str, bytes, bytes | None]:
    return request.uid, bytes(request.index), request.raw


def _wanted(request: Request) -> tuple[str, list[int]]:
    return request.uid, request.command.get("AttributeIdentifierList", [])


def _numbered(request: Request) -> tuple[str, int, ElementIndex]:
    """UID, type and information of an action or event."""
    return request.uid, request.number, request.index if request.data else EMPTY


def ups_action(ctx: Context, uid: str, kind: int, index: ElementIndex) -> Status:
    """Do an N-ACTION on a workitem. Refuses 0120, 0121, 0115, and as the core function."""
    name = UPS_ACTIONS[kind][0]
    if name == "change state":
        state = index.text(UPS_STATE) if UPS_STATE in index else None
        return change_state(ctx, uid, state, index.text(TRANSACTION_UID))
    if name == "request cancel":
        return request_cancel(ctx, uid, bytes(index))
    receiver = _required(index, "ReceivingAE")
    if name in ("suspend", "unsubscribe"):
        end = suspend_global_subscription if name == "suspend" else unsubscribe
        end(ctx, uid, receiver)
        return Status.SUCCESS
    lock = _required(index, "DeletionLock")
    if lock not in ("TRUE", "FALSE"):
        words = Message("{value} is neither TRUE nor FALSE", value=lock[:64])
        problem = Problem(tag_of("DeletionLock"), words)
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    keys = index.without(map(tag_of, ("ReceivingAE", "DeletionLock", "SpecificCharacterSet")))
    return subscribe(ctx, uid, receiver, lock == "TRUE", bytes(keys))


def _check_commitment_instance(uid: str) -> None:
    if uid != STORAGE_COMMITMENT_INSTANCE:
        words = Message("{uid} is not known", uid=uid)
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)


def commitment_action(ctx: Context, uid: str, kind: int, index: ElementIndex) -> None:
    """Take an N-ACTION of storage commitment. Refuses 0112 for another instance; 0120, 0121."""
    _check_commitment_instance(uid)
    request_commitment(ctx, _required(index, "TransactionUID"), bytes(index))


def commitment_report(ctx: Context, uid: str, kind: int, index: ElementIndex) -> None:
    """Take a commitment result. Refuses 0112 for another instance, 0113, 0120, 0121; 0115."""
    _check_commitment_instance(uid)
    if kind not in COMMITMENT_EVENTS.values():
        raise Refusal(Status.NO_SUCH_EVENT_TYPE, f"There is no event type {kind}")
    take_commitment_report(ctx, _required(index, "TransactionUID"), kind, bytes(index))


def _required(index: ElementIndex, keyword: str) -> str:
    """Return the value of a required argument. Refuses 0120, 0121 (PS3.4 5.4.2.1)."""
    tag = tag_of(keyword)
    if tag not in index:
        raise Refusal(Status.MISSING_ATTRIBUTE, problems=[Problem(tag, Message("is missing"))])
    if not index.text(tag):
        problem = Problem(tag, Message("has no value"))
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=[problem])
    return index.text(tag)


_MADE, _FOUND = ("AffectedSOPInstanceUID", "Status"), ("Status", "data")
SERVICES = (
    Service(VERIFICATION, "C-ECHO", None, "none", "PS3.4 A"),
    Service(MODALITY_WORKLIST, "C-FIND", find_worklist, "find", "PS3.4 K.4.1"),
    Service(MPPS, "N-CREATE", create_mpps, "write", "PS3.4 F.7.2.1", _data_and_raw, _MADE),
    Service(MPPS, "N-SET", set_mpps, "write", "PS3.4 F.7.2.2", _data_and_raw),
    Service(MPPS_RETRIEVE, "N-GET", get_mpps, "read", "PS3.4 F.8.2.1", _wanted, _FOUND),
    Service(UPS_PUSH, "N-CREATE", create_workitem, "write", "PS3.4 CC.2.5", _data, _MADE),
    Service(UPS_PUSH, "N-ACTION", ups_action, "write", "PS3.4 CC.2.2", _numbered),
    Service(UPS_PUSH, "N-GET", get_workitem, "read", "PS3.4 CC.2.7", _wanted, _FOUND),
    Service(UPS_PULL, "C-FIND", find_workitems, "find", "PS3.4 CC.2.8"),
    Service(UPS_PULL, "N-GET", get_workitem, "read", "PS3.4 CC.2.7", _wanted, _FOUND),
    Service(UPS_PULL, "N-SET", update_workitem, "write", "PS3.4 CC.2.6", _data),
    Service(UPS_PULL, "N-ACTION", ups_action, "write", "PS3.4 CC.2.1", _numbered),
    Service(UPS_WATCH, "C-FIND", find_workitems, "find", "PS3.4 CC.2.8"),
    Service(UPS_WATCH, "N-GET", get_workitem, "read", "PS3.4 CC.2.7", _wanted, _FOUND),
    Service(UPS_WATCH, "N-ACTION", ups_action, "write", "PS3.4 CC.2.2, CC.2.3", _numbered),
    Service(UPS_QUERY, "C-FIND", find_workitems, "find", "PS3.4 CC.2.8"),
    Service(STORAGE_COMMITMENT, "N-ACTION", commitment_action, "write", "PS3.4 J.3.2", _numbered),
    Service(STORAGE_COMMITMENT, "N-EVENT-REPORT", commitment_report, "write", "PS3.4 J.3.3",
            _numbered),
    Service(INSTANCE_AVAILABILITY, "N-CREATE", notify_availability, "write", "PS3.4 R.3.2",
            _data, _MADE),
)  # fmt: skip
ACTIONS = {ups_action: UPS_ACTIONS, commitment_action: COMMITMENT_ACTIONS}
SEARCHED = {find_worklist: MWL_ATTRIBUTES, find_workitems: UPS_ATTRIBUTES}
# Changes of these have subscribers or consequences.
WATCHED_CLASSES = UPS_CLASSES | {MPPS, STORAGE_COMMITMENT, INSTANCE_AVAILABILITY}
# Abstract syntaxes with the (SCU, SCP) roles we accept if proposed; None: the default.
PRESENTATION_CONTEXTS: dict[str, tuple[bool, bool] | None] = {
    VERIFICATION: None, MODALITY_WORKLIST: None, MPPS: (True, False), MPPS_RETRIEVE: (True, False),
    UPS_PUSH: (True, False), UPS_WATCH: (True, False), UPS_PULL: (True, False),
    UPS_EVENT: (True, False), UPS_QUERY: (True, False), STORAGE_COMMITMENT: (True, True),
    INSTANCE_AVAILABILITY: (True, False),
}  # fmt: skip
# PS3.4 K.5.1: reserved, reserved, fuzzy matching, timezone adjustment
EXTENDED_NEGOTIATION = {
    MODALITY_WORKLIST: b"\1\1\0\0", UPS_PULL: b"\1\1\0\0", UPS_WATCH: b"\1\1\0\0",
    UPS_QUERY: b"\1\1\0\0",
}  # fmt: skip
