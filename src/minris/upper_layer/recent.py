"""What was set last, up to a number."""

from typing import Any


class Recent(dict[Any, Any]):
    """The `most` entries that were set last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self.most:
            del self[next(iter(self))]
