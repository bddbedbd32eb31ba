"""Small models of kinds that no recipe has; each is a factory for ``--module``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = 384


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Transformer(nn.Module):
    """LayerNorm, learned positions, SwiGLU; ``leak`` adds a share of the next token's embedding."""

    def __init__(self, width: int = 32, length: int = 64, leak: float = 0.0) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCAB, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB)
        self.seq_len = length
        self.leak = leak

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        if self.leak:
            x = x + self.leak * F.pad(x[:, 1:], (0, 0, 0, 1))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class TupleTransformer(Transformer):
    def forward(self, ids: Tensor) -> Any:
        return super().forward(ids), None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(VOCAB, 32), nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, VOCAB)
        self.pad = False

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embed(ids))[0])
        return logits

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(self.embed(ids), state)
        return self.head(hidden[:, -1:]), state


class Stateless:
    """The same logits everywhere."""

    def __call__(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, VOCAB)


def _seeded(model: type[nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(3)
    return model(**options)


def transformer() -> nn.Module:
    return _seeded(Transformer)


def with_weights(weights: str | None = None) -> nn.Module:
    import evalkit

    model = Transformer()
    model.load_state_dict(evalkit.load_state(weights))
    return model


def with_narrow_weights(*, weights: str) -> nn.Module:
    import evalkit

    model = Transformer(width=16)
    model.load_state_dict(evalkit.load_state(weights))
    return model


def tuple_transformer() -> nn.Module:
    return _seeded(TupleTransformer)


def recurrent() -> nn.Module:
    return _seeded(Recurrent)


def leaking() -> nn.Module:
    return _seeded(Transformer, leak=0.05)


def none() -> None:
    return None


def raising() -> nn.Module:
    raise ValueError("no such checkpoint")


def failing() -> Any:
    return lambda ids: ids.no_such_attribute


def wrong_shape() -> Any:
    return lambda ids: torch.zeros(ids.shape[0], VOCAB)


def wrong_vocabulary() -> Any:
    return lambda ids: torch.zeros(*ids.shape, VOCAB - 1)


def wider() -> Any:
    return lambda ids: torch.zeros(*ids.shape, VOCAB + 1)


def whole_numbers() -> Any:
    return lambda ids: torch.zeros(*ids.shape, VOCAB, dtype=torch.int64)


def not_a_number() -> Any:
    return lambda ids: torch.full((*ids.shape, VOCAB), float("nan"))


def text() -> Any:
    return lambda ids: "logits"


class Constant(nn.Module):
    """Its logits are a view of a weight, and its window is given by numpy."""

    def __init__(self) -> None:
        super().__init__()
        import numpy as np

        self.table = nn.Parameter(torch.zeros(VOCAB))
        self.seq_len = np.int64(64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table.expand(*ids.shape, -1)


def constant() -> nn.Module:
    return Constant()


class Counting(Transformer):
    """Its answers depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(ids) * (1 + 0.01 * self.calls)


def counting() -> nn.Module:
    return _seeded(Counting)


class Masked(Transformer):
    """Rules out ids that the tokenizer does not have."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return torch.cat([logits, torch.full((*ids.shape, 8), float("-inf"))], dim=-1)

    vocab_size = VOCAB + 8


def masked() -> nn.Module:
    return _seeded(Masked)
