"""A simulated modality: worklist, performed steps, images."""

import collections
import datetime
import queue
import time
from typing import Any

from minris.dataset.names import shown_name
from minris.simulator.peer import Peer, SimulationError, filled
from minris.standard.commitment import FAILURE_REASONS
from minris.standard.mpps import DISCONTINUATION_REASONS
from minris.standard.status import Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_WORKLIST,
    MPPS,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    new_uid,
)

# Query keys, and the attributes that stay empty in an N-CREATE.
PATIENT = "PatientName PatientID PatientBirthDate PatientSex"
QUERY = f"""{PATIENT} AccessionNumber RequestedProcedureID RequestedProcedureDescription
    StudyInstanceUID"""
QUERY_STEP = """ScheduledProcedureStepStartTime ScheduledProcedureStepID
    ScheduledProcedureStepDescription"""
EMPTY_MPPS_TEXTS = """PerformedStationName PerformedLocation PerformedProcedureTypeDescription
    PerformedProcedureStepEndDate PerformedProcedureStepEndTime StudyID"""
EMPTY_MPPS_SEQUENCES = """ReferencedPatientSequence ProcedureCodeSequence PerformedSeriesSequence
    PerformedProtocolCodeSequence PerformedProcedureStepDiscontinuationReasonCodeSequence"""
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


class Modality(Peer):
    """A simulated modality: it queries the worklist and reports performed steps.

    patient_id  the only patient whom a scenario may examine
    """

    CLASSES: tuple[str, ...] = (VERIFICATION, MODALITY_WORKLIST, MPPS)

    def __init__(self, ae_title: str, modality: str, *address: Any) -> None:
        super().__init__(ae_title, *address)
        self.modality, self.patient_id = modality, ""

    def echo(self) -> None:
        """C-ECHO."""
        with self.association() as association:
            status = association.send_c_echo()
        self.say(f"{self.ae_title} -> {self.called}  C-ECHO: {status.Status:04X}")

    def worklist(self, date: str = "") -> list[Any]:
        """Return the steps scheduled for this modality on a day (DA), or on any day.

        Those of its one patient, if it has one
        """
        query, step = filled(QUERY), filled(QUERY_STEP)
        query.SpecificCharacterSet, query.PatientID = "ISO_IR 192", self.patient_id
        step.ScheduledStationAETitle, step.Modality = self.ae_title, self.modality
        step.ScheduledProcedureStepStartDate = date
        query.ScheduledProcedureStepSequence = [step]
        found = []
        with self.association() as association:
            for status, identifier in association.send_c_find(query, MODALITY_WORKLIST):
                if not status or status.Status not in (0x0000, 0xFF00, 0xFF01):
                    raise SimulationError(f"C-FIND: {status}")
                if identifier and self.patient_id in ("", identifier.PatientID):
                    found.append(identifier)
        names = ", ".join(shown_name(str(ds.PatientName)) for ds in found) or "nobody"
        self.say(f"{self.ae_title} -> {self.called}  C-FIND worklist: {names}")
        return found

    def start(self, item: Any, uid: str) -> None:
        """Start a performed procedure step for a worklist item (N-CREATE)."""
        now, step = datetime.datetime.now(self.zone), item.ScheduledProcedureStepSequence[0]
        scheduled = filled("ScheduledProcedureStepID ScheduledProcedureStepDescription", step)
        scheduled.update(filled("StudyInstanceUID AccessionNumber RequestedProcedureID", item))
        scheduled.update(filled("RequestedProcedureDescription", item))
        scheduled.ScheduledProtocolCodeSequence, scheduled.ReferencedStudySequence = [], []
        ds = filled(EMPTY_MPPS_TEXTS)
        ds.update(filled(PATIENT, item))
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ScheduledStepAttributesSequence = [scheduled]
        ds.PerformedProcedureStepID = f"P{now:%H%M%S}"
        ds.PerformedStationAETitle, ds.Modality = self.ae_title, self.modality
        ds.PerformedProcedureStepStartDate = f"{now:%Y%m%d}"
        ds.PerformedProcedureStepStartTime = f"{now:%H%M%S}"
        ds.PerformedProcedureStepStatus = "IN PROGRESS"
        ds.PerformedProcedureStepDescription = scheduled.ScheduledProcedureStepDescription
        for keyword in EMPTY_MPPS_SEQUENCES.split():
            setattr(ds, keyword, [])
        with self.association() as association:
            status, _ = association.send_n_create(ds, MPPS, uid)
        self._report("N-CREATE", f"IN PROGRESS, {shown_name(str(item.PatientName))}", status)

    def end(self, item: Any, uid: str, images: int = 4, reason: str = "") -> Any:
        """Complete a performed step, or discontinue it with a reason (N-SET); return its series.

        reason  DCM code of the discontinuation; empty: completed
        """
        from pydicom.dataset import Dataset

        now, ds, series = datetime.datetime.now(self.zone), Dataset(), Dataset()
        ds.PerformedProcedureStepStatus = "DISCONTINUED" if reason else "COMPLETED"
        ds.PerformedProcedureStepEndDate = f"{now:%Y%m%d}"
        ds.PerformedProcedureStepEndTime = f"{now:%H%M%S}"
        series.PerformingPhysicianName = series.OperatorsName = ""
        series.ProtocolName, series.SeriesInstanceUID = "Standard", new_uid()
        series.SeriesDescription = series.RetrieveAETitle = ""
        series.ReferencedImageSequence = [self._image() for _ in range(0 if reason else images)]
        series.ReferencedNonImageCompositeSOPInstanceSequence = []
        ds.PerformedSeriesSequence = [series]
        if reason:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator = reason, "DCM"
            code.CodeMeaning = DISCONTINUATION_REASONS[reason]
            ds.PerformedProcedureStepDiscontinuationReasonCodeSequence = [code]
        with self.association() as association:
            status, _ = association.send_n_set(ds, MPPS, uid)
        words = f" ({DISCONTINUATION_REASONS[reason]})" if reason else ""
        words = f"{ds.PerformedProcedureStepStatus}{words}, {shown_name(str(item.PatientName))}"
        self._report("N-SET", words, status)
        return series

    @staticmethod
    def _image() -> Any:
        from pydicom.dataset import Dataset

        image = Dataset()
        image.ReferencedSOPClassUID = CT_IMAGE_STORAGE
        image.ReferencedSOPInstanceUID = new_uid()
        return image

    def _report(self, operation: str, words: str, status: Any) -> None:
        """Print the answer. SimulationError unless it is success."""
        self.answered(f"{self.ae_title} -> {self.called}  {operation} {words}", operation, status)


