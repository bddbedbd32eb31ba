"""A model without weights: the names and shapes of its tensors, and no memory for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT


class _NoInitialValues(TorchFunctionMode):
    """Leaves initial values out: on the meta device they have no effect, and import torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def empty_model(config: ModelConfig) -> GPT:
    """Return a model on the meta device."""
    with torch.device("meta"), _NoInitialValues():
        return GPT(config)
