"""Optimizers: Muon for matrices, by themselves or in banks, and Adam(W) for the rest."""
