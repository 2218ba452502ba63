"""The bytes of what others send, bounded over all of them."""

import collections
import contextlib
import threading
from collections.abc import Iterator

SMALL = 65536  # bytes that are let in as long as there is any room


class Intake:
    """The bytes of messages held at once, over all callers, each until it is answered.

    most  of all together. An address has at most half of them for large messages, and these leave
          a quarter to the small ones of others.
    """

    def __init__(self, most: int = 64 << 20) -> None:
        self.most = most
        self.held: collections.Counter[str] = collections.Counter()  # by address; "" for all
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def share(self, address: str) -> Iterator["Share"]:
        """The share of one message, given back at the end."""
        share = Share(self, address)
        try:
            yield share
        finally:
            share.give_back()


class Share:
    """What one message holds of an Intake; its methods may be called from any thread."""

    def __init__(self, intake: Intake, address: str) -> None:
        self.intake, self.address, self.size = intake, address, 0

    def take(self, size: int) -> bool:
        """Count bytes before they are held; False if there is no room for them."""
        whole, held = self.intake, self.intake.held
        with whole.lock:
            total, of_one = held[""] + size, held[self.address] + size
            large = self.size + size > SMALL
            crowded = of_one * 2 > whole.most or total * 4 > whole.most * 3
            if total > whole.most or (large and crowded):
                return False
            self.size += size
            for key in (self.address, ""):
                held[key] += size
            return True

    def give_back(self) -> None:
        """Count its bytes no longer."""
        whole = self.intake
        with whole.lock:
            for key in (self.address, ""):
                whole.held[key] -= self.size
            if not whole.held[self.address]:
                del whole.held[self.address]
            self.size = 0
