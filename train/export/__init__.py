"""Artifacts out of checkpoints: quantise, fit under the cap, write."""
