"""Bytes of text behind tokens, told without the byte table and without believing the decoder.

A tokenizer can write and read back the same thing wrongly: a vocabulary without a piece for a lone space writes the
mark U+2581 as three byte tokens, and its decoder gives the mark back, three bytes for one. So the decoder is asked
about texts that are known: whatever it adds to them is no text. Where a stream's own text is not at hand, texts are
drawn from the vocabulary, encoded, and the bytes that the table counts compared with those that they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from evalkit.tokens.tokenizer import SPACE_MARK, TextTokenizer

_DRAWN_TEXTS = 64
_DRAWN_TOKENS = 12


@dataclass(frozen=True)
class DrawnText:
    """A text for which the byte table counts other bytes than it has."""

    text: str
    counted: int

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return len(self.text.encode("utf-8"))


class ByteWitness:
    """Tells the text of tokens, and the bytes of texts, of one tokenizer."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.mark_is_space = tokenizer.encode(f"a{SPACE_MARK}b") == tokenizer.encode("a b")
        """Whether the text cannot hold the mark itself: it is written as a space is."""
        once = self._plain(tokenizer.decode(tokenizer.encode("a")))
        self._adds = ("" if once != " a" else " ", "" if once != "a " else " ")
        normal = self._plain(tokenizer.normalize("a"))
        self._normalizer_adds = ("" if normal != " a" else " ", "" if normal != "a " else " ")

    def text_of(self, tokens: Iterable[int]) -> str:
        """Return the text of a document's tokens, without BOS."""
        before, after = self._adds
        return self._plain(self._tokenizer.decode(tokens)).removeprefix(before).removesuffix(after)

    def size_of(self, text: str) -> int:
        """Return the bytes of a document's text as the tokenizer normalises it."""
        return len(self._normal(text).encode("utf-8"))

    def drawn_texts(self, seed: int = 0) -> tuple[int, list[DrawnText]]:
        """Draw texts from the vocabulary and count them with the byte table.

        Only texts that normalisation leaves alone are counted. Half of them are pieces in a row, half pieces with
        spaces between them.

        Returns:
            How many texts were counted, and those with a wrong count.
        """
        tokenizer, table = self._tokenizer, self._tokenizer.byte_table
        random = np.random.default_rng(seed)
        pieces = np.flatnonzero(~table.is_boundary)
        if tokenizer.bos_id < 0 or not len(pieces):
            return 0, []
        counted, wrong = 0, []
        for number in range(_DRAWN_TEXTS):
            drawn = random.choice(pieces, _DRAWN_TOKENS).tolist()
            between = " " if number % 2 else ""
            raw = between.join([tokenizer.decode([piece]) for piece in drawn] if between else [tokenizer.decode(drawn)])
            text = self._normal(raw.replace("\ufffd", "")).strip()
            ids = tokenizer.encode(text)
            if not text or tokenizer.unk_id in ids or self._normal(text) != text or self.text_of(ids) != text:
                continue
            row = np.array([tokenizer.bos_id, *ids])
            total = int(table.count(row[:-1], row[1:]).sum())
            counted += 1
            if total != len(text.encode("utf-8")):
                wrong.append(DrawnText(text, total))
        return counted, wrong

    def _plain(self, text: str) -> str:
        return text.replace(SPACE_MARK, " ") if self.mark_is_space else text

    def _normal(self, text: str) -> str:
        before, after = self._normalizer_adds
        return self._plain(self._tokenizer.normalize(text)).removeprefix(before).removesuffix(after)
