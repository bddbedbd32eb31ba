"""The trade between size and loss: the lowest measured loss among artifacts that fit the cap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evalkit.artifact.native import NativeMetadata
from evalkit.artifact.tensors import INT_BITS, QuantizedTensor, StoredTensor
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.train.export.allocation import allocate, choices
from evalkit.train.export.export import CONTAINERS, Container, pack_artifact, quantize_state_dict
from evalkit.train.export.torch_layouts import TorchLayout
from evalkit.train.quantization.curvature import Curvature
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule
from evalkit.train.quantization.pruning import prune_to_size, zeroing_costs

_ALLOCATIONS = 6
_FULL = 0.998  # of the target is close enough
_SLACK = 0.0005  # below it after an allocation that was too large


@dataclass(frozen=True, kw_only=True)
class FitOption:
    """One way of exporting that the search may take.

    Attributes:
        label: its name in the table.
        plan: widths, clips and floors.
        container: how it is packed.
        layout: arrangement of a torch container.
        reach: how the option is brought under the cap. ``step`` searches the factor on the step's floor, up
            and down, so that the file just fits; ``prune`` zeroes +-1 integers; ``tensors`` gives every tensor its own
            step and width; ``none`` takes the plan as it is.
    """

    label: str
    plan: QuantizationPlan
    container: Container = "evalkit"
    layout: TorchLayout | None = None
    reach: str = "step"

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of integers that the container holds, ascending."""
        return INT_BITS if self.layout is None else self.layout.widths

    def __post_init__(self) -> None:
        if self.reach not in ("step", "prune", "tensors", "none"):
            raise InputError(f"reach {self.reach!r} is none of step, prune, tensors, none")


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One line of the table of what was tried.

    Attributes:
        label: the option.
        container: its container.
        step_factor: factor on the floors of the plan's steps; None where every tensor has its own step.
        zeroed: integers of +-1 set to 0.
        n_bytes: artifact bytes, as packed.
        total_bytes: with the code.
        fits: whether the total is within the cap.
        loss: measured loss; None where it was not measured.
    """

    label: str
    container: str
    step_factor: float | None
    zeroed: int
    n_bytes: int
    total_bytes: int
    fits: bool
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Outcome of :func:`fit`.

    Attributes:
        tensors: the winner's tensors.
        option: the winner.
        best: its line.
        table: every line, in the order tried.
    """

    tensors: dict[str, StoredTensor]
    option: FitOption
    best: FitRow
    table: list[FitRow]


def fit_options(plan: QuantizationPlan, container: Container, layout: TorchLayout | None) -> list[FitOption]:
    """Return what ``fit`` tries, each brought to the cap.

    The plan itself; a step for every tensor; and the plan without floors, with blocks as wide as they are, or one width
    wider or narrower, in the widths that the container has. (Without floors as wide, ``step`` is the plan itself.)
    """
    base = FitOption(label="plan, steps to fit", plan=plan, container=container, layout=layout)
    options = [base, replace(base, label="a step for each tensor", reach="tensors")]

    def shifted(places: int) -> QuantizationPlan:
        def rule_of(rule: TensorRule) -> TensorRule:
            if not rule.bits or rule.bits == 8:
                return rule
            place = base.widths.index(rule.bits) + places
            return replace(rule, format=f"int{base.widths[max(place, 0)]}", min_step=0.0)

        return replace(plan, rules=tuple(map(rule_of, plan.rules)))

    for places, label in ((1, "wider"), (0, "no floor"), (-1, "narrower")):
        if places and shifted(places) == shifted(0):
            continue
        for reach in ("step", "prune") if places else ("prune",):
            options.append(replace(base, label=f"{label}, {reach}", plan=shifted(places), reach=reach))
    return options


def fit(
    state: Mapping[str, Tensor],
    options: Sequence[FitOption],
    loss: Callable[[Mapping[str, StoredTensor]], float],
    *,
    cap_bytes: int = SIZE_CAP,
    code_bytes: int = 0,
    hessians: Mapping[str, Tensor] | None = None,
    metadata: NativeMetadata | None = None,
    curvature: Curvature | None = None,
    step_range: tuple[float, float] = (0.25, 4.0),
    step_trials: int = 6,
) -> FitResult:
    """Export in several ways and keep the one with the lowest measured loss that fits.

    Args:
        state: name to float tensor.
        options: what to try.
        loss: measures stored tensors; called once for each option that fits.
        cap_bytes: limit on artifact plus code, in bytes (decimal megabytes: 16,000,000).
        code_bytes: bytes of the code that ships.
        hessians: as for :func:`quantize_state_dict`.
        metadata: as for :func:`pack_artifact`.
        curvature: weighs errors of different tensors, for options with ``reach="tensors"``.
        step_range: lowest and highest factor on the step floors.
        step_trials: halvings of that range, in logarithm.

    Raises:
        InputError: no option fits, or there is none.
    """
    if not options:
        raise InputError("there is nothing to fit: no option was given")
    table: list[FitRow] = []
    best: tuple[FitRow, FitOption, dict[str, StoredTensor]] | None = None
    for option in options:
        search = _Search(state, option, hessians, metadata, cap_bytes, code_bytes, table)
        if option.reach == "tensors":
            if curvature is None:
                raise InputError(f"option {option.label!r} needs the curvature of the loss")
            found = search.allocate(curvature)
        else:
            found = search.run(step_range, step_trials)
        if found is None:
            continue
        row, tensors = found
        measured = replace(row, loss=loss(tensors))
        table[table.index(row)] = measured
        assert measured.loss is not None
        if best is None or best[0].loss is None or measured.loss < best[0].loss:
            best = (measured, option, tensors)
    if best is None:
        smallest = min(row.total_bytes for row in table)
        raise InputError(f"no option fits {cap_bytes} bytes: the smallest took {smallest} with the code")
    return FitResult(tensors=best[2], option=best[1], best=best[0], table=table)


