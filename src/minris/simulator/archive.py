"""A simulated archive."""

import collections
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minris.dataset.items import availability_data
from minris.simulator.peer import (
    Peer,
    SimulationError,
    code_of,
    dataset_of,
    filled,
)
from minris.standard.commitment import COMMITMENT_EVENTS, NOT_THERE, OF_ANOTHER_CLASS
from minris.standard.uids import (
    INSTANCE_AVAILABILITY,
    MPPS,
    MPPS_NOTIFICATION,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    STUDY_ROOT_FIND,
    VERIFICATION,
    new_uid,
)


class SimulatedArchive(Peer):
    """A simulated archive, which keeps only the UIDs of images.

    Provider of C-STORE, C-FIND (Study Root), storage commitment, MPPS, MPPS Notification and
    Instance Availability Notification; it notifies the server of what it has stored
    """

    CLASSES: tuple[str, ...] = (VERIFICATION, INSTANCE_AVAILABILITY)
    LEVELS = (("STUDY", "StudyInstanceUID"), ("SERIES", "SeriesInstanceUID"),
              ("IMAGE", "SOPInstanceUID"))  # fmt: skip

    def __init__(self, ae_title: str, *address: Any, listen: int = 0) -> None:
        super().__init__(ae_title, *address)
        self.listen = listen
        self.images: dict[str, tuple[str, str, str]] = {}  # study, series and class by UID
        self.new: dict[Any, list[str]] = collections.defaultdict(list)  # by association
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen. SimulationError without a port, or if the port is taken."""
        from pynetdicom import AE, AllStoragePresentationContexts, evt

        if not self.listen:
            raise SimulationError("an archive needs a port: use --listen PORT")
        ae = AE(ae_title=self.ae_title)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax))
        for uid in (VERIFICATION, STUDY_ROOT_FIND, MPPS, INSTANCE_AVAILABILITY):
            ae.add_supported_context(uid)
        for uid in (STORAGE_COMMITMENT, MPPS_NOTIFICATION):
            ae.add_supported_context(uid, scu_role=True, scp_role=True)
        handlers = (
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_N_CREATE, self._take),
            (evt.EVT_N_SET, self._take),
            (evt.EVT_N_EVENT_REPORT, self._take),
            (evt.EVT_RELEASED, self._released),
        )
        with self.served(ae, self.listen, *handlers):
            yield

    def _store(self, event: Any) -> int:
        ds = event.dataset
        with self.lock:
            place = ds.StudyInstanceUID, ds.SeriesInstanceUID
            self.images[ds.SOPInstanceUID] = (*place, ds.SOPClassUID)
            self.new[event.assoc].append(ds.SOPInstanceUID)
        return 0x0000

    def _released(self, event: Any) -> None:
        """Notify the server of the stored images, in a thread of its own."""
        with self.lock:
            uids = self.new.pop(event.assoc, [])
        if uids:
            who = event.assoc.requestor.ae_title
            self.say(f"{who} -> {self.ae_title}  C-STORE {len(uids)} images: 0000")
            threading.Thread(target=self._guarded, args=(self.notify, uids), daemon=True).start()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step, and print the error if it fails."""
        try:
            step(*arguments)
        except SimulationError as error:
            self.say(str(error))

    def notify(self, uids: Iterable[str]) -> None:
        """Send an Instance Availability Notification (N-CREATE) for each study."""
        found = [(uid, *self.images[uid]) for uid in uids]
        rows_ = [(uid, self.ae_title, of_class, study, series, "ONLINE")
                 for uid, study, series, of_class in sorted(found, key=lambda row: row[1:3])]  # fmt: skip
        for study, of_study in itertools.groupby(rows_, key=lambda row: row[3]):
            ds = dataset_of(availability_data(study, list(of_study), []))
            with self.association() as association:
                status, _ = association.send_n_create(ds, INSTANCE_AVAILABILITY, new_uid())
            self.say(f"{self.ae_title} -> {self.called}  N-CREATE availability: {code_of(status)}")

    def _find(self, event: Any) -> Iterator[tuple[int, Any]]:
        from pydicom.dataset import Dataset

        query = event.identifier
        depth = [level for level, _ in self.LEVELS].index(query.QueryRetrieveLevel) + 1
        with self.lock:
            images = [(study, series, uid, of_class)
                      for uid, (study, series, of_class) in self.images.items()]  # fmt: skip
        found: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for *place, of_class in images:
            keys = [query.get(keyword, "") or "" for _, keyword in self.LEVELS]
            wanted = [[key] if isinstance(key, str) else list(key) for key in keys]
            if all(not any(some) or uid in some for uid, some in zip(place, wanted, strict=True)):
                found[tuple(place[:depth])].append(of_class)
        for names, classes in found.items():
            answer = Dataset()
            answer.QueryRetrieveLevel = query.QueryRetrieveLevel
            answer.RetrieveAETitle = self.ae_title
            for uid, (_, keyword) in zip(names, self.LEVELS, strict=False):
                setattr(answer, keyword, uid)
            if depth == len(self.LEVELS):
                answer.SOPClassUID = classes[0]
            else:
                answer.NumberOfStudyRelatedInstances = len(classes)
            yield 0xFF00, answer
        self.say(f"{event.assoc.requestor.ae_title} -> {self.ae_title}  C-FIND: {len(found)} found")

    def _commit(self, event: Any) -> tuple[int, None]:
        ds, who = event.action_information, event.assoc.requestor.ae_title
        self.say(f"{who} -> {self.ae_title}  N-ACTION commitment: 0000")
        threading.Thread(target=self._guarded, args=(self.report, ds, who), daemon=True).start()
        return 0x0000, None

    def report(self, asked: Any, who: str) -> None:
        """Send the commitment result (N-EVENT-REPORT) on a new association."""
        from pydicom.dataset import Dataset
        from pynetdicom import AE, build_role

        ds = Dataset()
        ds.TransactionUID, ds.RetrieveAETitle = asked.TransactionUID, self.ae_title
        good, bad = [], []
        for one in asked.ReferencedSOPSequence:
            item = filled("ReferencedSOPClassUID ReferencedSOPInstanceUID", one)
            _, _, of_class = self.images.get(one.ReferencedSOPInstanceUID, ("", "", ""))
            if of_class == one.ReferencedSOPClassUID:
                good.append(item)
            else:
                item.FailureReason = int(OF_ANOTHER_CLASS if of_class else NOT_THERE, 16)
                bad.append(item)
        for keyword, items in (("ReferencedSOPSequence", good), ("FailedSOPSequence", bad)):
            if items:
                setattr(ds, keyword, items)
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        association = self.call(ae, who, ext_neg=[role])
        if not association.is_established:
            raise SimulationError(f"cannot reach {who} to send the commitment result")
        kind = COMMITMENT_EVENTS[not bad]
        instance = STORAGE_COMMITMENT_INSTANCE
        status, _ = association.send_n_event_report(ds, kind, STORAGE_COMMITMENT, instance)
        association.release()
        words = f"N-EVENT-REPORT {kind}, {len(good)} committed, {len(bad)} not: {code_of(status)}"
        self.say(f"{self.ae_title} -> {who}  {words}")

    def _take(self, event: Any) -> tuple[int, Any]:
        """Print a forwarded message, and answer with success."""
        from pydicom.dataset import Dataset

        request = event.request
        name = type(request).__name__.replace("_", "-")
        kind = getattr(request, "EventTypeID", None)
        words = f"{name} {kind}" if kind else name
        self.say(f"{event.assoc.requestor.ae_title} -> {self.ae_title}  {words}: 0000")
        return 0x0000, None if kind else Dataset()
