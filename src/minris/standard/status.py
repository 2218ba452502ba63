"""Statuses, their HTTP codes, and the exception that carries them (PS3.7 C, PS3.18 8.5)."""

import datetime
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pydicom import datadict

from minris.standard.tables import table


class Status(enum.IntEnum):
    """The DIMSE statuses that minris answers (PS3.7 annex C; PS3.4 K.4.1.1.4, F.7.2.2.2)."""

    SUCCESS = 0x0000
    OPTIONAL_ATTRIBUTES_NOT_SUPPORTED = 0x0001
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    DELETION_LOCK_NOT_GRANTED = 0xB301
    ALREADY_CANCELED = 0xB304
    ALREADY_COMPLETED = 0xB306
    UNABLE_TO_PROCESS = 0xC000
    MAY_NO_LONGER_BE_UPDATED = 0xC300
    TRANSACTION_UID_INCORRECT = 0xC301
    ALREADY_IN_PROGRESS = 0xC302
    SCHEDULED_ONLY_BY_CREATE = 0xC303
    FINAL_STATE_REQUIREMENTS_NOT_MET = 0xC304
    NO_SUCH_UPS = 0xC307
    RECEIVING_AE_UNKNOWN = 0xC308
    NOT_CREATED_SCHEDULED = 0xC309
    NOT_YET_IN_PROGRESS = 0xC310
    COMPLETED_ALREADY = 0xC311
    PERFORMER_CANNOT_BE_CONTACTED = 0xC312
    PERFORMER_CHOOSES_NOT_TO_CANCEL = 0xC313
    ACTION_NOT_APPROPRIATE = 0xC314
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_OPTIONAL_KEYS_UNSUPPORTED = 0xFF01


def is_failure(status: int) -> bool:
    """Tell whether a status is a failure."""
    return bool(status) and status >> 12 != 0xB and status not in (1, 0x0107, Status.CANCEL)


def read_status(text: str) -> Status:
    """The status with these four hexadecimal digits. Raises ValueError for an unknown one."""
    return Status(int(text, 16))


class _Value:
    """What stands for a value that is not to be told."""

    def __format__(self, spec: str) -> str:
        return "…"

    __str__ = __repr__ = lambda self: "…"


class Message(str):
    """A sentence in English, with its key and values, so that a catalogue can translate it.

    Message("{value} is not a date", value="19800231") reads "19800231 is not a date". An instant
    stays a datetime among the values, for a page to write it as its language does.
    """

    key: str
    values: Mapping[str, object]

    def __new__(cls, key: str, /, **values: object) -> "Message":
        plain = {
            name: f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime.datetime) else value
            for name, value in values.items()
        }
        text = super().__new__(cls, key.format_map(plain) if values else key)
        text.key, text.values = key, values
        return text

    def for_log(self) -> str:
        """The sentence without its texts, which may be a patient's; numbers stay."""
        told = {
            name: value.for_log() if isinstance(value, Message)
            else value if isinstance(value, int) else _Value()
            for name, value in self.values.items()
        }  # fmt: skip
        return self.key.format_map(told) if told else self.key


def description_of(tag: int) -> str:
    """The name of an attribute in the data dictionary."""
    try:
        return datadict.dictionary_description(tag)
    except KeyError:
        return "Unknown attribute"


class Problem(NamedTuple):
    """What is wrong with one attribute: its tag (0 if no attribute is at fault) and the words."""

    tag: int
    words: Message

    @property
    def message(self) -> Message:
        """The whole sentence: `Patient's Birth Date (0010,0030) 19800231 is not a date`."""
        if not self.tag:
            return self.words
        name = Message(description_of(self.tag))
        number = f"{self.tag >> 16:04X},{self.tag & 0xFFFF:04X}"
        return Message("{name} ({number}) {words}", name=name, number=number, words=self.words)

    def __str__(self) -> str:
        return str(self.message)


def joined(messages: Iterable[Message], between: str) -> Message:
    """Join several sentences into one that can still be translated."""
    first, *rest = messages
    for message in rest:
        first = Message("{first}" + between + "{second}", first=first, second=message)
    return first


