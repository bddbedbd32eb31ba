"""The trained parameters: their roles, and the two ways they are stored.

A GPT is evaluated functionally: its module tree stays on the meta device, and each forward pass gets a
dictionary of weights under the names of the model's state dict. What is trained (the masters) may be that
dictionary itself or parameter banks, from which the weights are cut. Casting and fake quantisation sit
between the two, so they reach every weight in either layout, and a compiled step sees them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from evalkit.model.config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Role = Literal["attention", "mlp", "projection", "table", "head", "vector"]
"""``attention`` and ``mlp`` matrices of the blocks; ``projection`` of hash and value embeddings; embedding
``table``; untied ``head``; everything else (gains, mixes, gates, scales) is a ``vector``."""

_ROLES: dict[Role, re.Pattern[str]] = {
    "attention": re.compile(r"blocks\.\d+\.attn\.(c_q|c_k|c_v|proj)\.weight|bank\.(qo|kv)"),
    "mlp": re.compile(r"blocks\.\d+\.mlp\.(fc|proj)\.weight|bank\.mlp_(up|down)"),
    "projection": re.compile(r"(bigram|trigram|ve_shared)\.proj\.weight"),
    "table": re.compile(r"(tok_emb|(bigram|trigram|ve_shared)\.embed)\.weight"),
    "head": re.compile(r"lm_head\.weight"),
}

BANKS: dict[str, tuple[str, ...]] = {
    "bank.qo": ("attn.c_q", "attn.proj"),
    "bank.kv": ("attn.c_k", "attn.c_v"),
    "bank.mlp_up": ("mlp.fc",),
    "bank.mlp_down": ("mlp.proj",),
}
"""Bank name to the matrices it stacks: all layers of the first, then all layers of the second."""


def role_of(name: str) -> Role:
    """Return the role of the weight ``name`` of a GPT's state dict, or of a bank."""
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(name)), "vector")


def is_linear(name: str) -> bool:
    """Whether the weight is cast to the compute dtype: it multiplies activations, and is not the head."""
    return role_of(name) in ("attention", "mlp", "projection") or name.endswith(("attn_gate.weight", "attn_gate.bias"))


def bank_members(config: ModelConfig, bank: str) -> list[str]:
    """Return the weight names of a bank's slices, in order."""
    return [f"blocks.{layer}.{kind}.weight" for kind in BANKS[bank] for layer in range(config.num_layers)]


def pack(config: ModelConfig, weights: Mapping[str, Tensor], *, banks: bool) -> dict[str, Tensor]:
    """Return the masters that hold a GPT's ``weights``: copies, block matrices stacked into banks if asked."""
    if not banks:
        return {name: value.detach().clone() for name, value in weights.items()}
    masters = {name: torch.stack([weights[m].detach() for m in bank_members(config, name)]) for name in BANKS}
    banked = {member for bank in BANKS for member in bank_members(config, bank)}
    return masters | {name: value.detach().clone() for name, value in weights.items() if name not in banked}


def unpack(config: ModelConfig, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a GPT's state dict from its masters; gradients flow through the views of banks."""
    weights: dict[str, Tensor] = {}
    for name, value in masters.items():
        if name in BANKS:
            weights.update(zip(bank_members(config, name), value.unbind(0), strict=True))
        else:
            weights[name] = value
    return weights
