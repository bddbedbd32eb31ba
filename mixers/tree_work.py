"""Work arrays of the tree expert's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SETS = 5
"""Weight vectors in use at a node."""


def input_count(orders: int, document_orders: int) -> int:
    """Return the length of a node's input vector, up to the next multiple of 8 (the rest stays zero).

    Every order gives the logit of its odds, and all but the first of each store the logit of its learned table.
    """
    used = orders + document_orders + (orders - 1) + max(document_orders - 1, 0)
    return (used + 7) // 8 * 8


def new_sums(orders: int, document_orders: int, bits: int) -> tuple[npt.NDArray[Any], ...]:
    """Return the work arrays of ``tree_pass`` that hold sums over counts."""
    every = orders + document_orders
    paths = [np.zeros((every, bits + 1), dtype=np.int64) for _ in range(2)]
    floats = [np.zeros(every) for _ in range(2)]
    places = [np.zeros(max(n, 1), dtype=np.int64) for n in (orders, document_orders)]
    return (*paths, *floats, *places, *(np.zeros(every, dtype=np.int64) for _ in range(6)))


def new_nodes(rows: int, orders: int, document_orders: int) -> tuple[npt.NDArray[Any], ...]:
    """Return the work arrays that hold the inputs and outputs of ``rows`` nodes."""
    every = orders + document_orders
    ratios, mantissas = np.ones(rows * every), np.ones(rows * every)
    return (
        np.zeros((rows, input_count(orders, document_orders))),
        np.zeros((rows, every), dtype=np.int64),
        np.zeros((rows, SETS), dtype=np.int64),
        np.zeros((rows, SETS)),
        np.zeros(rows, dtype=np.int64),
        np.zeros(rows),
        ratios,
        ratios.view(np.int64),
        mantissas,
        mantissas.view(np.int64),
        np.zeros(rows * every),
    )
