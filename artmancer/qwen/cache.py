"""What an edit encodes is kept, so that the same picture with another seed encodes nothing again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Cache:
    """Tensors by content, the least recently used dropped first.

    limit : bytes held at most
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under this key, or else what make gives; a tensor or a tuple of tensors."""
        if key not in self._held:
            self._held[key] = make()
            while len(self._held) > 1 and self.size > self.limit:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        kept: T = self._held[key]
        return kept

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(map(_bytes, self._held.values()))

    def clear(self) -> None:
        self._held.clear()


def _bytes(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0
