"""``--tokenizer bytes``: every byte of the UTF-8 text is a token, and BOS is id 256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from evalkit.tokens.tokenizer import ByteTable, TextTokenizer

_BOS = 256


class ByteTokenizer(TextTokenizer):
    """The 256 bytes and a BOS: nothing is normalised, nothing is unknown."""

    def __init__(self) -> None:
        self.path = "bytes"
        self.sha256 = hashlib.sha256(b"evalkit: 256 bytes and BOS 256").hexdigest()
        self.vocab_size = _BOS + 1
        self.bos_id = _BOS
        self.unk_id = -1
        self.has_byte_fallback = True
        is_bos = np.arange(self.vocab_size) == _BOS
        self.byte_table = ByteTable(
            base=(~is_bos).astype(np.int32), has_space=np.zeros(self.vocab_size, np.bool_), is_boundary=is_bos
        )

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some bytes; what is no UTF-8 becomes the replacement character."""
        return bytes(i for i in ids if i != _BOS).decode("utf-8", "replace")

    def normalize(self, text: str) -> str:
        """Return the text as it is."""
        return text
