"""Audits that prove a score legal or not, on behaviour alone: see docs/legality.md for the theory."""
