"""A Hugging Face ``tokenizer.json``: byte-level BPE, and pieces with a space mark and byte fallback.

The bytes of a token are read off its own string: in a byte-level vocabulary every character stands for one byte; in
the other kind the mark U+2581 stands for a space and ``<0x41>`` for the byte 0x41. Other decoders (WordPiece, say) do
not restore the text, so bytes cannot be counted and they are refused.

The map from bytes to characters is that of GPT-2 (Radford et al., 2019): printable bytes stand for themselves, the
others for the characters from U+0100 on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.plumbing.errors import TokenError
from evalkit.tokens.tokenizer import MARK_BYTES, SPACE_MARK, ByteTable, TextTokenizer, byte_table, decoded_pieces

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BYTE_CHARACTERS = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 324))))
"""What stands for the 256 bytes in a byte-level vocabulary: 188 of them for themselves, 68 from U+0100 on."""

_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|endoftext|>", "<bos>", "<|startoftext|>", "[CLS]", "<|im_start|>")


class HuggingFaceTokenizer(TextTokenizer):
    """A ``tokenizer.json``; needs the extra ``evalkit[hf]``.

    The token that opens a document is the one that the file's post-processor puts first, else the first of the usual
    names (``<s>``, ``<|begin_of_text|>``, ``<|endoftext|>``, ...) that the vocabulary has.

    Raises:
        TokenError: the file is missing or damaged, or its bytes cannot be counted.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise TokenError(f"tokenizer {path} needs Hugging Face's tokenizers: pip install 'evalkit[hf]'") from None
        self.path = str(path)
        if not Path(path).is_file():
            raise TokenError(f"tokenizer {path} does not exist or is not a file")
        content = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._backend: Any = Backend.from_str(content.decode("utf-8"))
            description = json.loads(content)
        except Exception as error:  # the library raises bare exceptions
            raise TokenError(f"{path} is not a Hugging Face tokenizer.json ({error})") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = int(self._backend.get_vocab_size(with_added_tokens=True))
        pieces = {int(id_): str(piece) for piece, id_ in self._backend.get_vocab(with_added_tokens=True).items()}
        if sorted(pieces) != list(range(self.vocab_size)):
            raise TokenError(f"the ids of tokenizer {path} are not 0 to {self.vocab_size - 1:,} without gaps")
        special = {int(token["id"]): bool(token.get("special")) for token in description.get("added_tokens") or ()}
        by_name = {piece: id_ for id_, piece in pieces.items()}
        self.bos_id = self._find_bos(description, by_name)
        self.unk_id = _find_unknown(description.get("model") or {}, pieces)
        kinds = set(_kinds(description.get("decoder")))
        self._is_byte_level = "ByteLevel" in kinds
        decoder = json.dumps(description.get("decoder"), ensure_ascii=False)
        restores_space = kinds & {"Metaspace", "ByteFallback"} or SPACE_MARK in decoder
        if not self._is_byte_level and not restores_space:
            raise TokenError(
                f"tokenizer {path} decodes by {', '.join(sorted(kinds)) or 'nothing'}, which does not give back the "
                f"text; bytes can be counted for byte-level tokenizers and for pieces with the space mark"
            )
        self.has_byte_fallback = self._is_byte_level or any(map(_BYTE_PIECE.fullmatch, pieces.values()))
        self.byte_table = self._build_byte_table(pieces, special)
        if not self._is_byte_level and all(piece in by_name for piece in MARK_BYTES):
            self.mark_ids = tuple(by_name[piece] for piece in MARK_BYTES)

    def _find_bos(self, description: dict[str, Any], by_name: dict[str, int]) -> int:
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        if len(full) > len(bare) and full[0] != bare[0]:
            return int(full[0])
        special = {str(t["content"]) for t in description.get("added_tokens") or () if t.get("special")}
        return next((by_name[name] for name in _BOS_NAMES if name in by_name and name in special), -1)

    def _build_byte_table(self, pieces: dict[int, str], special: dict[int, bool]) -> ByteTable:
        ids = range(self.vocab_size)
        is_boundary = np.array([special.get(i, False) or i == self.unk_id for i in ids], dtype=np.bool_)
        added = np.array([i in special for i in ids], dtype=np.bool_)
        if self._is_byte_level:
            for i in np.flatnonzero(~added & ~is_boundary).tolist():
                if not _BYTE_CHARACTERS.issuperset(pieces[i]):
                    raise TokenError(
                        f"tokenizer {self.path}: piece {pieces[i]!r} is not written in byte-level characters"
                    )
            # A character of a piece is a byte; an added token is its own text.
            sizes = [len(pieces[i].encode("utf-8")) if added[i] else len(pieces[i]) for i in ids]
            base = np.where(is_boundary, 0, sizes).astype(np.int32)
            return ByteTable(base=base, has_space=np.zeros(self.vocab_size, np.bool_), is_boundary=is_boundary)
        is_byte = np.array([bool(_BYTE_PIECE.fullmatch(pieces[i])) for i in ids], dtype=np.bool_) & ~added
        spelled = [pieces[i] if added[i] else pieces[i].replace(SPACE_MARK, " ") for i in ids]
        # Added tokens stay as they are written: a decoder may take the space before them for its own.
        texts = decoded_pieces(self._backend.decode_batch, spelled, is_boundary | is_byte | added)
        table = byte_table(texts, is_byte=is_byte, is_boundary=is_boundary)
        return ByteTable(
            base=np.where(added & ~is_boundary, [len(text.encode("utf-8")) for text in texts], table.base).astype(
                np.int32
            ),
            has_space=table.has_space & ~added,
            is_boundary=is_boundary,
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens vanish."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer sees it."""
        normalizer = self._backend.normalizer
        if normalizer is None:
            return text
        normalized = str(normalizer.normalize_str(text))
        return normalized if self._is_byte_level else normalized.replace(SPACE_MARK, " ")


def _find_unknown(model: dict[str, Any], pieces: dict[int, str]) -> int:
    """Return the id of the unknown token, or -1: a unigram model says the id, the others the piece."""
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    unknown = model.get("unk_token")
    return next((id_ for id_, piece in pieces.items() if unknown is not None and piece == unknown), -1)


def _kinds(decoder: Any) -> Iterator[str]:
    """Yield the types of a decoder and of those inside it."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders") or ():
            yield from _kinds(inner)
