"""Tensors as an artifact stores them, before they become parameters of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

INT_BITS = (4, 5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """Integers and the scales that turn them back into weights: ``values[r, ...] * scale[r]``.

    Attributes:
        values: int8, any shape with at least one dimension; the first is the row.
        scale: float16 or float32, ``[rows]`` or ``[]`` for one scale for the whole tensor.
        bits: width that the integers were quantised to, 4 to 8.
        dtype: dtype the model holds the weight in, ``float32`` or ``bfloat16``.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[Any]
    bits: int
    dtype: str = "float32"

    @property
    def format(self) -> str:
        """What the values are: ``int4`` to ``int8``."""
        return f"int{self.bits}"

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the weights in float32, not yet rounded to ``dtype``."""
        scale = self.scale.astype(np.float32)
        if scale.ndim:
            scale = scale.reshape(-1, *([1] * (self.values.ndim - 1)))
        return self.values.astype(np.float32) * scale


@dataclass(frozen=True, kw_only=True)
class PlainTensor:
    """A tensor that is stored as it is.

    Attributes:
        values: float16, float32, or uint16 that holds the bits of a bfloat16 (``stored`` says so).
        stored: ``float16``, ``float32`` or ``bfloat16``.
        dtype: dtype the model holds the weight in, ``float32`` or ``bfloat16``.
    """

    values: npt.NDArray[Any]
    stored: str
    dtype: str = "float32"

    @property
    def format(self) -> str:
        """What the values are: ``float16``, ``float32`` or ``bfloat16``."""
        return self.stored

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the values in float32, not yet rounded to ``dtype``."""
        if self.stored == "bfloat16":
            return bfloat16_bits_to_float32(self.values)
        return self.values.astype(np.float32)


StoredTensor = QuantizedTensor | PlainTensor


def bfloat16_bits_to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Widen bfloat16 values, given as their 16 bits, to float32 (exact)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest with ties to even, and return the 16 bits. NaN is kept a NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
