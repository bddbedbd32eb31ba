"""The trade between size and loss: every tensor's own step, so that the file just fits its cap.

Scaling all steps of a plan together, other widths, and zeroing integers of +-1 were searched too, and lost to this at
every size of every model (bench/RESULTS.md, "A step for each tensor").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evalkit.artifact.tensors import INT_BITS, StoredTensor
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.train.export.allocation import Choice, allocate, best_next, between, choices, module_of, weighed
from evalkit.train.quantization.curvature import Curvature
from evalkit.train.quantization.plan import QuantizationPlan

_ALLOCATIONS = 6
_FILLS = 8
_LESS = 0.6  # of the room, after a filling that was too large
_FULL = 0.998  # of the target is close enough
_SLACK = 0.0005  # below it after an allocation that was too large


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One line of the table of what was tried.

    Attributes:
        label: the plan as it is, or a step for each tensor.
        total_bytes: artifact as packed, with the code.
        fits: whether the total is within the cap.
        loss: measured loss, nats per token; None where it was not measured.
    """

    label: str
    total_bytes: int
    fits: bool
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Outcome of :func:`fit`.

    Attributes:
        tensors: the best tensors that fit.
        best: their line.
        table: every line, in the order tried.
    """

    tensors: dict[str, StoredTensor]
    best: FitRow
    table: list[FitRow]


def fit(
    state: Mapping[str, Tensor],
    plan: QuantizationPlan,
    *,
    hessians: Mapping[str, Tensor],
    curvature: Curvature,
    loss: Callable[[Mapping[str, StoredTensor]], float],
    pack: Callable[[Mapping[str, StoredTensor]], int],
    cap_bytes: int,
    code_bytes: int = 0,
    widths: Sequence[int] = INT_BITS,
) -> FitResult:
    """Give every tensor its own step, and keep that or the plan, whichever fits and has the lower measured loss.

    What the container took for one allocation corrects the estimates of the next. Steps come in half octaves, so some
    room is left; it goes to the tensor in which a byte buys most, whose step is put between two of them.

    Args:
        state: name to float tensor.
        plan: widths and floors to start from.
        hessians: as for :func:`~evalkit.train.export.export.quantize_state_dict`.
        curvature: weighs errors of different tensors.
        loss: measures stored tensors; called once for the plan if it fits, and once for the best allocation.
        pack: bytes of the artifact that holds the tensors.
        cap_bytes: limit on artifact plus code.
        code_bytes: bytes of the code that ships.
        widths: widths of integers that the container holds, ascending.

    Raises:
        InputError: nothing fits.
    """
    table: list[FitRow] = []

    def tried(label: str, tensors: Mapping[str, StoredTensor]) -> FitRow:
        total = pack(tensors) + code_bytes
        table.append(FitRow(label=label, total_bytes=total, fits=total <= cap_bytes))
        LOG.info("%s: %s bytes with the code, %s", label, f"{total:,}", "fits" if table[-1].fits else "too large")
        return table[-1]

    options = choices(state, plan, hessians, curvature, widths)
    planned = {name: ways[0].tensor for name, ways in options.items()}
    candidates = [(tried("the plan", planned), planned)]
    target = cap_bytes - code_bytes
    largest: tuple[FitRow, dict[str, Choice]] | None = None
    last, packed_by_estimate = None, 1.0
    for _ in range(_ALLOCATIONS):
        chosen = allocate(options, target / packed_by_estimate)
        estimate = sum(choice.n_bytes for choice in chosen.values())
        if estimate == last:
            break  # every tensor has its finest step already
        last = estimate
        row = tried("a step for each tensor", _tensors(chosen))
        if row.fits and (largest is None or row.total_bytes > largest[0].total_bytes):
            largest = (row, chosen)
        n_bytes = row.total_bytes - code_bytes
        if row.fits and n_bytes > _FULL * target:
            break
        packed_by_estimate = n_bytes / estimate * (1.0 if row.fits else 1.0 + _SLACK)
    if largest is not None:
        row, chosen = largest
        used = 1.0
        for _ in range(_FILLS):
            n_bytes = row.total_bytes - code_bytes
            finer = best_next(chosen, options)
            if n_bytes > _FULL * target or finer is None:
                break
            room = used * (target - n_bytes) / (n_bytes / sum(choice.n_bytes for choice in chosen.values()))
            name, to = finer
            share = min(room / (to.n_bytes - chosen[name].n_bytes), 1.0)
            tensor = between(state[name], chosen[name].tensor, to.tensor, share, widths, hessians.get(module_of(name)))
            closer = chosen | {name: weighed(name, state[name], tensor, hessians, curvature)}
            attempt = tried("a step for each tensor", _tensors(closer))
            if attempt.fits and attempt.total_bytes > row.total_bytes:
                row, chosen = attempt, closer
            else:
                used *= _LESS
        candidates.append((row, _tensors(chosen)))
    measured = [(replace(row, loss=loss(tensors)), tensors) for row, tensors in candidates if row.fits]
    for row, _ in measured:
        table[table.index(replace(row, loss=None))] = row
    if not measured:
        smallest = min(row.total_bytes for row in table)
        raise InputError(f"nothing fits {cap_bytes} bytes: the smallest took {smallest} with the code")
    best, kept = min(measured, key=lambda one: one[0].loss or 0.0)
    return FitResult(tensors=kept, best=best, table=table)


def _tensors(chosen: Mapping[str, Choice]) -> dict[str, StoredTensor]:
    return {name: choice.tensor for name, choice in chosen.items()}
