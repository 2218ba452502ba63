"""What was used last, kept while there is room."""

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(dict[Key, Value]):
    """What was kept last, by key, while all of it is no more than `most`.

    What was kept longest ago goes first. Of one thread: who shares it holds a lock, or reads a
    `copy`, which is a plain dictionary.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.size = most, 0
        self.sizes: dict[Key, int] = {}

    def __setitem__(self, key: Key, value: Value) -> None:
        self.keep(key, value)

    def keep(self, key: Key, value: Value, size: int = 1) -> None:
        """Keep a value that is `size` of the whole."""
        self.pop(key, None)
        super().__setitem__(key, value)
        self.size += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        while self.size > self.most:
            oldest = next(iter(self))
            del self[oldest]
            self.size -= self.sizes.pop(oldest)
