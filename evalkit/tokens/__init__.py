"""Tokens and bytes: shards, texts, tokenizers and the byte denominator."""
