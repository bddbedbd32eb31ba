"""Errors, files, settings, progress, tables: what every part uses and no part is about."""
