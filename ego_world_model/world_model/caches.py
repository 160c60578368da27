"""Results that stay valid from one call to the next: prompts and reference frames once encoded."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class LeastRecentlyUsed(Generic[T]):
    """The results of the last few different calls.

    Calls from several threads are safe; two that miss the same key at once compute it twice.

    Args:
        size: how many results are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self._size,)  # a copy of a model starts with nothing kept

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result kept under ``key``, or that of ``compute()``, which is then kept."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = compute()
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return result

    def clear(self) -> None:
        """Forget all, e.g. because the weights changed."""
        with self._lock:
            self._results.clear()


def digest(pixels: Tensor) -> bytes:
    """A key for an image on the CPU: equal for equal values and shape only."""
    kind = f"{tuple(pixels.shape)}{pixels.dtype}".encode()
    return hashlib.sha256(kind + pixels.contiguous().numpy().tobytes()).digest()
