"""Real bits from a forecaster: a range coder, the file it is stored in, and the side information of exact texts."""

from evalkit.codec.coder import Coded, compress, decompress
from evalkit.codec.container import Header, read_header
from evalkit.codec.exact import TextCoded, compress_text, decompress_text

__all__ = [
    "Coded",
    "Header",
    "TextCoded",
    "compress",
    "compress_text",
    "decompress",
    "decompress_text",
    "read_header",
]
