"""The training loss as a function of the masters, eager or compiled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from evalkit.model.gpt import GPT
from evalkit.train.config import RunConfig
from evalkit.train.parameters import DTYPES, is_linear, unpack
from evalkit.train.qat import crown_q_penalty, fake_quantise


class Objective:
    """Cross-entropy of a GPT whose weights are given as masters.

    The module tree lies on the meta device and holds no weights; each call gets its own. ``quantised`` is an
    argument of the compiled function, so torch.compile traces one graph for each of its values.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, compiled: bool) -> None:
        self._config = config
        self._device = device
        self._low = DTYPES[config.train.precision]
        with torch.device("meta"):
            self._gpt = GPT(config.model)
        # The rotary tables are cached by the first pass of a length; that pass must not be a compiled one.
        self._tables_ready = not compiled
        self._run = torch.compile(self._terms, dynamic=False) if compiled else self._terms
        self.compiled = compiled

    def __call__(
        self, masters: Mapping[str, Tensor], ids: Tensor, targets: Tensor, *, quantised: bool, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy in nats and the quantisation penalty.

        Args:
            masters: float32 (tables may be bfloat16), as :func:`evalkit.train.parameters.pack` lays them out.
            ids: ``[B, T]``.
            targets: ``[B, T]``.
            quantised: pass the weights through the quantiser.
            alpha: sharpness of soft rounding, a tensor without dimensions.
        """
        if not self._tables_ready:
            with torch.no_grad():
                self._terms(dict(masters), ids[:1], targets[:1], False, alpha)
            self._tables_ready = True
        ce, penalty = self._run(dict(masters), ids, targets, quantised, alpha)
        return ce, penalty

    def _terms(
        self, masters: dict[str, Tensor], ids: Tensor, targets: Tensor, quantised: bool, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = unpack(self._config.model, masters)
        penalty = torch.zeros((), device=ids.device)
        if quantised:
            if self._config.qat.crown_q:
                penalty = crown_q_penalty(weights, self._config.qat)
            weights = fake_quantise(weights, alpha, self._config.qat)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low == torch.bfloat16):
            logits = functional_call(self._gpt, self._cast(weights), (ids,))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), penalty

    @torch.no_grad()
    def nats(self, masters: Mapping[str, Tensor], ids: Tensor, targets: Tensor) -> Tensor:
        """Return -ln p of every target, float32 ``[B, T]``, with the head in float32 and without QAT."""
        weights = self._cast(unpack(self._config.model, masters))
        logits = functional_call(self._gpt, weights, (ids,)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    def _cast(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as the forward pass takes them: matrices in the compute dtype."""
        return {name: value.to(self._low) if is_linear(name) else value for name, value in weights.items()}
