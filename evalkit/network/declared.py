"""What a model says of itself, read without importing torch: the width of its logits and its window."""

from __future__ import annotations

import sys
from numbers import Integral
from typing import Any

from evalkit.plumbing.errors import InputError


def model_vocabulary(model: Any, tokenizer_size: int, name: str) -> int:
    """Return the width of a model's logits: what it says, else the tokenizer's.

    Raises:
        InputError: it says something else than a number, or fewer than the tokenizer has.
    """
    size = getattr(model, "vocab_size", None)
    if size is None:
        return tokenizer_size
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise InputError(f"{name}: vocab_size is {shown(size)}; expected a whole number")
    if int(size) < tokenizer_size:
        raise InputError(
            f"{name} has a vocabulary of {int(size):,}, the tokenizer one of {tokenizer_size:,}: wrong model or wrong "
            f"--tokenizer"
        )
    return int(size)


def model_window(model: Any, name: str) -> int | None:
    """Return the window that a model asks for, or None.

    Raises:
        InputError: ``seq_len`` is something else than a positive number.
    """
    length = getattr(model, "seq_len", None)
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, Integral) or int(length) < 1:
        raise InputError(f"{name}: seq_len is {shown(length)}; expected a positive whole number of tokens")
    return int(length)


def shown(value: object) -> str:
    """Return a value as a message shows it: short, with its type."""
    if value is None:
        return "None"
    torch = sys.modules.get("torch")  # without it there is no tensor
    if torch is not None and isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else f"a {type(value).__name__}"
