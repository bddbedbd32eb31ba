"""Work on the host while a GPU computes: copies that nobody waits for, and iteration that keeps one item ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, each only once the next has been asked for.

    Where an item is work that a GPU has been given, the GPU has the next one to do while the caller uses this one.
    """
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item
            item = following
        yield item


def mapped_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield ``function(item)`` of the items, in order, with at most ``ahead`` of them computed before they are used."""
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) == ahead:
            yield pending.popleft().result()
        pending.append(pool.submit(function, item))
    while pending:
        yield pending.popleft().result()


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array on a device; a GPU fetches it from pinned memory, and the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host; from a GPU it is copied in the order of its work, and only ``wait`` waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> npt.NDArray[Any]:
        """Return the values once they are there."""
        if self._event is not None:
            self._event.synchronize()
        values: np.ndarray[Any, Any] = self._host.numpy()
        return values
