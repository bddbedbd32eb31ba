"""Entropy coding of stored tensors: integer arithmetic only, so that every machine decodes the same values."""
