"""evalkit: bits per byte for compressed language models, with proof that the score is legal."""

__version__ = "0.1.0"