class Refusal(Exception):
    """The only exception that core code raises: a DIMSE failure status with words for the caller.

    status      Status to answer
    detail      one sentence; the first 64 characters are sent as Error Comment (0000,0902)
    problems    attributes at fault: Attribute Identifier List (0000,1005), or words beside a field
    error_id    Error ID (0000,0903), for example A710
    afterwards  what is written although the call is refused, in its transaction
    """

    afterwards: Callable[[], object] | None = None

    def __init__(
        self,
        status: Status,
        detail: str = "",
        problems: Iterable[Problem] = (),
        error_id: int | None = None,
    ) -> None:
        self.problems = tuple(problems)
        super().__init__(detail or (self.problems[0].message if self.problems else status.name))
        self.status, self.error_id = status, error_id
        self.detail: str = self.args[0]

    @property
    def reason(self) -> str:
        """The words for the log: those about attributes without their values."""
        words = self.detail.for_log() if isinstance(self.detail, Message) else self.detail
        of_attributes = [
            f"{description_of(p.tag)} {p.words.for_log()}" for p in self.problems if p.tag
        ]
        return "; ".join(of_attributes[:3]) or words

    @property
    def tags(self) -> tuple[int, ...]:
        """The tags of the attributes at fault, each once, ascending."""
        return tuple(sorted({problem.tag for problem in self.problems if problem.tag}))


class Outcome(NamedTuple):
    """The web's answer for a status: HTTP code, and text of the Warning header."""

    http: int
    text: str


def outcome_table(source: str, text: str) -> dict[tuple[str, Status], Outcome]:
    """Read `operation | status … | HTTP | text`; refuse an unknown status or HTTP code."""
    found: dict[tuple[str, Status], Outcome] = {}
    for row in table(text, source, status=lambda cell: [*map(read_status, cell.split())], HTTP=int):
        for key in ((row.operation, status) for status in row.status):
            if key in found or not 200 <= row.HTTP <= 599:
                raise ValueError(f"{source}: {row}")
            found[key] = Outcome(row.HTTP, row.text)
    return found


