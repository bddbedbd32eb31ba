"""The checks: one module a claim, each a function from what was read to claims."""
