"""The prequential core: score a span, write it down, and only then let the forecaster learn from it."""
