"""State dicts as training scripts save them: find the weights inside a checkpoint, and undo what wrappers did to names.

``torch.compile`` puts ``_orig_mod.`` into names and ``DistributedDataParallel`` and ``AveragedModel`` put ``module.``,
in any nesting and, where blocks are wrapped one by one, in the middle of a name. A training checkpoint keeps the
weights beside the optimizer's state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from evalkit.plumbing.errors import ArtifactError

_WRAPPERS = re.compile(r"(^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "module", "weights", "net")
_OTHERS = frozenset(
    {"optimizer", "optimizers", "optimizer_state_dict", "optim", "scheduler", "scaler", "rng", "rng_state"}
)
_COUNTERS = frozenset({"n_averaged"})

Value = TypeVar("Value")


def weights_of(content: object, kind: type[Value]) -> dict[str, Value] | None:
    """Return the named tensors in what was saved, or None if there are none to be found.

    Args:
        content: a state dict, or a dict that keeps one under a usual name such as ``model`` or ``state_dict``, or a
            single one under another name. Numbers beside the tensors, such as a step count, are left out.
        kind: the type of a tensor.

    Raises:
        ArtifactError: two tensors have one name once the wrappers are gone.
    """
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        return None
    for key in _WEIGHTS_KEYS:
        found = weights_of(content.get(key), kind)
        if found is not None:
            return found
    named = {name: value for name, value in content.items() if isinstance(value, kind)}
    rest = [value for name, value in content.items() if name not in named]
    if any("." in name for name in named) or not any(isinstance(value, Mapping) for value in rest):
        plain = all(value is None or isinstance(value, bool | int | float | str) for value in rest)
        return _unwrapped(named) if named and plain else None
    inside = [weights_of(value, kind) for name, value in content.items() if name not in _OTHERS]
    stored = [value for value in inside if value is not None]
    return stored[0] if len(stored) == 1 else None


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers put into it."""
    return _WRAPPERS.sub("", name)


def _unwrapped(named: Mapping[str, Value]) -> dict[str, Value]:
    unwrapped: dict[str, Value] = {}
    for name, value in named.items():
        plain = plain_name(name)
        if plain in _COUNTERS:
            continue
        if plain in unwrapped:
            raise ArtifactError(f"the checkpoint holds {plain} twice, once inside a wrapper; expected one state dict")
        unwrapped[plain] = value
    return unwrapped
