"""What learns: which of the model's tensors, and whether they learn themselves or through low-rank adapters."""

from __future__ import annotations

import dataclasses
import re

import torch
from torch import Tensor, nn

from evalkit.model.empty import empty_model
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.ttt.config import TTTConfig

_PUBLISHED_WORDS = ("norm", "scale", "lm_head")
_SMALL_TABLES = ("resid_mix", "skip_weights", "skip_gates", "parallel_resid_lambdas", "parallel_post_lambdas")
_ADAPTED = re.compile(r"^blocks\.\d+\.attn\.(c_q|c_v)$")
_ATTENTION = re.compile(r"attn|attention|qkv|(^|[._])[qv](_proj|uery)?$|(^|\.)(query|value|w[qv])$", re.IGNORECASE)
_ADAPTER_INIT = 0.02


class FullWeights:
    """The named weights learn themselves."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        parameters = dict(model.named_parameters())
        self.trained = {name: parameters[name].detach().clone().float() for name in names}

    def weights(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``trained`` as it is."""
        return trained


class LowRankAdapters:
    """W + B A for some linear layers; B starts at zero (Hu et al., 2021)."""

    def __init__(self, model: nn.Module, names: list[str], rank: int, seed: int) -> None:
        parameters = dict(model.named_parameters())
        self._base = {name: parameters[name].detach().clone().float() for name in names}
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


Parameterisation = FullWeights | LowRankAdapters
"""Trained tensors, and the model's weights as a function of them, by parameter name; differentiable."""


def select_names(model: nn.Module, config: TTTConfig) -> list[str]:
    """Return the parameters that ``config.trainable`` names, by the names and the order of the model's parameters.

    Raises:
        InputError: nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = block_prefixes(model)
    if config.trainable == "last_blocks_and_scales":
        last = tuple(blocks[max(len(blocks) - config.blocks, 0) :])
        chosen = [n for n in names if n.startswith(last) or any(word in n for word in _PUBLISHED_WORDS)]
    elif config.trainable == "all_but_first_blocks":
        first = (*blocks[: config.blocks], *_tables(model))
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
    grown = empty_model(dataclasses.replace(model.config, pair_buckets=buckets))
    like = model.tok_emb.weight
    table = torch.zeros(buckets, model.config.model_dim, device=like.device)
    grown.load_state_dict(model.state_dict() | {"pair.weight": table}, assign=True)
    return grown.train(model.training).requires_grad_(like.requires_grad)


def block_prefixes(model: nn.Module) -> list[str]:
    """Return what the names of each block's parameters start with: the entries of the largest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    name, largest = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return [f"{name}.{i}." for i in range(len(largest))]


def _tables(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of an embedding's parameters start with, and those of the head's."""
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and name != "pair"]
    return (*(f"{name}." for name in found), "lm_head.")


def adapted_names(model: nn.Module, config: TTTConfig, vocab_size: int) -> list[str]:
    """Return the weights of the linear layers that adapters correct; see :class:`~evalkit.ttt.config.TTTConfig`.

    Raises:
        InputError: there is no such layer.
    """
    own = {name for name, _ in model.named_parameters()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in own
    }
    if config.match:
        chosen = [name for name in layers if re.search(config.match, name)]
        if not chosen:
            raise InputError(
                f"ttt.match={config.match} matches none of the linear layers: {', '.join(layers) or 'none'}"
            )
    elif isinstance(model, GPT):
        chosen = [name for name in layers if _ADAPTED.match(name)]
    else:
        chosen = (
            [name for name in layers if _ATTENTION.search(name)]
            or [name for name, module in layers.items() if module.out_features != vocab_size]
            or list(layers)
        )
    if not chosen:
        raise InputError(
            "the model has no linear layer that adapters could correct; choose ttt.trainable=all or scales"
        )
    return [f"{name}.weight" for name in chosen]


def parameterise(model: nn.Module, config: TTTConfig, vocab_size: int) -> Parameterisation:
    """Return what ``config`` says shall learn, starting from the model's present weights."""
    if config.trainable == "adapters":
        return LowRankAdapters(model, adapted_names(model, config, vocab_size), config.adapter_rank, config.seed)
    return FullWeights(model, select_names(model, config))
