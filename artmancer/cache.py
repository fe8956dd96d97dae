"""What is made of a picture is kept by its content, so that the same picture
costs nothing again.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")

_digests = WeakTensorKeyDictionary()


def digest(image: Tensor) -> str:
    """Of an IMAGE's content; found at once for a tensor that was asked for before and has not
    changed since.
    """
    version = 0 if image.is_inference() else image._version
    known = _digests.get(image)
    if known is None or known[0] != version:
        content = hashlib.sha256(image.contiguous().cpu().numpy().data)
        known = _digests[image] = (version, f"{tuple(image.shape)} {content.hexdigest()}")
    text: str = known[1]
    return text


class Cache:
    """Results by the content they were made from, the least recently used dropped first.

    limit : bytes held at most
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under this key, or else what make gives: a tensor, a tuple of such, or what
        has `nbytes`.
        """
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
    return int(getattr(value, "nbytes", 0))
