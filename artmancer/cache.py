"""A size-limited cache of results, keyed by image content: an image that was processed before costs
nothing again.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")

_digests = WeakTensorKeyDictionary()
"""(version, digest) by tensor. The version is torch's count of changes in place."""


def digest(image: Tensor) -> str:
    """Return a hash of an IMAGE's shape and content, memoized per tensor until the tensor is
    modified in place.
    """
    # A tensor of inference mode has no version.
    version = 0 if image.is_inference() else image._version
    entry = _digests.get(image)
    if entry is None or entry[0] != version:
        content = hashlib.sha256(image.contiguous().cpu().numpy().data)
        entry = (version, f"{tuple(image.shape)} {content.hexdigest()}")
        _digests[image] = entry
    text: str = entry[1]
    return text


class Cache:
    """Results by the content they were made from; the least recently used are dropped first.

    Attributes
    ----------
    limit : largest total size in bytes; the latest result is kept even where it is larger
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result under a key. Where there is none, make it and keep it.

        Parameters
        ----------
        make : returns a tensor, a tuple of tensors, or an object with `nbytes`
        """
        if key not in self._results:
            self._results[key] = make()
            while len(self._results) > 1 and self.size > self.limit:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        result: T = self._results[key]
        return result

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(map(_bytes, self._results.values()))

    def clear(self) -> None:
        """Drop all results."""
        self._results.clear()


def _bytes(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 0))