def in_torch_containers(
    tensors: Mapping[str, StoredTensor], best: FitRow, layout: TorchLayout, *, cap_bytes: int, code_bytes: int
) -> list[FitRow]:
    """Return what the winner's tensors would take in the containers of a published layout, as more lines."""
    named = {
        name: replace(tensor, bits=min(bits for bits in layout.widths if bits >= tensor.bits))
        if isinstance(tensor, QuantizedTensor)
        else tensor
        for name, tensor in tensors.items()
    }
    rows = []
    for container in CONTAINERS:
        if container != "evalkit":
            n_bytes = len(pack_artifact(named, container, layout=layout))
            total = n_bytes + code_bytes
            rows.append(
                replace(
                    best, label=f"the best, in {container}", container=container, n_bytes=n_bytes, total_bytes=total,
                    fits=total <= cap_bytes,
                )
            )  # fmt: skip
    return rows


class _Search:
    """Brings one option under the cap."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        option: FitOption,
        hessians: Mapping[str, Tensor] | None,
        metadata: NativeMetadata | None,
        cap_bytes: int,
        code_bytes: int,
        table: list[FitRow],
    ) -> None:
        self.state, self.option, self.hessians, self.metadata = state, option, hessians, metadata
        self.cap_bytes, self.code_bytes, self.table = cap_bytes, code_bytes, table

    def size(self, tensors: Mapping[str, StoredTensor]) -> int:
        return len(pack_artifact(tensors, self.option.container, layout=self.option.layout, metadata=self.metadata))

    def record(self, factor: float | None, zeroed: int, n_bytes: int) -> FitRow:
        total = n_bytes + self.code_bytes
        row = FitRow(
            label=self.option.label,
            container=self.option.container,
            step_factor=factor,
            zeroed=zeroed,
            n_bytes=n_bytes,
            total_bytes=total,
            fits=total <= self.cap_bytes,
        )
        self.table.append(row)
        way = row.label if factor is None else f"{row.label} (step factor {factor:.3g})"
        LOG.info("%s: %s bytes with the code, %s", way, f"{total:,}", "fits" if row.fits else "too large")
        return row

    def attempt(self, factor: float) -> tuple[FitRow, dict[str, StoredTensor]]:
        plan = self.option.plan if factor == 1.0 else self.option.plan.with_step_factor(factor)
        tensors = quantize_state_dict(self.state, plan, self.hessians)
        return self.record(factor, 0, self.size(tensors)), tensors

    def allocate(self, curvature: Curvature) -> tuple[FitRow, dict[str, StoredTensor]] | None:
        """Give every tensor its own step; what the container took for one allocation corrects the next."""
        options = choices(self.state, self.option.plan, self.hessians or {}, curvature, self.option.widths)
        target = self.cap_bytes - self.code_bytes
        best, last = None, None
        packed_by_estimate = 1.0
        for _ in range(_ALLOCATIONS):
            chosen = allocate(options, target / packed_by_estimate)
            estimate = sum(choice.n_bytes for choice in chosen.values())
            if estimate == last:
                break  # every tensor has its finest step already
            last = estimate
            tensors = {name: choice.tensor for name, choice in chosen.items()}
            row = self.record(None, 0, self.size(tensors))
            if row.fits and (best is None or row.n_bytes > best[0].n_bytes):
                best = (row, tensors)
            if row.fits and row.n_bytes > _FULL * target:
                break
            packed_by_estimate = row.n_bytes / estimate * (1.0 if row.fits else 1.0 + _SLACK)
        return best

    def run(self, step_range: tuple[float, float], step_trials: int) -> tuple[FitRow, dict[str, StoredTensor]] | None:
        row, tensors = self.attempt(1.0)
        if self.option.reach == "none" or (self.option.reach == "prune" and row.fits):
            return (row, tensors) if row.fits else None
        if self.option.reach == "prune":
            try:
                costs = zeroing_costs(tensors, self.state, self.hessians or {})
                target = self.cap_bytes - self.code_bytes
                pruned = prune_to_size(tensors, self.size, target, costs=costs, resolution=64)
            except InputError:
                return None
            return self.record(1.0, pruned.zeroed, pruned.n_bytes), pruned.tensors
        fitting = (row, tensors) if row.fits else None
        low, high = (math.log(step_range[0]), 0.0) if row.fits else (0.0, math.log(step_range[1]))
        for trial in range(step_trials):
            # a plan that does not fit is first tried at the end of the range: if that fails, nothing fits
            middle = high if fitting is None and trial == 0 else (low + high) / 2
            row, tensors = self.attempt(math.exp(middle))
            if row.fits:
                settled = fitting is not None and row.n_bytes - fitting[0].n_bytes < (1 - _FULL) * row.n_bytes
                fitting, high = (row, tensors), middle
                if settled or row.total_bytes > _FULL * self.cap_bytes:
                    break
            elif fitting is None and middle == high:
                return None
            else:
                low = middle
        return fitting
