"""What a command does, one module a verb; the command line and the Python interface both stand on them.

``session.py`` is the composition root: it opens the inputs and puts model, mixer and test-time training together.
"""
