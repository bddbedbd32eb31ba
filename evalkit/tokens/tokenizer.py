"""What a tokenizer offers, the bytes that tokens stand for, and the SentencePiece kind."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError

SPACE_MARK = "▁"
"""U+2581, which stands for a space in pieces."""

MARK_BYTES = tuple(f"<0x{byte:02X}>" for byte in SPACE_MARK.encode())


@dataclass(frozen=True, kw_only=True)
class ByteTable:
    """Bytes of text that a target token stands for, by the challenge's rule.

    A piece counts the UTF-8 bytes of its text without the leading space mark; the leading space counts one byte unless
    the token before it is a control, unknown or unused one. Byte-fallback pieces count 1; control, unknown and unused
    pieces count 0.

    Attributes:
        base: bytes of each piece without its leading space, int32 ``[vocab_size]``.
        has_space: whether the piece starts with a space, bool ``[vocab_size]``.
        is_boundary: whether the piece is control, unknown or unused, bool ``[vocab_size]``.
    """

    base: npt.NDArray[np.int32]
    has_space: npt.NDArray[np.bool_]
    is_boundary: npt.NDArray[np.bool_]

    def count(self, previous: npt.NDArray[Any], targets: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return the bytes of each target given the token before it, int32 of the targets' shape."""
        space = self.has_space[targets] & ~self.is_boundary[previous]
        counts: npt.NDArray[np.int32] = self.base[targets] + space.astype(np.int32)
        return counts

    def count_span(self, tokens: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return the bytes of ``tokens[start:stop]``, int32."""
        return self.count(tokens[start - 1 : stop - 1], tokens[start:stop])

    def total(self, tokens: npt.NDArray[Any]) -> int:
        """Return the bytes of ``tokens[1:]``."""
        return int(self.count(tokens[:-1], tokens[1:]).sum(dtype=np.int64))


class ByteCounts(Protocol):
    """What says how many bytes of text the tokens of a stream stand for: a tokenizer's table, or a sidecar."""

    def count_span(self, tokens: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return the bytes of ``tokens[start:stop]``, int32; ``start`` is at least 1."""
        ...


class TextTokenizer(ABC):
    """Text to token ids and back, and the bytes of each token.

    Attributes:
        path: the file, or the word ``bytes``.
        sha256: identity of the vocabulary: the hash of the file's bytes.
        vocab_size: number of token ids.
        bos_id: id that opens each document, or -1.
        unk_id: id of the unknown token, or -1.
        byte_table: bytes of each token.
        has_byte_fallback: whether any text can be tokenised without the unknown token.
        mark_ids: the byte tokens that spell the space mark; empty where there are none.
    """

    path: str
    sha256: str
    vocab_size: int
    bos_id: int
    unk_id: int
    byte_table: ByteTable
    has_byte_fallback: bool
    mark_ids: tuple[int, ...] = ()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; control tokens vanish."""

    @abstractmethod
    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer sees it."""

    def encode_document(self, text: str, *, keep_unknown: bool = False) -> npt.NDArray[np.int32]:
        """Return BOS and the ids of one document, as the challenge's exporter joins them.

        Raises:
            TokenError: the tokenizer has no BOS, or the text needs the unknown token and ``keep_unknown`` is off.
        """
        if self.bos_id < 0:
            raise TokenError(f"tokenizer {self.path} has no BOS token, which opens every document")
        ids = np.array([self.bos_id, *self.encode(text)], dtype=np.int32)
        if not keep_unknown and self.unk_id >= 0 and (ids == self.unk_id).any():
            cause = "byte fallback failed" if self.has_byte_fallback else "it has no byte-fallback pieces"
            raise TokenError(
                f"tokenizer {self.path} cannot write some of the text without its unknown token ({cause}); "
                "`evalkit data tokenize --keep-unknown` makes shards in which that token stands for lost text"
            )
        return ids


class Tokenizer(TextTokenizer):
    """A SentencePiece model read from a file."""

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self.path = str(path)
        if not Path(path).is_file():
            raise TokenError(f"tokenizer {path} does not exist or is not a file")
        content = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except (RuntimeError, TypeError, ValueError):
            raise TokenError(f"{path} is not a SentencePiece model") from None
        self.vocab_size = int(self._processor.vocab_size())
        if self.vocab_size < 1:
            raise TokenError(f"{path} is not a SentencePiece model: it has no pieces")
        self.bos_id = int(self._processor.bos_id())
        self.unk_id = int(self._processor.unk_id())
        self.byte_table = self._build_byte_table()
        self.has_byte_fallback = any(self._processor.is_byte(i) for i in range(self.vocab_size))
        if self.has_byte_fallback:
            self.mark_ids = tuple(int(self._processor.piece_to_id(piece)) for piece in MARK_BYTES)

    def _build_byte_table(self) -> ByteTable:
        sp = self._processor
        ids = range(self.vocab_size)
        is_boundary = np.array([sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in ids], dtype=np.bool_)
        is_byte = np.array([sp.is_byte(i) for i in ids], dtype=np.bool_)
        texts = [sp.id_to_piece(i).replace(SPACE_MARK, " ") for i in ids]
        texts = decoded_pieces(lambda rows: sp.decode(rows), texts, is_boundary | is_byte)
        return byte_table(texts, is_byte=is_byte, is_boundary=is_boundary)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; control tokens vanish."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer sees it."""
        normalized: str = self._processor.normalize(text)
        return normalized


def decoded_pieces(
    decode: Callable[[list[list[int]]], list[str]], spelled: list[str], skip: npt.NDArray[np.bool_]
) -> list[str]:
    """Return the text of every piece inside a text, by the decoder's own output.

    Args:
        decode: token ids of several texts to the texts.
        spelled: the pieces' texts as the vocabulary spells them: what is kept where the decoder's cannot be told, for
            a piece that is only part of a character.
        skip: bool ``[vocab_size]``, pieces that stand for no text of their own.
    """
    anchor = next((i for i, text in enumerate(spelled) if not skip[i] and text.isascii() and text.isalpha()), None)
    if anchor is None:
        return spelled
    wanted = np.flatnonzero(~skip).tolist()
    head, *decoded = decode([[anchor], *([anchor, i] for i in wanted)])
    texts = list(spelled)
    for i, text in zip(wanted, decoded, strict=True):
        if text.startswith(head) and "\ufffd" not in text:
            texts[i] = text[len(head) :]
    return texts


def byte_table(texts: list[str], *, is_byte: npt.NDArray[np.bool_], is_boundary: npt.NDArray[np.bool_]) -> ByteTable:
    """Return the table of a vocabulary whose pieces begin with a space where a word does.

    Args:
        texts: text of every piece.
        is_byte: bool ``[vocab_size]``, pieces that stand for one byte.
        is_boundary: bool ``[vocab_size]``, pieces that stand for none.
    """
    own = ~(is_byte | is_boundary)
    has_space = np.array([text.startswith(" ") for text in texts], dtype=np.bool_) & own
    sizes = np.array([len(text.encode("utf-8")) for text in texts], dtype=np.int32)
    base = np.where(own, sizes - has_space, is_byte).astype(np.int32)
    return ByteTable(base=base, has_space=has_space, is_boundary=is_boundary)
