"""Hugging Face causal language models that lie on this disk, as models for ``--module``.

    evalkit score --module evalkit.hf:load --weights DIR --tokenizer DIR/tokenizer.json --text alice29.txt

``DIR`` holds ``config.json`` and safetensors, as ``save_pretrained`` writes them; a ``.gguf`` file will do where
transformers can read its architecture. Nothing is fetched: transformers is told to stay offline. Needs the extra
``evalkit[hf]``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.plumbing.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE")
"""Environment variables that keep transformers off the network, and its progress bars out of the logs."""


def load(weights: str | None = None) -> nn.Module:
    """Return the causal language model in a folder or a GGUF file, in evaluation mode.

    Remote code of a model is never executed: an architecture that transformers itself does not have is refused.

    Raises:
        InputError: nothing was named, transformers is missing, or it cannot read the model.
    """
    if weights is None:
        raise InputError("evalkit.hf:load needs --weights: the model's folder, or a .gguf file")
    path = Path(weights)
    if not path.exists():
        raise InputError(f"--weights {weights} does not exist")
    for name in _SETTINGS:
        os.environ.setdefault(name, "1")
    try:
        import transformers
    except ImportError:
        raise InputError("evalkit.hf:load needs Hugging Face's transformers: pip install 'evalkit[hf]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # transformers raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"transformers cannot read {weights}: {reason}") from error
    return _causal(model)


def _causal(model: Any) -> nn.Module:
    from torch import nn

    class CausalLanguageModel(nn.Module):
        """Token ids to logits, with the rows before ``first_row`` spared the head."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
            length = getattr(model.config, "max_position_embeddings", None)
            self.seq_len = min(int(length), 2048) if length else None

        def forward(self, ids: Tensor) -> Tensor:
            """Return logits ``[B, T, V]`` for ids ``[B, T]``."""
            return self.logits_from(ids, 0)

        def logits_from(self, ids: Tensor, first_row: int) -> Tensor:
            """Return the logits of rows ``first_row ..``."""
            logits: Tensor = self.model(ids, use_cache=False, logits_to_keep=ids.shape[1] - first_row).logits
            return logits

        def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
            """Return the logits of the token after ``ids`` and the cache that holds them."""
            out = self.model(ids, past_key_values=state, use_cache=True, logits_to_keep=1)
            return out.logits, out.past_key_values

    return CausalLanguageModel().eval()
