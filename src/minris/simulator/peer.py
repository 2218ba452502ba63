"""A simulated AE that calls the server."""

import contextlib
import datetime
import io
from collections.abc import Callable, Iterator
from typing import Any

from minris.dataset.elements import ElementIndex
from minris.standard.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

SYNTAXES = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]


class SimulationError(Exception):
    """A scenario failed."""


class Peer:
    """A simulated AE that calls the server.

    host, port, called  address and AE title of the server
    say                 takes each line of the conversation
    calling_tls, listening_tls
                        contexts of its calls and of its own port; None without TLS
    """

    CLASSES: tuple[str, ...] = ()
    zone: datetime.tzinfo | None = None  # of its clock; None: that of the machine
    calling_tls: Any = None
    listening_tls: Any = None

    def __init__(
        self, ae_title: str, host: str, port: int, called: str, say: Callable[[str], None] = print
    ) -> None:
        from pynetdicom import AE

        self.ae_title, self.say = ae_title, say
        self.address, self.called = (host, port), called
        self.ae = AE(ae_title=ae_title)
        for uid in self.CLASSES:
            self.ae.add_requested_context(uid, SYNTAXES)

    @contextlib.contextmanager
    def association(self) -> Iterator[Any]:
        """Open an association to the server; SimulationError if it is refused."""
        association = self.call(self.ae)
        if not (association.is_rejected or association.is_established):
            # pynetdicom 3.0.4 sometimes loses the answer if the connection closes right after it
            association = self.call(self.ae)
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = answer.reason_str if answer else "no answer"
            raise SimulationError(f"{self.called} rejected {self.ae_title}: {why}")
        if not association.is_established:
            host, port = self.address
            raise SimulationError(f"cannot reach {self.called} at {host}:{port}")
        try:
            yield association
        finally:
            association.release()

    def call(self, ae: Any, called: str = "", **how: Any) -> Any:
        """Associate an AE of pynetdicom with the server."""
        tls = (self.calling_tls, None) if self.calling_tls else None
        return ae.associate(*self.address, ae_title=called or self.called, tls_args=tls, **how)

    @contextlib.contextmanager
    def served(
        self, ae: Any, port: int, *handlers: tuple[Any, Callable[..., Any]]
    ) -> Iterator[None]:
        """Let an AE of pynetdicom listen at a port. SimulationError if the port is taken."""
        try:
            server = ae.start_server(
                ("", port), block=False, evt_handlers=list(handlers), ssl_context=self.listening_tls
            )
        except OSError as error:
            raise SimulationError(f"port {port}: {error}") from None
        try:
            yield
        finally:
            server.shutdown()

    def answered(self, line: str, operation: str, status: Any, hint: str = "") -> None:
        """Print the status of a request. SimulationError, with a hint, unless it is success."""
        self.say(f"{line}: {code_of(status)}")
        if code_of(status) != "0000":
            comment = status.get("ErrorComment", "") if status else ""
            raise SimulationError(f"{operation} failed: {code_of(status)} {comment}{hint}")


def code_of(status: Any) -> str:
    """Return the code of a response."""
    return f"{status.Status:04X}" if status else "no answer"


def filled(keywords: str, source: Any = None) -> Any:
    """Return a data set with these attributes, copied from another data set or empty."""
    from pydicom.dataset import Dataset

    ds = Dataset()
    for keyword in keywords.split():
        setattr(ds, keyword, source.get(keyword, "") if source else "")
    return ds


def dataset_of(index: ElementIndex) -> Any:
    """Return a stored data set as a pydicom Dataset."""
    from pydicom.filereader import read_dataset

    ds = read_dataset(io.BytesIO(bytes(index)), is_implicit_VR=False, is_little_endian=True)
    ds.SpecificCharacterSet = "ISO_IR 192"
    return ds
