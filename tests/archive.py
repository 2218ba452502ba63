"""Orthanc as the archive that the tests ask: images are stored in it, it is stopped and started.

Missing, it leaves the test out (with CI set: fails it), as the peers of tests/peers.py do.
"""

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import peers
import run as fetcher
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from minris.standard.uids import new_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
AE_TITLE = "ARCHIVE"


class Image(NamedTuple):
    """An image of Wang XiaoDong's chest."""

    study: str
    series: str
    uid: str
    sop_class: str = CT_IMAGE

    def file(self) -> bytes:
        """The image as a DICOM file, of one grey pixel."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = self.sop_class
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = self.uid
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.study, self.series
        ds.PatientID, ds.PatientName = "P1", "Wang^XiaoDong"
        ds.StudyDate, ds.Modality = "20260705", "CT"
        ds.Rows = ds.Columns = ds.SamplesPerPixel = 1
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", b"\x80\0"
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


def series(count: int, sop_class: str = CT_IMAGE) -> list[Image]:
    """As many images of one series of a new study."""
    study, one = new_uid(), new_uid()
    return [Image(study, one, new_uid(), sop_class) for _ in range(count)]


def orthanc() -> str:
    """The full path of Orthanc."""
    return peers.cached(fetcher.find_orthanc) or peers.missing("orthanc", "no Orthanc found")


class Archive:
    """Orthanc on free ports, its images in a folder: stopped and started it is the same."""

    def __init__(self, folder: Path) -> None:
        self.port, self.http_port = peers.free_port(), peers.free_port()
        self.settings = folder / "orthanc.json"
        self.settings.write_text(json.dumps(self._settings(folder / "images")), encoding="utf-8")
        self.running = contextlib.ExitStack()
        self.http = httpx.Client(
            base_url=f"http://{peers.HOST}:{self.http_port}", trust_env=False, timeout=30
        )

    def _settings(self, images: Path) -> dict:
        return {
            "StorageDirectory": str(images),
            "IndexDirectory": str(images),
            "DicomAet": AE_TITLE,
            "DicomPort": self.port,
            "DicomAlwaysAllowFind": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
        }

    def start(self, timeout_s: float = 30) -> None:
        """Start it, and wait until it takes queries."""
        command = [orthanc(), str(self.settings)]
        self.process = self.running.enter_context(peers.process(command))
        peers.wait_for_port(self.port, timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(httpx.TransportError):
                self.http.get("/system").raise_for_status()
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"Orthanc does not answer after {timeout_s} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Pull its plug; what it stores stays."""
        self.process.kill()
        self.running.close()

    def store(self, *images: Image) -> None:
        """Store images by its REST interface, which is quick."""
        for image in images:
            self.http.post("/instances", content=image.file()).raise_for_status()

    def receive(self, folder: Path, *images: Image) -> None:
        """Store images by DCMTK's storescu, as a CT does."""
        paths = [folder / f"{image.uid}.dcm" for image in images]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image.file())
        command = [peers.dcmtk("storescu"), "-aet", "CT1", "-aec", AE_TITLE]
        done = peers.run_tool([*command, peers.HOST, str(self.port), *paths])
        assert done.exit_code == 0, done.log

    def empty(self) -> None:
        """Delete all images."""
        for patient in self.http.get("/patients").json():
            self.http.delete(f"/patients/{patient}").raise_for_status()

    def lose(self, image: Image) -> None:
        """Delete an image."""
        [found] = self.http.post("/tools/lookup", content=image.uid).json()
        self.http.delete(found["Path"]).raise_for_status()


@contextlib.contextmanager
def archive_in(folder: Path) -> Iterator[Archive]:
    """An archive that runs, and is stopped in the end."""
    one = Archive(folder)
    with one.http:
        one.start()
        try:
            yield one
        finally:
            one.stop()
