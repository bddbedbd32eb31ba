"""The errors that evalkit raises on purpose.

An :class:`InputError` is the user's to fix: the command line prints its one sentence and exits with code 2.
Anything else that escapes is a bug in evalkit and exits with code 1.
"""


class EvalkitError(Exception):
    """Base of every error raised on purpose."""


class InputError(EvalkitError):
    """The input is unusable. The message says what was found, what was expected and what to do."""


class ArtifactError(InputError):
    """An artifact cannot be read, or is not what it declares."""


class TokenError(InputError):
    """A shard, a text or a tokenizer cannot be used."""


class ForecasterError(EvalkitError):
    """A forecaster broke its protocol: wrong shape, a value that is not finite, tokens written to."""
