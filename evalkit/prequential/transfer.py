"""Work on the host while a GPU computes: copies that nobody waits for, and iteration that keeps one item ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")


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
