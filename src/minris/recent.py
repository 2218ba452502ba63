"""Caches of the most recent values, bounded by size."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

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
