"""Initial weights: one pass of explicit rules, so that no rule silently overwrites another.

Where a published constructor and its later global pass disagree, the rule here is the one that acted: hash
projections start (scaled) orthogonal under zero tables, and not at zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.train.config import InitConfig
from evalkit.train.parameters import role_of

_VALUE_TABLE_STD = 0.01
_GATE_BIAS = 4.0


def initial_weights(model: ModelConfig, init: InitConfig, *, seed: int) -> dict[str, Tensor]:
    """Return a GPT's float32 state dict at step 0; ``seed`` is of one generator, tensors drawn in the dict's order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        constructed = GPT(model).state_dict()
    weights: dict[str, Tensor] = {}
    for name, value in constructed.items():
        weights[name] = _initial(name, value, model, init, generator)
    return weights


def _initial(name: str, built: Tensor, model: ModelConfig, init: InitConfig, generator: torch.Generator) -> Tensor:
    """Return the initial value of one tensor; ``built`` is the constructor's, which gains and scales keep."""
    shape, role = built.shape, role_of(name)
    if name == "tok_emb.weight":
        table = torch.randn(shape, generator=generator) * init.embedding_std
        return overtone(table) if init.embedding == "overtone" else table
    if role == "table":
        return torch.randn(shape, generator=generator) * _VALUE_TABLE_STD if "ve_shared" in name else torch.zeros(shape)
    if name.endswith(("attn.proj.weight", "mlp.proj.weight")) or role == "head":
        return torch.zeros(shape)
    if name.endswith("attn_gate.weight"):
        return orthogonal(shape, generator) if init.attention_gate == "orthogonal" else torch.zeros(shape)
    if name.endswith("attn_gate.bias"):
        return torch.full(shape, _GATE_BIAS)
    if name.endswith("q_gain"):
        return torch.full(shape, init.q_gain)
    if role in ("attention", "mlp", "projection"):
        if init.linear == "uniform":
            matrix = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])
        else:
            matrix = orthogonal(shape, generator)
        scaled = role == "projection" and init.projection_scaling
        return matrix / math.sqrt(2 * model.num_layers) if scaled else matrix
    if name.endswith("resid_mix") and init.residual_mix == "phase":
        on_x = phase_mix(int(name.split(".")[1]), model.num_layers)
        return torch.tensor([on_x, 1 - on_x]).unsqueeze(1).expand(shape).clone()
    return built.detach().clone()


def orthogonal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a matrix with orthonormal columns if tall, orthonormal rows if wide (Saxe et al., 2014)."""
    matrix: Tensor = torch.nn.init.orthogonal_(torch.empty(shape), generator=generator)
    return matrix


def overtone(table: Tensor) -> Tensor:
    """Return ``table`` with singular values S_1 k^(-1/2), k = 1, 2, ..., and its own vectors (PR333)."""
    u, s, vt = torch.linalg.svd(table, full_matrices=False)
    shaped = s[0] * torch.arange(1, len(s) + 1, dtype=s.dtype) ** -0.5
    result: Tensor = (u * shaped) @ vt
    return result


def phase_mix(layer: int, num_layers: int) -> float:
    """Return the initial weight on x of a layer's residual mix; x0 gets the rest (PR333)."""
    depth = layer / max(num_layers - 1, 1)
    return 1 / (1 + math.exp(-3 * (depth - 0.5)))
