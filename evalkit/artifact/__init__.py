"""Artifacts: compressed models as files.

Reading one never executes code and never allocates past a stated bound.
"""