class Scanner(Modality):
    """A simulated modality that stores its images in an archive and requests commitment.

    listen   its port for the result; the server must know it
    archive  AE title, host and port of the archive; None: images are not stored
    """

    CLASSES = (*Modality.CLASSES, STORAGE_COMMITMENT)
    PATIENCE = 900.0  # the server retries for [commitment] missing_minutes

    def __init__(
        self,
        ae_title: str,
        modality: str,
        *address: Any,
        listen: int = 0,
        archive: tuple[str, str, int] | None = None,
    ) -> None:
        super().__init__(ae_title, modality, *address)
        self.listen, self.archive, self.archive_tls = listen, archive, None
        self.results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def store(self, item: Any, series: Any) -> None:
        """Store the images of a series, one grey pixel each (C-STORE)."""
        from pynetdicom import AE

        if not self.archive:
            return
        title, host, port = self.archive
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN)
        tls = (self.archive_tls, None) if self.archive_tls else None
        association = ae.associate(host, port, ae_title=title, tls_args=tls)
        if not association.is_established:
            raise SimulationError(f"cannot reach {title} at {host}:{port}")
        for number, image in enumerate(series.ReferencedImageSequence, 1):
            ds = self._pixel(item, series, image.ReferencedSOPInstanceUID, number)
            status = association.send_c_store(ds)
            if not status or status.Status != Status.SUCCESS:
                raise SimulationError(f"C-STORE: {status}")
        association.release()
        self.say(f"{self.ae_title} -> {title}  C-STORE {number} images: 0000")

    def _pixel(self, item: Any, series: Any, uid: str, number: int) -> Any:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID

        ds, meta = filled(f"{PATIENT} AccessionNumber StudyInstanceUID", item), FileMetaDataset()
        meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
        meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
        meta.MediaStorageSOPInstanceUID = UID(uid)
        ds.file_meta = meta
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID, ds.SOPInstanceUID, ds.InstanceNumber = CT_IMAGE_STORAGE, uid, number
        ds.SeriesInstanceUID, ds.Modality = series.SeriesInstanceUID, self.modality
        ds.StudyDate, ds.StudyTime, ds.StudyID = f"{datetime.date.today():%Y%m%d}", "", ""
        ds.Rows = ds.Columns = ds.SamplesPerPixel = 1
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", b"\x80\0"
        return ds

    def commit(self, series: Any) -> None:
        """Request commitment of a series (N-ACTION), and wait for its N-EVENT-REPORT."""
        from pydicom.dataset import Dataset
        from pynetdicom import AE, evt

        if not self.listen:
            raise SimulationError("the result needs a port: use --listen PORT")
        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        ds = Dataset()
        ds.TransactionUID = new_uid()
        ds.ReferencedSOPSequence = series.ReferencedImageSequence
        with self.served(ae, self.listen, (evt.EVT_N_EVENT_REPORT, self._hear)):
            with self.association() as association:
                instance = STORAGE_COMMITMENT_INSTANCE
                status, _ = association.send_n_action(ds, 1, STORAGE_COMMITMENT, instance)
            count = len(series.ReferencedImageSequence)
            self._report("N-ACTION", f"commitment of {count} images", status)
            self._say_result(ds.TransactionUID)

    def _hear(self, event: Any) -> tuple[int, None]:
        self.results.put((event.request.EventTypeID, event.event_information))
        return 0x0000, None

    def _say_result(self, uid: str) -> None:
        until = time.monotonic() + self.PATIENCE
        while True:
            try:
                kind, ds = self.results.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise SimulationError(f"{self.ae_title} received no result") from None
            if ds.TransactionUID == uid:
                break
        good, bad = ds.get("ReferencedSOPSequence", []), ds.get("FailedSOPSequence", [])
        told = [f"{len(good)} images confirmed in the archive"] if good else []
        reasons = collections.Counter(f"{one.FailureReason:04X}" for one in bad)
        for reason, count in sorted(reasons.items()):
            words = FAILURE_REASONS.get(reason, "for another reason")
            told.append(f"{count} images not confirmed: {reason}, {words}")
        self.say(f"{self.called} -> {self.ae_title}  N-EVENT-REPORT {kind}: {'; '.join(told)}")
