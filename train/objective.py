"""The training loss as a function of the masters, eager or compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evalkit.model.config import ModelConfig
from evalkit.model.empty import empty_model
from evalkit.model.gpt import GPT, head_name
from evalkit.train.config import RunConfig
from evalkit.train.fused_loss import softcapped_cross_entropy, softcapped_nats
from evalkit.train.parameters import DTYPES, is_linear, unpack
from evalkit.train.qat import crown_q_penalty, fake_quantise


class _HeadInput(nn.Module):
    """A GPT up to what its head reads."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, ids: Tensor) -> Tensor:
        """Return float32 ``[B, T, d]`` for tokens ``[B, T]``."""
        return self.gpt.head_input(self.gpt.hidden(ids))


class Objective:
    """Cross-entropy of a GPT whose weights are given as masters.

    The module tree lies on the meta device and holds no weights; each call gets its own. ``quantised`` and ``looped``
    are arguments of the compiled function, so torch.compile traces a graph for each of their values.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, compiled: bool) -> None:
        self._config = config
        self._device = device
        self._low = DTYPES[config.train.precision]
        whole = _HeadInput(empty_model(config.model))
        self._hidden = {True: whole}
        if config.model.layer_order:
            self._hidden[False] = _HeadInput(empty_model(unlooped(config.model)))
        else:
            self._hidden[False] = whole
        # The rotary tables are cached by the first pass of a length; that pass must not be a compiled one.
        self._tables_ready = not compiled
        self._run = torch.compile(self._terms, dynamic=False) if compiled else self._terms
        self.compiled = compiled

    def __call__(
        self,
        masters: Mapping[str, Tensor],
        ids: Tensor,
        targets: Tensor,
        *,
        quantised: bool,
        alpha: Tensor,
        looped: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy in nats and the quantisation penalty.

        Args:
            masters: float32 (tables may be bfloat16), as :func:`evalkit.train.parameters.pack` lays them out.
            ids: ``[B, T]``.
            targets: ``[B, T]``.
            quantised: pass the weights through the quantiser.
            alpha: sharpness of soft rounding, a tensor without dimensions.
            looped: visit the blocks in the model's order; otherwise each once.
        """
        if not self._tables_ready:
            with torch.no_grad():
                for each in dict.fromkeys(self._hidden.values()):
                    self._terms(dict(masters), ids[:1], targets[:1], False, alpha, each is self._hidden[True])
            self._tables_ready = True
        ce, penalty = self._run(dict(masters), ids, targets, quantised, alpha, looped)
        return ce, penalty

    def _terms(
        self, masters: dict[str, Tensor], ids: Tensor, targets: Tensor, quantised: bool, alpha: Tensor, looped: bool
    ) -> tuple[Tensor, Tensor]:
        weights = unpack(self._config.model, masters)
        penalty = torch.zeros((), device=ids.device)
        if quantised:
            if self._config.qat.crown_q:
                penalty = crown_q_penalty(weights, self._config.qat)
            weights = fake_quantise(weights, alpha, self._config.qat)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low == torch.bfloat16):
            x = self._head_input(weights, ids, looped)
        return softcapped_cross_entropy(x, *self._head(weights, targets)), penalty

    @torch.no_grad()
    def nats(self, masters: Mapping[str, Tensor], ids: Tensor, targets: Tensor, *, looped: bool = True) -> Tensor:
        """Return -ln p of every target, float32 ``[B, T]``, with the head in float32 and without QAT."""
        weights = unpack(self._config.model, masters)
        x = self._head_input(weights, ids, looped)
        return softcapped_nats(x, *self._head(weights, targets)).view_as(targets)

    def _head_input(self, weights: Mapping[str, Tensor], ids: Tensor, looped: bool) -> Tensor:
        """Return what the head reads, float32 ``[B T, d]``."""
        named = {f"gpt.{name}": value for name, value in self._cast(weights).items()}
        x: Tensor = functional_call(self._hidden[looped], named, (ids,))
        return x.flatten(0, 1)

    def _head(self, weights: Mapping[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the head's weight, the targets in a row and the soft cap."""
        model = self._config.model
        return weights[f"{head_name(model)}.weight"].float(), targets.flatten(), model.logit_softcap

    def _cast(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as the forward pass takes them: matrices in the compute dtype."""
        return {name: value.to(self._low) if is_linear(name) else value for name, value in weights.items()}


def unlooped(config: ModelConfig) -> ModelConfig:
    """Return the model whose pass visits every block once, with the weights of ``config``'s.

    The table of skips keeps its rows; those that the shorter pass has no skip for do not act.
    """
    return dataclasses.replace(config, layer_order=(), skip_rows=config.num_skips)
