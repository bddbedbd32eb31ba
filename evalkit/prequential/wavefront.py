"""Blocks of a stream side by side: each follows the block before through the layers, one layer behind.

A block needs, in every layer, the keys and values of the blocks before; it does not need their later layers. So threads
can take a block each, if no block enters a layer that the block before has not left. Every thread computes what it
would compute alone, so that results do not depend on how many there are.
"""

from __future__ import annotations

import sys
import threading

from torch import Tensor

from evalkit.model.cache import Cache


class Lane:
    """One block's way through the layers.

    Args:
        before: the lane of the block before, which must have started already or be certain to start.
    """

    def __init__(self, before: Lane | None) -> None:
        self._before = before
        self._layer = -1  # the layer that the block is in; it has left those below
        self._moved = threading.Condition()

    def enter(self, layer: int) -> None:
        """Leave the layers below, and wait until the block before has left ``layer``."""
        self._move_to(layer)
        if self._before is not None:
            self._before.wait_until_past(layer)

    def finish(self) -> None:
        """Leave all layers, or give up: whoever waits goes on."""
        self._move_to(sys.maxsize)
        self._before = None

    def wait_until_past(self, layer: int) -> None:
        """Wait until this block has left ``layer``."""
        with self._moved:
            self._moved.wait_for(lambda: self._layer > layer)

    def _move_to(self, layer: int) -> None:
        with self._moved:
            self._layer = layer
            self._moved.notify_all()


class LaneCache:
    """A layer's cache as a block in a lane meets it: extending it is how the block enters the layer."""

    def __init__(self, cache: Cache, lane: Lane, layer: int) -> None:
        self._cache, self._lane, self._layer = cache, lane, layer

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Wait for the layer to be free, then extend its cache."""
        self._lane.enter(self._layer)
        return self._cache.extend(keys, values)
