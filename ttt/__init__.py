"""Score-first test-time training."""
