"""What learns: which of the model's tensors, and whether they learn themselves or through low-rank adapters."""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

import torch
from torch import Tensor

from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.ttt.config import TTTConfig

_PUBLISHED_WORDS = ("norm", "scale", "lm_head")
_SMALL_TABLES = ("resid_mix", "skip_weights", "skip_gates", "parallel_resid_lambdas", "parallel_post_lambdas")
_ADAPTED = re.compile(r"^blocks\.\d+\.attn\.(c_q|c_v)\.weight$")
_ADAPTER_INIT = 0.02


class Parameterisation(Protocol):
    """Trained tensors, and the model's weights as a function of them."""

    trained: dict[str, Tensor]

    def weights(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's weights, by parameter name, that ``trained`` stands for; differentiable."""
        ...


class FullWeights:
    """The named weights learn themselves."""

    def __init__(self, model: GPT, names: list[str]) -> None:
        parameters = dict(model.named_parameters())
        self.trained = {name: parameters[name].detach().clone().float() for name in names}

    def weights(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``trained`` as it is."""
        return trained


class LowRankAdapters:
    """W + B A for the query and value matrices of every block; B starts at zero (Hu et al., 2021)."""

    def __init__(self, model: GPT, rank: int, seed: int) -> None:
        self._base = {n: p.detach().clone().float() for n, p in model.named_parameters() if _ADAPTED.match(n)}
        generator = torch.Generator().manual_seed(seed)
        self.trained: dict[str, Tensor] = {}
        for name, base in self._base.items():
            rows, columns = base.shape
            a = torch.randn(rank, columns, generator=generator) * _ADAPTER_INIT
            self.trained[f"{name}:a"] = a.to(base.device)
            self.trained[f"{name}:b"] = torch.zeros(rows, rank, device=base.device)

    def weights(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the corrected matrices."""
        return {name: base + trained[f"{name}:b"] @ trained[f"{name}:a"] for name, base in self._base.items()}


def select_names(model: GPT, config: TTTConfig) -> list[str]:
    """Return the parameters that ``config.trainable`` names.

    Raises:
        InputError: nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = model.config.num_layers
    if config.trainable == "last_blocks_and_scales":
        last = tuple(f"blocks.{layer}." for layer in range(max(layers - config.blocks, 0), layers))
        chosen = [n for n in names if n.startswith(last) or any(word in n for word in _PUBLISHED_WORDS)]
    elif config.trainable == "all_but_first_blocks":
        first = (*(f"blocks.{layer}." for layer in range(min(config.blocks, layers))), "tok_emb.", "lm_head.")
        chosen = [n for n in names if not n.startswith(first) and ".embed." not in n]
    elif config.trainable == "scales":
        vectors = {n for n, p in model.named_parameters() if p.ndim < 2}
        chosen = [n for n in names if n in vectors or n.endswith(_SMALL_TABLES)]
    else:
        chosen = names
    if not chosen:
        raise InputError(f"ttt.trainable={config.trainable} with ttt.blocks={config.blocks} leaves nothing to train")
    return chosen


def with_pair_table(model: GPT, buckets: int) -> GPT:
    """Return the model with a table of token pairs, filled with zeros, that changes nothing yet; weights are shared."""
    if not buckets:
        return model
    with torch.device("meta"):
        grown = GPT(dataclasses.replace(model.config, pair_buckets=buckets))
    like = model.tok_emb.weight
    table = torch.zeros(buckets, model.config.model_dim, device=like.device)
    grown.load_state_dict(model.state_dict() | {"pair.weight": table}, assign=True)
    return grown.train(model.training).requires_grad_(like.requires_grad)


def parameterise(model: GPT, config: TTTConfig) -> Parameterisation:
    """Return what ``config`` says shall learn, starting from the model's present weights."""
    if config.trainable == "adapters":
        return LowRankAdapters(model, config.adapter_rank, config.seed)
    return FullWeights(model, select_names(model, config))
