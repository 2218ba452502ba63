"""A cache of the most recent values, bounded by size."""

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


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
