"""A simulated system that creates, performs and watches workitems."""

import contextlib
import datetime
import queue
import secrets
import time
from collections.abc import Iterator
from typing import Any

from minris.dataset.checks import with_empty
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.items import cancellation_reason, code_item, workitem_code
from minris.simulator.peer import Peer, SimulationError, code_of, dataset_of
from minris.standard.uids import (
    UPS_EVENT,
    UPS_FILTERED_SUBSCRIPTION,
    UPS_PULL,
    UPS_PUSH,
    UPS_WATCH,
    new_uid,
)
from minris.standard.ups import EVENT_TYPES, LOCAL_SCHEME, UPS_ATTRIBUTES


class Workstation(Peer):
    """A simulated system that creates, performs and watches workitems.

    listen  its port for events; the server must know it
    label   Worklist Label of the workitems it creates and queries
    """

    CLASSES: tuple[str, ...] = (UPS_PUSH, UPS_PULL, UPS_WATCH)
    PATIENCE = 20.0

    def __init__(self, ae_title: str, *address: Any, listen: int = 0) -> None:
        super().__init__(ae_title, *address)
        self.listen, self.label = listen, f"SIM {secrets.token_hex(4)}"
        self.events: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.made: dict[str, str] = {}

    # Requests

    def create(self, words: str, code: str, source: str = "", station: str = "") -> str:
        """Create a workitem (N-CREATE); return its UID.

        source   UID of the workitem whose outputs are its inputs
        station  the station that is to perform it
        """
        now = datetime.datetime.now().astimezone()
        codes = sequence_elements(ScheduledWorkitemCodeSequence=[workitem_code(code)])
        texts = text_elements(
            ProcedureStepState="SCHEDULED",
            ProcedureStepLabel=words,
            WorklistLabel=self.label,
            ScheduledProcedureStepPriority="MEDIUM",
            InputReadinessState="READY",
            ScheduledProcedureStepStartDateTime=f"{now:%Y%m%d%H%M%S%z}",
            CommentsOnTheScheduledProcedureStep=f"made of {source}" if source else "",
        )
        ds = dataset_of(with_empty(texts.merged(codes), UPS_ATTRIBUTES, "create"))
        if station:
            code_ds = dataset_of(ElementIndex(code_item(station, station, LOCAL_SCHEME)))
            ds.ScheduledStationNameCodeSequence = [code_ds]
        uid = new_uid()
        with self.association() as association:
            status, _ = association.send_n_create(ds, UPS_PUSH, uid)
        self._said(f"N-CREATE          {words}", status)
        self.made[uid] = words
        return uid

    def find(self, state: str = "SCHEDULED") -> list[str]:
        """Return the UIDs of the workitems of its label in a state (C-FIND)."""
        from pydicom.dataset import Dataset

        query = Dataset()
        query.SOPInstanceUID = query.ProcedureStepLabel = ""
        query.ProcedureStepState, query.WorklistLabel = state, self.label
        with self.association() as association:
            answers = list(association.send_c_find(query, UPS_PULL))
        found = [ds for _, ds in answers if ds]
        words = ", ".join(ds.ProcedureStepLabel for ds in found) or "nothing"
        self._said(f"C-FIND            {state}: {words}", answers[-1][0])
        return [ds.SOPInstanceUID for ds in found]

    def get(self, uid: str) -> Any:
        """Return the data set of a workitem (N-GET)."""
        with self.association() as association:
            status, ds = association.send_n_get([], UPS_PUSH, uid, meta_uid=UPS_WATCH)
        self._said(f"N-GET             {ds.ProcedureStepState if ds else ''}", status)
        return ds

    def claim(self, uid: str) -> str:
        """Claim a workitem (N-ACTION to IN PROGRESS); return the Transaction UID."""
        lock = new_uid()
        self.change_state(uid, "IN PROGRESS", lock)
        return lock

    def change_state(self, uid: str, state: str, lock: str) -> None:
        """Change the state of a workitem (N-ACTION of type 1)."""
        action = text_elements(ProcedureStepState=state, TransactionUID=lock)
        self._act(f"change state      {state}", 1, uid, action, UPS_PULL)

    def progress(self, uid: str, lock: str, percent: int, words: str) -> None:
        """Report the progress of a workitem (N-SET)."""
        item = text_elements(
            ProcedureStepProgress=str(percent), ProcedureStepProgressDescription=words
        )
        sequence = sequence_elements(ProcedureStepProgressInformationSequence=[item])
        self._set(uid, lock, sequence, f"{percent} %, {words}")

    def complete(self, uid: str, lock: str, code: str) -> None:
        """Report what was performed (N-SET), and complete the workitem (N-ACTION)."""
        now = f"{datetime.datetime.now().astimezone():%Y%m%d%H%M%S%z}"
        times = text_elements(
            PerformedProcedureStepStartDateTime=now, PerformedProcedureStepEndDateTime=now
        )
        station = code_item(self.ae_title, self.ae_title, LOCAL_SCHEME)
        sequences = sequence_elements(
            PerformedWorkitemCodeSequence=[workitem_code(code)],
            PerformedStationNameCodeSequence=[station],
            OutputInformationSequence=[],
        )
        items = [times.merged(sequences)]
        performed = sequence_elements(UnifiedProcedureStepPerformedProcedureSequence=items)
        self._set(uid, lock, performed, "what was performed")
        self.change_state(uid, "COMPLETED", lock)

    def request_cancel(self, uid: str, words: str) -> None:
        """Request cancellation with a reason and a contact (N-ACTION of type 2)."""
        contact = text_elements(ContactDisplayName=self.ae_title, ContactURI="tel:+1-555-0100")
        asked = cancellation_reason(words, "110513").merged(contact)
        self._act(f"request cancel    {words}", 2, uid, asked, UPS_WATCH)

    def subscribe(self, uid: str, lock: bool = False, only_own: bool = False) -> None:
        """Subscribe (N-ACTION of type 3); `only_own` filters by its label."""
        action = text_elements(
            ReceivingAE=self.ae_title,
            DeletionLock="TRUE" if lock else "FALSE",
            WorklistLabel=self.label if only_own else "",
        )
        what = "with deletion lock" if lock else "without deletion lock"
        self._act(f"subscribe         {what}", 3, uid, action, UPS_WATCH)

    def end_subscriptions(self) -> None:
        """End all subscriptions and deletion locks (N-ACTION of types 5 and 4)."""
        action = text_elements(ReceivingAE=self.ae_title)
        self._act("suspend", 5, UPS_FILTERED_SUBSCRIPTION, action, UPS_WATCH)
        for uid in self.made:
            self._act("unsubscribe", 4, uid, action, UPS_WATCH)

    def _set(self, uid: str, lock: str, index: ElementIndex, words: str) -> None:
        ds = dataset_of(text_elements(TransactionUID=lock).merged(index))
        with self.association() as association:
            status, _ = association.send_n_set(ds, UPS_PUSH, uid, meta_uid=UPS_PULL)
        self._said(f"N-SET             {words}", status)

    def _act(
        self, words: str, kind: int, uid: str, information: ElementIndex, sop_class: str
    ) -> None:
        ds = dataset_of(information)
        with self.association() as association:
            status, _ = association.send_n_action(ds, kind, UPS_PUSH, uid, meta_uid=sop_class)
        self._said(f"N-ACTION          {words}", status)

    def _said(self, words: str, status: Any) -> None:
        unknown = code_of(status) == "C308"
        hint = f"; register it with an address and port {self.listen}" if unknown else ""
        line = f"{self.ae_title:<12} -> {self.called:<12} {words}"
        self.answered(line, words.partition("  ")[0], status, hint)

    # Events

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for events; does nothing without a port."""
        if not self.listen:
            yield
            return
        from pynetdicom import AE, evt

        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(UPS_EVENT, scu_role=True, scp_role=True)
        with self.served(ae, self.listen, (evt.EVT_N_EVENT_REPORT, self._hear)):
            yield

    def _hear(self, event: Any) -> tuple[int, None]:
        request = event.request
        uid = str(request.AffectedSOPInstanceUID)
        self.events.put((uid, request.EventTypeID, event.event_information))
        return 0x0000, None

    def hear(self, uid: str, words: str) -> None:
        """Wait for an event of a workitem whose text contains `words`; print all events."""
        if not self.listen:
            return
        until = time.monotonic() + self.PATIENCE
        names = {number: name for name, number in EVENT_TYPES.items()}
        while True:
            try:
                left = max(0.0, until - time.monotonic())
                found, kind, ds = self.events.get(timeout=left)
            except queue.Empty:
                raise SimulationError(f"{self.ae_title} received no event {words}") from None
            if found not in self.made:
                continue
            told = f"{names[kind]}: {_event_words(ds)}"
            who = f"{self.called:<12} -> {self.ae_title:<12}"
            self.say(f"{who} N-EVENT-REPORT    {told}  ({self.made[found]})")
            if found == uid and words in told:
                return


def _event_words(ds: Any) -> str:
    """Return the content of an event in one line."""
    if "ProcedureStepProgressInformationSequence" in ds:
        item = ds.ProcedureStepProgressInformationSequence[0]
        words = item.get("ProcedureStepProgressDescription", "")
        return f"{item.get('ProcedureStepProgress', '')} %, {words}"
    texts = ("RequestingAE", "ProcedureStepState", "InputReadinessState", "ReasonForCancellation",
             "ContactDisplayName", "ContactURI")  # fmt: skip
    codes = ("ScheduledStationNameCodeSequence", "ProcedureStepDiscontinuationReasonCodeSequence")
    said = [str(ds.get(keyword, "")) for keyword in texts]
    said += [item.CodeMeaning for keyword in codes for item in ds.get(keyword, [])]
    return ", ".join(filter(None, said))
