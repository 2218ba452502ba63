"""Caches of the most recent values, bounded by size; and what is told once in a while."""

import functools
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar, cast

Key = TypeVar("Key")
Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])


class Recent(dict[Key, Value]):
    """The values kept most recently, by key; their sizes sum up to at most `most`.

    The oldest are dropped first. For one thread: threads that share it hold a lock, or read a
    `copy`, which is a plain dictionary.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.size = most, 0
        self.sizes: dict[Key, int] = {}

    def __setitem__(self, key: Key, value: Value) -> None:
        self.keep(key, value)

    def keep(self, key: Key, value: Value, size: int = 1) -> None:
        """Keep a value that counts as `size`."""
        self.pop(key, None)
        super().__setitem__(key, value)
        self.size += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        while self.size > self.most:
            oldest = next(iter(self))
            del self[oldest]
            self.size -= self.sizes.pop(oldest)


def size_of(value: object) -> int:
    """The bytes or characters of a value, or of what a tuple holds; 0 for anything else."""
    if isinstance(value, tuple):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, (bytes, str)) else 0


def cached(entries: int, longest: int = 1024) -> Callable[[Function], Function]:
    """Decorate a function: its last results are kept, each for arguments of at most `longest`.

    longest  bytes or characters of all arguments together: what others send may be of any length
    """

    def decorate(function: Function) -> Function:
        known = functools.lru_cache(entries)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return (known if size_of(arguments) <= longest else function)(*arguments)

        return cast(Function, call)

    return decorate


class Withheld(NamedTuple):
    """So many of a kind came after the first one; kind None: of any further kinds of the group."""

    group: Hashable
    kind: Hashable
    more: int


class Repeats:
    """Lets the first of a kind through, counts the others of its minute, and tells how many.

    seconds   of that minute
    of_group  kinds of one group that are let through in it; GROUPS: groups
    """

    GROUPS = 200

    def __init__(self, seconds: float = 60.0, of_group: int = 20,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.seconds, self.of_group, self.clock = seconds, of_group, clock
        # by group and then by kind, begun in this order: when, and how many more
        self.begun: dict[Hashable, dict[Hashable, list[float]]] = {}
        self.lock = threading.Lock()
        self.over: list[Withheld] = []
        self.looked = 0.0

    def lets_through(self, kind: Hashable, group: Hashable = "") -> bool:
        """Whether it is the first of its kind in a minute; else it is counted."""
        now = self.clock()
        with self.lock:
            if now - self.looked >= self.seconds / 4:  # what has ended makes room
                self.looked = now
                self._end(now)
            if group not in self.begun and len(self.begun) >= self.GROUPS:
                kind, group = None, None
            kinds = self.begun.setdefault(group, {})
            if kind in kinds and now - kinds[kind][0] >= self.seconds:
                self._end(now)
                kinds = self.begun.setdefault(group, {})
            if kind not in kinds and len(kinds) >= self.of_group:
                kind = None
            first = kind not in kinds
            begun = kinds.setdefault(kind, [now, 0])
            begun[1] += not first or kind is None
            return first and kind is not None

    def _end(self, now: float) -> None:
        for group, kinds in list(self.begun.items()):
            for kind, (since, more) in list(kinds.items()):
                if now - since >= self.seconds:
                    del kinds[kind]
                    if more and len(self.over) < self.GROUPS * self.of_group:
                        self.over.append(Withheld(group, kind, int(more)))
            if not kinds:
                del self.begun[group]

    def ended(self, at_once: bool = False) -> list[Withheld]:
        """Take out what was counted in the minutes that have ended; with `at_once`, in all."""
        with self.lock:
            self._end(self.clock() + (self.seconds if at_once else 0))
            over, self.over = self.over, []
        return over
