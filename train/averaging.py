"""Averages of the weights, in float32 whatever the masters' dtype, since a bfloat16 EMA stalls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evalkit.train.config import AverageKind, AveragingConfig


class WeightAverages:
    """The EMA and SWA of the masters, updated after every optimizer step.

    The first sample is always a copy: an alias of the live weights would be changed by the next step.
    """

    def __init__(self, masters: Mapping[str, Tensor], config: AveragingConfig) -> None:
        self.config = config
        self._device = next(iter(masters.values())).device
        self._ema: dict[str, Tensor] | None = None
        self._swa: dict[str, Tensor] | None = None
        self.swa_samples = 0
        if config.ema_decay:
            self._ema = _copy(masters)

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor], *, step: int, lr_scale: float, stretch: float) -> None:
        """Take in the weights after step number ``step`` (counted from 1).

        Args:
            masters: the weights.
            step: steps done.
            lr_scale: learning-rate scale of the step.
            stretch: length of this run over that of the recipe's reference, by which horizons are multiplied.
        """
        config = self.config
        if self._ema is not None:
            decay = config.ema_decay ** (1.0 / stretch)
            averages = list(self._ema.values())
            torch._foreach_lerp_(averages, [masters[name].float() for name in self._ema], 1.0 - decay)
        every = max(1, round(config.swa_every * stretch))
        if config.swa_every and lr_scale < config.swa_start_scale and step % every == 0:
            source = self._ema if config.swa_source == "ema" and self._ema is not None else masters
            self.swa_samples += 1
            if self._swa is None:
                self._swa = _copy(source)
            else:
                means = list(self._swa.values())
                torch._foreach_lerp_(means, [source[name].float() for name in self._swa], 1.0 / self.swa_samples)

    def available(self) -> dict[AverageKind, dict[str, Tensor]]:
        """Return the averages there are: the EMA if kept, the SWA if it has at least two samples."""
        found: dict[AverageKind, dict[str, Tensor]] = {}
        if self._ema is not None:
            found["ema"] = self._ema
        if self._swa is not None and self.swa_samples > 1:
            found["swa"] = self._swa
        return found

    def exported_kind(self) -> AverageKind:
        """Return which weights the recipe exports, given what there is."""
        order: dict[AverageKind, tuple[AverageKind, ...]] = {"swa": ("swa", "ema"), "ema": ("ema",), "raw": ()}
        found = self.available()
        return next((kind for kind in order[self.config.export] if kind in found), "raw")

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"ema": self._ema, "swa": self._swa, "swa_samples": self.swa_samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s output, onto the devices in use."""
        self._ema = self._on_device(state["ema"])
        self._swa = self._on_device(state["swa"])
        self.swa_samples = int(state["swa_samples"])

    def _on_device(self, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        return None if weights is None else {name: value.to(self._device) for name, value in weights.items()}


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().clone() for name, value in weights.items()}
