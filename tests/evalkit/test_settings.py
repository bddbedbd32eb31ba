"""One parser for every setting: ``--set``, TOML and JSON mean the same in every section."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.mixers.config import MixerConfig, default_config
from evalkit.model.config import ModelConfig
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import by_section, coerce, configured, split_settings
from evalkit.prequential.streaming import StreamingConfig
from evalkit.train.config import SECTIONS
from evalkit.ttt.config import TTTConfig
from evalkit.verbs.options import ScoreOptions

MODEL = ModelConfig(vocab_size=64, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64)
BASES: dict[str, Any] = {
    "model": MODEL,
    "mixer": default_config(64),
    "ttt": TTTConfig(),
    "streaming": StreamingConfig(),
    **{name: kind() for name, kind in SECTIONS.items()},
}


@dataclass(frozen=True)
class Sample:
    flag: bool = False
    count: int = 0
    rate: float = 0.0
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    triple: tuple[float, float, float] = (1.0, 2.0, 3.0)
    triples: tuple[tuple[float, float, float], ...] = ()
    prior: tuple[float, ...] | None = None


@pytest.mark.parametrize("section", BASES)
def test_every_field_of_every_section_survives_the_way_through_text(section: str) -> None:
    base = BASES[section]
    values = {field.name: _text(getattr(base, field.name)) for field in dataclasses.fields(base)}
    assert configured(base, values, section) == base


def _text(value: object) -> str:
    if isinstance(value, tuple):
        separator = ";" if value and isinstance(value[0], tuple) else ","
        return separator.join(map(_text, value))
    return str(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70), st.booleans())
def test_numbers_and_truths_are_read_as_written(rate: float, count: int, flag: bool) -> None:
    text = {"rate": repr(rate), "count": str(count), "flag": str(flag)}
    assert configured(Sample(), text, "s") == Sample(rate=rate, count=count, flag=flag)
    assert configured(Sample(), json.loads(json.dumps({"rate": rate, "count": count, "flag": flag})), "s") == Sample(
        rate=rate, count=count, flag=flag
    )


@pytest.mark.parametrize("word", ["yes", "on", "True", "1"])
@pytest.mark.parametrize(("section", "key"), [("model", "ln_scale"), ("ttt", "compare"), ("qat", "enabled")])
def test_yes_is_true_in_every_section(section: str, key: str, word: str) -> None:
    assert getattr(configured(BASES[section], {key: word}, section), key) is True


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("flag", "maybe", "expected true or false"),
        ("count", "1.5", "expected a whole number"),
        ("count", "inf", "expected a whole number"),
        ("count", True, "expected a whole number"),
        ("rate", "nan", "expected a finite number"),
        ("rate", "1e999", "expected a finite number"),
        ("rate", 10**400, "expected a finite number"),
        ("kind", "c", "expected a or b"),
        ("triple", "1,2", "expected 3 finite numbers separated by commas"),
        ("triples", "1,2", "expected groups of 3 finite numbers"),
        ("prior", "1,x", "expected finite numbers separated by commas or none"),
        ("cuont", "1", r"s.cuont is not a setting \(did you mean count\?\)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(key: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        configured(Sample(), {key: value}, "s")


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("ttt", "learning_rate", "inf"),
        ("model", "leaky_slope", "nan"),
        ("mixer", "discounts", "0.5,0.7"),
        ("mixer", "discounts", "5,7,9"),
        ("mixer", "prior", "1,2"),
        ("mixer", "vocab_size", "1"),
        ("streaming", "block", "0"),
        ("ttt", "order", "sideways"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_name(section: str, key: str, text: str) -> None:
    with pytest.raises(InputError, match=section):
        configured(BASES[section], {key: text}, section)


def test_discounts_and_priors_can_be_set() -> None:
    config: MixerConfig = configured(
        BASES["mixer"], {"discounts": "0.5,0.7,0.9;0.6,0.8,1", "prior": "1,2,3,4,5,6"}, "mixer"
    )
    assert config.discounts == ((0.5, 0.7, 0.9), (0.6, 0.8, 1.0))
    assert config.prior == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert configured(config, {"prior": "none", "discounts": "0.5,0.7,0.9"}, "mixer").prior is None


@pytest.mark.parametrize("text", ["model.rope_base", "rope_base=1", ".x=1", "model.=1", "=1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected SECTION\.KEY=VALUE"):
        split_settings([text])


def test_settings_are_grouped_and_the_last_wins() -> None:
    flat = split_settings(["ttt.epochs=1", "model.rope_base = 5", "ttt.epochs=2"])
    assert by_section(flat, ("model", "ttt")) == {"model": {"rope_base": "5"}, "ttt": {"epochs": "2"}}
    with pytest.raises(InputError, match="did you mean mixer"):
        by_section({"mixr.eta": "1"}, ("model", "mixer"))


@pytest.mark.parametrize(
    ("section", "more", "words"),
    [
        ("ttt", {}, "add --ttt"),
        ("mixer", {"ttt": True}, "add --mixer hedge"),
        ("streaming", {}, "add --context streaming"),
        ("model", {"artifact": None, "mixer": "hedge"}, "there is no artifact"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(section: str, more: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"artifact": "a", "tokenizer": "t", "text": "x"} | more
    with pytest.raises(InputError, match=words):
        ScoreOptions(**given, settings={section: {"key": "1"}})


def test_a_name_tells_the_value_that_was_wrong() -> None:
    with pytest.raises(InputError, match=r"model\.rope_base is 'high'; expected a finite number"):
        coerce("model.rope_base", "high", float)


@pytest.mark.parametrize("option", ["seq_len", "recipe", "source", "log", "context"])
def test_options_of_a_model_where_there_is_none_are_said(option: str) -> None:
    values = {option: {"seq_len": 0, "context": "documents"}.get(option, "x")}
    with pytest.raises(InputError, match=rf"--{option.replace('_', '-')} would change nothing here: there is no model"):
        ScoreOptions(tokenizer="bytes", text="x", mixer="hedge", **values)  # type: ignore[arg-type]
