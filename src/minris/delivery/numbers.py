"""Made identifiers are looked up in the archive before they are given."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from minris import log
from minris.access.context import Context, archive_of
from minris.config.ini import Device
from minris.config.values import format_identifier
from minris.delivery.receivers import Rounds
from minris.orders.lookup import counter_name, last_number, leap_to
from minris.upper_layer.caller import DeliveryError


def wildcards(identifiers: Iterable[str]) -> list[str]:
    """Patterns that match at least these identifiers, one for each length (PS3.4 C.2.2.2.4)."""
    by_length: dict[int, list[str]] = {}
    for one in identifiers:
        by_length.setdefault(len(one), []).append(one)
    return [
        "".join(
            letters[0] if len(set(letters)) == 1 else "?" for letters in zip(*some, strict=True)
        )
        for some in by_length.values()
    ]


class NumberWatch(Rounds):
    """Lets a counter leap past the numbers that the archive has: those of a store that was lost.

    It looks ahead, a block at a time, so that registration seldom waits for the archive.

    ask  coroutine function (archive, keyword, patterns) returning identifiers; raises DeliveryError
    how  as for Rounds
    """

    NAME, PAUSE, CALM = "look-up of numbers", 60.0, 1.0
    BLOCK, AHEAD, MOST_QUERIES = 100, 20, 50
    WAIT_S, PEACE_S = 2.0, 60.0  # how long registration waits, and then does not wait again

    def __init__(self, ask: Callable[..., Any], *how: Callable[..., Any]) -> None:
        super().__init__(*how)
        self.ask = ask
        self.free_to: dict[str, int] = {}  # by counter: the archive has no number up to this
        self.peace_until = 0.0  # by the monotonic clock

    def at_peace(self) -> bool:
        """Whether the archive was away a moment ago."""
        return time.monotonic() < self.peace_until

    def be_at_peace(self, why: str) -> None:
        """Ask the archive no more for a while."""
        self.peace_until = time.monotonic() + self.PEACE_S
        log.warning("new identifiers are not looked up in the archive: %s", why)

    async def work(self, wait: bool = False) -> None:
        """Look ahead."""
        await self.clear(self.AHEAD)

    async def clear(self, count: int) -> None:
        """See to it that the archive has none of the next numbers, as many as these."""
        ctx = self.context()
        archive = archive_of(ctx)
        if not archive or not archive.host or self.at_peace():
            return
        clinic = ctx.config.clinic
        try:
            for keyword, pattern in (("PatientID", clinic.patient_id_format),
                                     ("AccessionNumber", clinic.accession_number_format)):  # fmt: skip
                await self._clear(ctx, archive, keyword, pattern, count)
        except DeliveryError as error:
            self.be_at_peace(str(error))

    async def _clear(
        self, ctx: Context, archive: Device, keyword: str, pattern: str, count: int
    ) -> None:
        now = ctx.local_now()
        counter = counter_name(pattern, now)
        last = await self.read(last_number, counter)
        if last + count <= self.free_to.get(counter, -1):
            return
        first, top, step = last + 1, last, 0  # from first to top, all are free
        for _ in range(self.MOST_QUERIES):
            if top >= first + count - 1:
                break
            end = (top + 1) // self.BLOCK * self.BLOCK + self.BLOCK - 1
            block = {format_identifier(pattern, now, n): n for n in range(top + 1, end + 1)}
            found = await self.ask(archive, keyword, wildcards(block))
            taken = [block[one] for one in found if one in block]
            top = end
            if taken:
                first = max(taken) + 1
            if first > end:  # it is full up to there: look ever farther
                first, step = first + step, max(self.BLOCK, 2 * step)
                top = first - 1
        if first - 1 > last:
            log.warning("the archive has numbers that are not ours: one counter leaps by %d",
                        first - 1 - last)  # fmt: skip
            await self.write(leap_to, counter, first - 1)
        if len(self.free_to) > 8:  # those of former days
            self.free_to.clear()
        self.free_to[counter] = top
