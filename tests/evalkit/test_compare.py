"""Comparisons, against numbers worked out by hand."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.plumbing.errors import InputError
from evalkit.prequential.intervals import clustered_mean, interval_halves
from evalkit.report.load import TokenScores, read_report, read_token_scores
from evalkit.report.paired import compare_tokens
from evalkit.report.score_report import FileIdentity
from evalkit.verbs.compare import compare_reports, compare_values
from tests.evalkit.reports import write_report


def test_welch_worked_out_by_hand() -> None:
    # Equal sizes and variances: 2 degrees of freedom, where Student's t is 1/2 + t / (2 sqrt(2 + t^2)).
    # Means 1.1 and 1.4, variances 0.02: t = -0.3 / sqrt(0.02 / 2 + 0.02 / 2) = -2.12132, p = 0.0839748.
    result = compare_values([1.0, 1.2], [1.3, 1.5], metric="val_loss", margin=0.1)
    assert result.t == pytest.approx(-0.3 / math.sqrt(0.02))
    assert result.degrees == pytest.approx(2.0)
    assert result.p_lower == pytest.approx(0.0839748528, abs=1e-9)
    # Lower by more than 0.1: t = -0.2 / sqrt(0.02) = -1.41421, p = 1/2 - 1.41421 / (2 sqrt(4)) = 0.1464466.
    assert result.p_margin == pytest.approx(0.1464466094, abs=1e-9)
    assert result.is_record is False


def test_welch_with_unequal_variances() -> None:
    # Variances 0.04 and 1/60, error^2 = 0.04/3 + 1/240 = 0.0175, t = -0.45 / sqrt(0.0175),
    # degrees = 0.0175^2 / ((0.04/3)^2 / 2 + (1/240)^2 / 3) = 3.2347; p by integrating the density.
    result = compare_values([1.0, 1.2, 1.4], [1.5, 1.6, 1.7, 1.8], metric="bpb")
    degrees = 0.0175**2 / ((0.04 / 3) ** 2 / 2 + (1 / 240) ** 2 / 3)
    t = 0.45 / math.sqrt(0.0175)
    assert result.t == pytest.approx(-t)
    assert result.degrees == pytest.approx(degrees)
    x = np.linspace(0, t, 200_001)
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    density = scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    assert result.p_lower == pytest.approx(0.5 - float(np.trapezoid(density, x)), abs=1e-9)
    assert result.p_margin is None


@pytest.mark.parametrize("still", [[1.0], [1.0, 1.0], [1.0, 1.0 + 1e-15, 1.0]])
def test_a_side_without_spread_enters_no_test(still: list[float]) -> None:
    for new, old in ((still, [1.2, 1.3]), ([1.2, 1.3], still), (still, still)):
        result = compare_values(new, old, metric="val_loss", margin=0.005)
        assert (result.t, result.p_lower, result.p_two_sided, result.low) == (None, None, None, None)
        assert (result.is_record, result.passes_frontier) == (None, None)


def test_clustered_mean_worked_out_by_hand() -> None:
    # Sums 1, 2, 6 with weights 1, 2, 3: mean 1.5, residuals -0.5, -1, 1.5, variance 3/2 * 3.5 / 36.
    mean, half, p = clustered_mean(np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    error = math.sqrt(1.5 * 3.5) / 6
    assert mean == 1.5
    assert half == pytest.approx(4.30265273 * error)  # t of 0.975 with 2 degrees of freedom
    assert p == pytest.approx(0.5 + (1.5 / error) / (2 * math.sqrt(2 + (1.5 / error) ** 2)))
    assert clustered_mean(np.array([1.0]), np.array([2.0])) == (0.5, None, None)


def test_intervals_of_groups_are_those_of_each_group_alone(rng: np.random.Generator) -> None:
    values, weights = rng.uniform(1, 2, 300), rng.integers(1, 5, 300)
    clusters, groups = rng.integers(0, 9, 300), rng.integers(0, 3, 300)
    groups[clusters == 4] = 1
    groups[(groups == 2) & (clusters != 7)] = 0  # a single document fills the last group
    halves = interval_halves(values, weights, clusters, groups, 4)
    assert halves[2:] == [None, None]
    for group in (0, 1):
        here = [(groups == group) & (clusters == c) for c in range(9)]
        here = [mask for mask in here if mask.any()]
        alone = clustered_mean(np.array([values[m].sum() for m in here]), np.array([weights[m].sum() for m in here]))
        assert halves[group] == pytest.approx(alone[1])


def test_one_token_of_a_document_counts_less_than_it_would_alone(rng: np.random.Generator) -> None:
    # 20 documents of 50 tokens that move together: the interval must be that of 20 numbers, not of 1,000.
    tokens = np.tile(np.r_[1, np.full(49, 7)], 20)
    shift = np.repeat(rng.normal(0.0, 1.0, 20), 50)[1:]
    before = np.full(999, 3.0)
    scores = TokenScores(nll=before + shift, num_bytes=np.full(999, 2))
    paired = compare_tokens(scores, TokenScores(nll=before, num_bytes=np.full(999, 2)), tokens, bos=1)
    assert paired.documents == 20
    assert paired.low is not None
    assert paired.high is not None
    naive = 1.96 * shift.std() / math.sqrt(999)
    assert paired.high - paired.low > 5 * 2 * naive
    assert paired.better_documents + paired.worse_documents == 20
    assert paired.bpb == pytest.approx(shift.sum() / math.log(2) / 1998)


def test_paired_names_what_changed() -> None:
    tokens = np.array([1, 5, 6, 1, 7, 8, 9])
    before = np.ones(6)
    after = before.copy()
    after[4] -= 0.75
    num_bytes = np.full(6, 2)
    paired = compare_tokens(TokenScores(nll=after, num_bytes=num_bytes), TokenScores(nll=before, num_bytes=num_bytes),
                            tokens, bos=1, decode=lambda ids: " ".join(map(str, ids)))  # fmt: skip
    assert paired.documents == 2
    assert paired.better_documents == 1
    assert paired.worse_documents == 0
    first = paired.most_changed_positions[0]
    assert (first["position"], first["token"], first["nats"]) == (5, "8", 0.25)
    assert (paired.most_changed_documents[0]["document"], paired.most_changed_documents[0]["position"]) == (1, 3)


@pytest.fixture
def runs(scored: tuple[Path, Path], tmp_path: Path, rng: np.random.Generator) -> dict[str, Path]:
    """Seeds of two systems: new ones are lower by 0.02 nats per token, with a spread of 0.001."""
    saved = read_report(scored[0])
    scores = read_token_scores(scored[0].with_suffix(".npz"), saved)
    paths = {}
    for name, shift in (("old", 0.0), ("new", -0.02), ("same", 0.0001)):
        for seed in range(3):
            moved = scores.nll + shift + rng.normal(0, 0.001)
            assert saved.report.artifact is not None
            own = replace(saved.report.artifact, sha256=hashlib.sha256(f"{name}{seed}".encode()).hexdigest())
            report = replace(saved.report, artifact=own)
            paths[f"{name}{seed}"] = write_report(tmp_path / f"{name}{seed}.json", report, moved, scores.num_bytes)
    return paths


def test_command_says_what_is_significant(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    def compare(name: str) -> str:
        new, old = [str(runs[f"{name}{i}"]) for i in range(3)], [str(runs[f"old{i}"]) for i in range(3)]
        assert run_command(["compare", *new, "--baseline", *old, "--json", str(tmp_path / "c.json")]) == 0
        return str(capsys.readouterr().out)

    text = compare("new")
    assert ": significant at 0.01" in text
    assert "the rule of 0.005 nats at p < 0.01 is met" in text
    assert json.loads((tmp_path / "c.json").read_text())["rule"]["met"] is True
    text = compare("same")
    assert "not significant" in text
    assert "is not met" in text


def test_command_pairs_two_runs(runs: dict[str, Path], capsys) -> None:
    assert run_command(["compare", str(runs["new0"]), "--baseline", str(runs["old0"])]) == 0
    text = capsys.readouterr().out
    assert "token by token" in text
    assert "documents as units: lower" in text
    assert "6 better, 0 worse" in text


def test_command_summarises_seeds_without_a_baseline(runs: dict[str, Path], capsys) -> None:
    assert run_command(["compare", str(runs["old0"]), str(runs["old1"])]) == 0
    assert "sd" in capsys.readouterr().out


@pytest.mark.parametrize("copy", ["named thrice", "file", "hard link", "symbolic link", "scored again", "other spans"])
def test_copies_of_one_run_are_one_run(copy: str, runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    first = runs["new0"]
    values = json.loads(first.read_text())
    second = tmp_path / "copy.json"
    if copy == "named thrice":
        second = first
    elif copy == "hard link":
        second.hardlink_to(first)
    elif copy == "symbolic link":
        second.symlink_to(first)
    else:
        if copy == "scored again":  # another path and clock, the same scores
            values["artifact"]["path"], values["seconds"], values["tokens_per_second"] = "elsewhere/m.evk", 9.0, 7.0
        if copy == "other spans":  # another chain over the same scores, up to rounding
            values["ledger_sha256"] = "a" * 64
            for name in ("nats", "val_loss", "bpb"):
                values[name] *= 1 + 1e-10
        second.write_text(json.dumps(values))
    old = [str(runs[f"old{i}"]) for i in range(3)]
    assert (
        run_command(
            ["compare", str(first), str(second), str(second), "--baseline", *old, "--json", str(tmp_path / "c.json")]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "counted once" in captured.err
    assert "Warning" not in captured.err
    assert "significant" not in captured.out
    assert "p = " not in captured.out.split("token by token")[0]
    result = json.loads((tmp_path / "c.json").read_text())
    assert len(result["metrics"]["val_loss"]["values"]) == 1
    assert result["metrics"]["val_loss"]["p_lower"] is None
    assert (result["rule"]["met"], result["later_rule"]["met"], len(result["repeated"])) == (None, None, 2)
    assert run_command(["compare", str(first), str(second)]) == 0
    assert "sd" not in capsys.readouterr().out


def test_a_run_on_both_sides_is_refused(runs: dict[str, Path], capsys) -> None:
    two = [str(runs["new0"]), str(runs["new1"])]
    assert run_command(["compare", *two, "--baseline", str(runs["old0"]), two[0]]) == 2
    assert "one run; a run stands on one side alone" in capsys.readouterr().err


def test_other_contexts_are_said(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    saved = read_report(runs["new0"])
    values = saved.report.to_dict() | {"context": "documents"}
    runs["new0"].write_text(json.dumps(values))
    pair, result = [str(runs["new0"]), "--baseline", str(runs["old0"])], tmp_path / "c.json"
    assert run_command(["compare", *pair, "--json", str(result)]) == 0
    assert "--context documents (" in capsys.readouterr().out
    (caution,) = json.loads(result.read_text())["cautions"]
    assert "different estimators" in caution
    assert run_command(["compare", str(runs["new0"]), str(runs["new1"])]) == 0
    assert "different estimators" in capsys.readouterr().out
    assert run_command(["compare", str(runs["new1"]), "--baseline", str(runs["old0"]), "--json", str(result)]) == 0
    assert json.loads(result.read_text())["cautions"] == []


def test_what_a_report_stands_on_is_no_output(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    saved = read_report(runs["new0"])
    assert saved.report.artifact is not None
    files = {name: tmp_path / name for name in ("net.py", "w.pt", "more.py", "m.evk")}
    for path in files.values():
        path.write_text("mine")
    net, weights, more = (FileIdentity(path=str(files[n]), sha256="0" * 64, bytes=4) for n in list(files)[:3])
    for path, format_ in ((f"{files['net.py']}:make", "module"), (str(files["m.evk"]), "evalkit")):
        own = replace(saved.report.artifact, path=path, format=format_, files=(net, weights), code=(more,))
        runs["new0"].write_text(json.dumps(replace(saved.report, artifact=own).to_dict()))
        outputs = [files[name] for name in ("net.py", "w.pt", "more.py")]
        for output in outputs if format_ == "module" else [*outputs, files["m.evk"]]:
            for command in (["report", str(runs["new0"]), "-o"], ["compare", str(runs["new0"]), "--json"]):
                assert run_command([*command, str(output)]) == 2
                assert "one of the inputs" in capsys.readouterr().err
    assert {path.read_text() for path in files.values()} == {"mine"}


def test_repeats_of_one_artifact_are_said(runs: dict[str, Path], capsys) -> None:
    first, second = (json.loads(runs[f"new{i}"].read_text()) for i in range(2))
    second["artifact"]["sha256"] = first["artifact"]["sha256"]
    runs["new1"].write_text(json.dumps(second))
    assert run_command(["compare", *(str(runs[f"new{i}"]) for i in range(2))]) == 0
    assert "repeats of one run tell less than seeds do" in capsys.readouterr().err


def test_both_rules_are_offered(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    new, old = [str(runs[f"new{i}"]) for i in range(3)], [str(runs[f"old{i}"]) for i in range(3)]
    assert run_command(["compare", *old, "--baseline", *new, "--json", str(tmp_path / "c.json")]) == 0
    assert "at p < 0.25 is not met" in capsys.readouterr().out
    assert run_command(["compare", *new, "--baseline", *old, "--json", str(tmp_path / "c.json")]) == 0
    assert "at p < 0.25 is met" in capsys.readouterr().out
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["later_rule"] == {"nats": 0.0, "p": 0.25, "met": True}
    # One-sided p between the two rules: 1/2 + t / (2 sqrt(2 + t^2)) with t = -1 / sqrt(2) is 0.276.
    assert compare_values([1.0, 1.2], [1.1, 1.3], metric="val_loss").passes_frontier is False
    assert compare_values([1.0, 1.2], [1.2, 1.4], metric="val_loss", margin=0.005).passes_frontier is True


@pytest.mark.parametrize("change", [{"bpb": 1.0}, {"val_loss": 1.0}, {"nats": 9.0}, {"bytes_scored": 7}])
@pytest.mark.parametrize("command", ["compare", "report", "submit"])
def test_a_report_that_contradicts_itself_is_refused(
    command: str, change: dict[str, float], runs: dict[str, Path], tmp_path: Path, capsys
) -> None:
    runs["new0"].write_text(json.dumps(json.loads(runs["new0"].read_text()) | change))
    out, report = str(tmp_path / "out"), str(runs["new0"])
    words = {
        "compare": ["compare", report, "--baseline", str(runs["old0"])],
        "report": ["report", report, "-o", out],
        "submit": ["submit", out, "--report", report, "--name", "n", "--author", "a"],
    }
    assert run_command(words[command]) == 2
    assert "by its other fields it is" in capsys.readouterr().err
    assert not Path(out).exists()


def test_other_tokens_are_refused(runs: dict[str, Path], capsys) -> None:
    values = json.loads(runs["new0"].read_text())
    values["tokens"]["sha256"] = "0" * 64
    runs["new0"].write_text(json.dumps(values))
    assert run_command(["compare", str(runs["new0"]), "--baseline", str(runs["old0"])]) == 2
    assert "scored different tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match="different tokens"):
        compare_reports([read_report(runs["new0"])], [read_report(runs["old0"])])


def test_a_per_token_file_of_another_run_is_refused(runs: dict[str, Path], capsys) -> None:
    arguments = [
        "--nll",
        str(runs["old1"].with_suffix(".npz")),
        "--baseline-nll",
        str(runs["old0"].with_suffix(".npz")),
    ]
    assert run_command(["compare", str(runs["new0"]), "--baseline", str(runs["old0"]), *arguments]) == 2
    assert "not of the same run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"bpb": NaN}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"stages": {}}', "summary of evalkit run"),
        ('{"bpb": 1}', "has no format number; this evalkit reads format 2: score again"),
        ('{"format": 1, "bpb": 1}', "is of format 1; this evalkit reads format 2: score again"),
        ('{"format": 3, "bpb": 1}', "is of format 3"),
        ('{"format": true}', "is of format True"),
        ('{"format": 2, "bpb": 1}', "lacks artifact, recipe"),
    ],
)
def test_files_that_are_no_reports(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_report(tmp_path / "r.json")
