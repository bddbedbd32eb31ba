"""The model: one GPT whose features are switched on by a frozen configuration."""

from evalkit.model.config import ModelConfig

__all__ = ["ModelConfig"]