OUTCOMES = outcome_table(
    "PS3.18 8.5; PS3.7 annex C",
    """
    operation    | status                        | HTTP | text
    *            | 0105                          | 400  | An attribute may not be given here.
    *            | 0106                          | 400  | An attribute has an invalid value.
    *            | 0110                          | 409  | The request could not be carried out.
    *            | 0111                          | 409  | It exists already.
    *            | 0112                          | 404  | There is no such object.
    *            | 0113                          | 400  | There is no such event type.
    *            | 0117                          | 400  | The UID is not valid.
    *            | 0118                          | 501  | The SOP class is not known here.
    *            | 0120                          | 400  | An attribute is missing.
    *            | 0121                          | 400  | An attribute has no value.
    *            | 0122                          | 501  | The SOP class is not supported.
    *            | 0124                          | 403  | Not authorized.
    *            | 0211                          | 405  | The operation is not part of this service.
    *            | 0212                          | 415  | The media type is not taken.
    *            | 0213                          | 413  | The request is larger than this system takes.
    *            | 0115                          | 400  | An argument has an invalid value.
    *            | 0123                          | 400  | There is no such action.
    *            | C300 C302 C303 C304 C310      | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *            | C301                          | 400  | The Transaction UID is incorrect.
    *            | C307                          | 404  | The Target Workitem was not found.
    *            | C308                          | 404  | The Receiving AE is not known.
    *            | C309                          | 400  | A Workitem is created SCHEDULED.
    *            | C311                          | 409  | The UPS is already COMPLETED.
    *            | C312                          | 409  | The performer cannot be contacted.
    *            | C313                          | 409  | Performer chooses not to cancel.
    *            | C314                          | 404  | The action is not appropriate for this Workitem.
    *            | A700                          | 413  | More matches than the limit.
    *            | A900                          | 400  | The query is not valid.
    *            | C000                          | 500  | The query could not be carried out.
    page         | 0105 0106 0115 0120 0121      | 422  | What was sent has an invalid value.
    update       | 0105 0106 0115 0120 0121 C300 | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C303 C310                     | 409  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C307                          | 404  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0124                          | 403  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0212                          | 415  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0213                          | 413  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C301                          | 400  | The target URI did not reference a claimed Workitem.
    change state | 0115 0120 0121 0106           | 400  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0124                          | 403  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0212                          | 415  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0213                          | 413  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | C314 C307                     | 404  | The submitted request is inconsistent with the state of the UPS Instance.
    update mpps  | 0105                          | 409  | An attribute may not be changed.
    update mpps  | 0110                          | 409  | The performed procedure step has ended.
    """,
)
# Texts of the warnings that come with a success code (PS3.18 11.4.3 to 11.10.3).
WARNINGS = {
    Status.DELETION_LOCK_NOT_GRANTED: "Deletion Lock not granted.",
    Status.ALREADY_CANCELED: "The UPS is already in the requested state of CANCELED.",
    Status.ALREADY_COMPLETED: "The UPS is already in the requested state of COMPLETED.",
}
# The meaning of a status and its remedy, for the person at the machine.
STATUS_WORDS: dict[int, tuple[Message, Message]] = {
    int(row.code, 16): (Message(row.meaning), Message(row.mend))
    for row in table("""
    code | meaning | mend
    0000 | Done | Nothing to do.
    0001 | Done; unknown attributes were left out                 | Nothing to do.
    0105 | An attribute was sent that may not be there | Look at the device's settings for this service; the log names the attribute.
    0106 | A value is wrong | Correct the value that is named, here or at the device.
    0107 | Done; some of what was requested is missing   | Nothing to do.
    0110 | It could not be done | Read the sentence beside it; see System and the log.
    0111 | It already exists   | Nothing to do if it was sent twice; otherwise give it another number.
    0112 | It does not exist | It may have been erased, or the device speaks to another system.
    0113 | This kind of event is not known | The device sends more than the service has: update it, or ignore it.
    0115 | An argument is wrong | Correct what is named on the device.
    0117 | A UID is wrong | This is a fault of the device's software: inform its maker.
    0118 | This service is not known there | Switch it off at the device, or there.
    0119 | Class and instance do not belong together | This is a fault of the device's software: inform its maker.
    0120 | An attribute is missing | Enter it on the device or in the order.
    0121 | A value is missing | Enter it on the device or in the order.
    0122 | This service is not offered there | Switch it off at the device, or there.
    0123 | This action is not known | Update the device, or ignore it.
    0124 | It is not allowed | Register the device, or give it the right.
    0131 | The same request came before | Nothing to do: the first one counts.
    0211 | This message is not known there | Switch it off at the device, or there.
    0212 | A message is malformed | This is a fault of the device's software: inform its maker.
    0213 | No room for it now          | Try again later; see System for disk and memory.
    A700 | More answers than are sent at once | Ask for fewer: a day, a station, a name.
    A710 | It has ended and cannot be changed | Nothing to do: the first end counts.
    A900 | The question does not fit the service | Set the device's query to the worklist; the log names the key.
    B301 | The deletion lock was not granted | Nothing to do: the subscription has no lock.
    B304 | It was cancelled before | Nothing to do.
    B306 | It was completed before | Nothing to do.
    C000 | It could not be done | Read the sentence beside it; see System and the log.
    C300 | It has ended and cannot be changed | Nothing to do: the first end counts.
    C301 | Somebody else has claimed it | Choose another workitem, or ask who has it.
    C302 | It is in progress already | Choose another workitem, or ask who has it.
    C303 | It cannot be scheduled a second time | Create a new workitem.
    C304 | What was performed is not reported completely | Enter what is missing on the workstation.
    C307 | There is no such workitem | It has ended and was erased: reload the list.
    C308 | The receiver is not known | Register it as a device with its address.
    C309 | A workitem begins as scheduled | This is a fault of the workstation's software: inform its maker.
    C310 | It is not in progress | Claim it first.
    C311 | It is completed and cannot be cancelled | Nothing to do.
    C312 | The performer cannot be reached | Call the person who has it.
    C313 | The performer does not want to cancel | Ask the person who has it.
    C314 | This cannot be done with it | Do this for one workitem, not for all.
    FE00 | The device stopped its question | Nothing to do.
    """)
}


def outcome(operation: str, status: Status) -> Outcome:
    """The row of the operation, else the row of `*`."""
    return OUTCOMES.get((operation, status)) or OUTCOMES["*", status]


class HttpRefusal(Refusal):
    """A refusal with an HTTP code of its own, for which DIMSE has no status."""

    own_words = False  # whether the Warning header has its detail, not the text of OUTCOMES

    def __init__(
        self, http: int, detail: str, status: Status = Status.INVALID_ARGUMENT_VALUE
    ) -> None:
        super().__init__(status, detail)
        self.http = http


def warning_text(operation: str, refusal: Refusal) -> str:
    """The text of the Warning header of a refusal (PS3.18 11.4.3 and others)."""
    if isinstance(refusal, HttpRefusal) and refusal.own_words:
        return refusal.detail
    return outcome(operation, refusal.status).text


def http_status(operation: str, refusal: Refusal) -> int:
    """The HTTP code of a refusal."""
    if isinstance(refusal, HttpRefusal):
        return refusal.http
    return outcome(operation, refusal.status).http
