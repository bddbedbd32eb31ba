"""evalkit: bits per byte for compressed language models, with proof that the score is legal.

The command line stands on this interface::

    import evalkit

    options = evalkit.ScoreOptions(
        artifact="final_model.int6.ptz",
        tokenizer="fineweb_1024_bpe.model",
        tokens="data/fineweb_val_*.bin",
        mixer="hedge",
    )
    report = evalkit.score(options)
    print(report.bpb, report.val_loss, report.nll.shape)

    legality = evalkit.check(options, evalkit.CheckOptions(budget_seconds=30))
    print(legality.verdict, legality.findings)

Importing evalkit imports nothing heavy: each name is loaded when it is first used, torch with the first that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evalkit.plumbing.version import __version__ as __version__

if TYPE_CHECKING:
    from evalkit.artifact.load import Artifact as Artifact
    from evalkit.artifact.load import load_artifact as load_artifact
    from evalkit.legality.report import Finding as Finding
    from evalkit.legality.report import LegalityReport as LegalityReport
    from evalkit.network.state import load_state as load_state
    from evalkit.plumbing.errors import EvalkitError as EvalkitError
    from evalkit.plumbing.errors import InputError as InputError
    from evalkit.prequential.forecaster import Forecaster as Forecaster
    from evalkit.report.score_report import Scored as Scored
    from evalkit.report.score_report import ScoreReport as ScoreReport
    from evalkit.tokens.tokenizer import Tokenizer as Tokenizer
    from evalkit.verbs.check import CheckOptions as CheckOptions
    from evalkit.verbs.check import check as check
    from evalkit.verbs.check import check_forecaster as check_forecaster
    from evalkit.verbs.options import ScoreOptions as ScoreOptions
    from evalkit.verbs.score import score as score
    from evalkit.verbs.session import Session as Session
    from evalkit.verbs.session import open_session as open_session

_HOMES = {
    "Artifact": "evalkit.artifact.load",
    "load_artifact": "evalkit.artifact.load",
    "CheckOptions": "evalkit.verbs.check",
    "check": "evalkit.verbs.check",
    "check_forecaster": "evalkit.verbs.check",
    "ScoreOptions": "evalkit.verbs.options",
    "Session": "evalkit.verbs.session",
    "open_session": "evalkit.verbs.session",
    "EvalkitError": "evalkit.plumbing.errors",
    "InputError": "evalkit.plumbing.errors",
    "Finding": "evalkit.legality.report",
    "LegalityReport": "evalkit.legality.report",
    "Forecaster": "evalkit.prequential.forecaster",
    "ScoreReport": "evalkit.report.score_report",
    "Scored": "evalkit.report.score_report",
    "score": "evalkit.verbs.score",
    "Tokenizer": "evalkit.tokens.tokenizer",
    "load_state": "evalkit.network.state",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evalkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
