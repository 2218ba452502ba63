"""Are my images safe? A requester that asks for storage commitment, and the images it asks about.

The archive is Orthanc; the study of the images is told by a performed procedure step.
"""

import contextlib
import http.client
import io
import queue
import time
import uuid

import wire
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
WELL_KNOWN = "1.2.840.10008.1.20.1.1"
COMMITMENT = wire.associate(wire.STORAGE_COMMITMENT)
ALL_SAFE = 1  # event type
PATIENCE_S = 120


def new_uid():
    """A UID from a UUID."""
    return f"2.25.{uuid.uuid4().int}"


def data_set(**attributes):
    """A data set by keyword."""
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def image(study, series, uid):
    """An image of one grey pixel, as a file."""
    ds = data_set(
        SOPClassUID=CT_IMAGE, SOPInstanceUID=uid, StudyInstanceUID=study, SeriesInstanceUID=series,
        PatientID="P1", PatientName="Wang^XiaoDong", StudyDate="20260705", Modality="CT",
        Rows=1, Columns=1, SamplesPerPixel=1, BitsAllocated=8, BitsStored=8, HighBit=7,
        PixelRepresentation=0, PhotometricInterpretation="MONOCHROME2", PixelData=b"\x80\0",
    )  # fmt: skip
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CT_IMAGE, uid
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def store(http_port, study, series, uids):
    """Store images in Orthanc by its REST interface."""
    with contextlib.closing(http.client.HTTPConnection(wire.HOST, http_port)) as connection:
        for uid in uids:
            connection.request("POST", "/instances", image(study, series, uid))
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"Orthanc stores no image: {response.status}")


def references(uids):
    """Items of Referenced SOP Sequence, and of Referenced Image Sequence."""
    return [data_set(ReferencedSOPClassUID=CT_IMAGE, ReferencedSOPInstanceUID=uid) for uid in uids]


class Scanner:
    """CT_1: it reports what it did, asks whether its images are safe, and hears."""

    def __init__(self, port, listen):
        self.port, self.listen = port, listen
        self.heard = queue.SimpleQueue()  # event type and time

    def start(self):
        """Listen for results."""
        ae = AE("CT_1")
        ae.add_supported_context(
            wire.STORAGE_COMMITMENT, ImplicitVRLittleEndian, scu_role=True, scp_role=True
        )
        handlers = [(evt.EVT_N_EVENT_REPORT, self._hear)]
        self.server = ae.start_server((wire.HOST, self.listen), block=False, evt_handlers=handlers)

    def stop(self):
        """Listen no longer."""
        self.server.shutdown()

    def _hear(self, event):
        self.heard.put((event.request.EventTypeID, time.perf_counter()))
        return 0x0000, None

    def results(self, number):
        """Wait for so many results, all of them good: when the last came."""
        for _ in range(number):
            kind, at = self.heard.get(timeout=PATIENCE_S)
            if kind != ALL_SAFE:
                raise RuntimeError(f"event type {kind}")
        return at

    @contextlib.contextmanager
    def association(self, sop_class):
        """An association of pynetdicom's, which fragments."""
        ae = AE("CT_1")
        ae.dimse_timeout = PATIENCE_S
        ae.add_requested_context(sop_class, ImplicitVRLittleEndian)
        association = ae.associate(wire.HOST, self.port, ae_title=wire.CALLED)
        if not association.is_established:
            raise RuntimeError("no association")
        yield association
        association.release()

    def report(self, study, series, uids):
        """The performed procedure step that made the images."""
        scheduled = data_set(
            StudyInstanceUID=study, ReferencedStudySequence=[], AccessionNumber="",
            RequestedProcedureID="", RequestedProcedureDescription="", ScheduledProcedureStepID="",
            ScheduledProcedureStepDescription="", ScheduledProtocolCodeSequence=[],
        )  # fmt: skip
        begun = data_set(
            ScheduledStepAttributesSequence=[scheduled], PatientName="Wang^XiaoDong",
            PatientID="P1", PerformedProcedureStepID="1", PerformedStationAETitle="CT_1",
            PerformedProcedureStepStartDate="20260705", PerformedProcedureStepStartTime="0800",
            PerformedProcedureStepStatus="IN PROGRESS", Modality="CT",
        )  # fmt: skip
        done = data_set(
            PerformedProcedureStepStatus="COMPLETED", PerformedProcedureStepEndDate="20260705",
            PerformedProcedureStepEndTime="0810",
            PerformedSeriesSequence=[data_set(
                PerformingPhysicianName="", ProtocolName="Chest", OperatorsName="",
                SeriesInstanceUID=series, SeriesDescription="", RetrieveAETitle="",
                ReferencedImageSequence=references(uids),
                ReferencedNonImageCompositeSOPInstanceSequence=[],
            )],
        )  # fmt: skip
        uid = new_uid()
        with self.association(wire.MPPS) as association:
            for send, ds in ((association.send_n_create, begun), (association.send_n_set, done)):
                status, _ = send(ds, wire.MPPS, uid)
                if not status or status.Status != 0:
                    raise RuntimeError(f"MPPS: {status}")

    def ask(self, uids):
        """One request, as large as it may be: when it was sent."""
        ds = data_set(TransactionUID=new_uid(), ReferencedSOPSequence=references(uids))
        with self.association(wire.STORAGE_COMMITMENT) as association:
            begin = time.perf_counter()
            status, _ = association.send_n_action(ds, 1, wire.STORAGE_COMMITMENT, WELL_KNOWN)
            if not status or status.Status != 0:
                raise RuntimeError(f"N-ACTION: {status}")
        return begin

    def ask_at_once(self, lists):
        """A request for each list of images, all at the same time, on an association each."""
        requests = [request(uids) for uids in lists]
        with contextlib.ExitStack() as stack:
            open_ = [stack.enter_context(wire.Association(self.port, COMMITMENT)) for _ in requests]
            begin = time.perf_counter()
            for association, one in zip(open_, requests, strict=True):
                association.send(one)
            for association in open_:
                if association.answer() != (0, 0):
                    raise RuntimeError("a request was not taken")
        return begin


def request(uids):
    """An N-ACTION request for a few images, encoded."""

    def sequence(tag, items):
        body = b"".join(wire.element(0xFFFEE000, one) for one in items)
        return wire.element(tag, body)

    items = [wire.element(0x00081150, CT_IMAGE, b"\0") + wire.element(0x00081155, uid, b"\0")
             for uid in uids]  # fmt: skip
    data = wire.element(0x00081195, new_uid(), b"\0") + sequence(0x00081199, items)
    command = {0x0003: wire.STORAGE_COMMITMENT, 0x0100: 0x0130, 0x0110: 1, 0x1001: WELL_KNOWN}
    return wire.message(wire.STORAGE_COMMITMENT, {**command, 0x1008: 1}, data)
