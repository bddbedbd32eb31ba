"""The version of evalkit, the one place that says it: a checkout need not be installed to know it."""

__version__ = "0.2.0"
