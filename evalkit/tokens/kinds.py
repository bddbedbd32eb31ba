"""The kinds of tokenizer that ``--tokenizer`` takes, told by the name alone."""

from __future__ import annotations

from pathlib import Path

from evalkit.tokens.tokenizer import TextTokenizer, Tokenizer


def open_tokenizer(name: str | Path) -> TextTokenizer:
    """Open a SentencePiece ``.model``, a Hugging Face ``tokenizer.json``, or the word ``bytes``.

    Raises:
        TokenError: there is no such file, it is of no known kind, or its bytes cannot be counted.
    """
    if str(name) == "bytes":
        from evalkit.tokens.raw_bytes import ByteTokenizer

        return ByteTokenizer()
    if str(name).endswith(".json"):
        from evalkit.tokens.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(name)
    return Tokenizer(name)
