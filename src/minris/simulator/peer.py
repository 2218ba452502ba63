"""Somebody who associates with the box."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

from minris.dataset.elements import ElementIndex
from minris.standard.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN


class SimulationError(Exception):
    """A scenario could not be played to its end."""


class Peer:
    """Somebody who associates with the box.

    host, port, called  where it is
    say                 takes each line of the conversation
    """

    CLASSES: tuple[str, ...] = ()

    def __init__(
        self, ae_title: str, host: str, port: int, called: str, say: Callable[[str], None] = print
    ) -> None:
        from pynetdicom import AE

        self.ae_title, self.say = ae_title, say
        self.address, self.called = (host, port), called
        self.ae = AE(ae_title=ae_title)
        for uid in self.CLASSES:
            self.ae.add_requested_context(
                uid, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
            )

    @contextlib.contextmanager
    def association(self) -> Iterator[Any]:
        """An association to the box; SimulationError where there is none."""
        association = self.ae.associate(*self.address, ae_title=self.called)
        if not (association.is_rejected or association.is_established):
            # pynetdicom 3.0.4 now and then loses the answer when the connection closes behind it
            association = self.ae.associate(*self.address, ae_title=self.called)
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = answer.reason_str if answer else "no answer"
            raise SimulationError(f"{self.ae_title} was not let in by {self.called}: {why}")
        if not association.is_established:
            host, port = self.address
            raise SimulationError(f"{self.called} is not reached at {host}, port {port}")
        try:
            yield association
        finally:
            association.release()


@contextlib.contextmanager
def served(ae: Any, port: int, *handlers: tuple[Any, Callable[..., Any]]) -> Iterator[None]:
    """A simulated AE that listens. SimulationError where the port is taken."""
    try:
        server = ae.start_server(("", port), block=False, evt_handlers=list(handlers))
    except OSError as error:
        raise SimulationError(f"port {port}: {error}") from None
    try:
        yield
    finally:
        server.shutdown()


def dataset_of(index: ElementIndex) -> Any:
    """A stored data set as pydicom's."""
    from pydicom.filereader import read_dataset

    ds = read_dataset(io.BytesIO(bytes(index)), is_implicit_VR=False, is_little_endian=True)
    ds.SpecificCharacterSet = "ISO_IR 192"
    return ds
