"""The page: complete, self-contained, and honest about what it leaves out."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalkit
from evalkit.cli.main import run_command
from evalkit.legality.report import Finding, LegalityReport
from evalkit.plumbing.typed_json import to_json
from evalkit.prequential.buckets import BucketSums
from evalkit.prequential.windows import plan_windows
from evalkit.report import series
from evalkit.report.load import TokenScores, open_report_stream, read_report, read_token_scores
from evalkit.report.passages import choose_passages, passage_spans
from tests.evalkit.reports import check_of, write_check, write_report


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


@pytest.fixture(scope="module")
def page(scored: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    moved = Finding(axiom="causality", position=7, evidence={}, message="moved")
    covered = {
        "audit": {"audited_tokens": 641, "stream_tokens": 8001, "span": 64, "false_alarm_probability": 1e-6},
        "suffix": {"positions": 3},
        "decode": {"tokens": 50, "decoded": True},
    }
    made = check_of(scored[0], moved, uncovered=("x </script><b>y</b>",)).with_(covered=covered)
    check = write_check(folder / "check.json", made)
    arguments = ["report", str(scored[0]), "--check", check, "-o", str(folder / "page.html")]
    assert run_command(arguments) == 0
    return folder / "page.html"


def test_page_is_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s)>]+)', text.split('<script id="data"')[0])
    assert links == ["data:,"]
    assert "{{" not in text.split('<script id="data"')[0]
    code = text.split("</script>")[1]
    assert re.findall(r"https?://[^\s\"']+", code) == ["http://www.w3.org/2000/svg"]  # a name, never fetched
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", code)
    assert "innerHTML" not in code


def test_text_of_strangers_cannot_become_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 2
    assert data_of(text)["check"]["uncovered"] == ["x </script><b>y</b>"]
    assert any("</script>" in "".join(s[0] for s in p["spans"]) for p in data_of(text)["passages"])


def test_page_holds_every_part(page: Path, scored: tuple[Path, Path]) -> None:
    data = data_of(page.read_text(encoding="utf-8"))
    report = read_report(scored[0]).report
    assert data["stream"]["running"][-1] == pytest.approx(report.bpb)
    assert data["report"]["verdict"] == "illegal"
    assert len(data["scatter"]) == data["documents"]["count"] == 6
    assert report.mixer_report is not None
    names = list(report.mixer_report["experts"])
    assert [expert["name"] for expert in data["mixer"]["experts"]] == names
    assert len(data["chunks"]) >= 2
    assert sum(r["tokens"] for r in data["surprise"]) == pytest.approx(1)
    assert sum(r["bits"] for r in data["surprise"]) == pytest.approx(1)
    assert any(row["name"] == "tok_emb.weight" for row in data["bytes"])
    assert data["reliability"]["positions"] == report.tokens_scored
    assert sum(p["tokens"] for p in data["reliability"]["points"]) == report.tokens_scored * 384
    assert not any("reliability" in sentence for sentence in data["left_out"])
    assert report.command is not None
    assert data["command"].startswith("evalkit score ")
    assert "--set ttt.chunk_tokens=256" in data["command"]
    assert {row["name"] for row in data["coverage"]["audits"]} == {"suffix", "decode"}
    assert data["coverage"]["summary"].startswith("641 of 8,001 tokens audited (8.0%), in spans of 64; ")


def test_the_network_alone_runs_beside_the_mixture(page: Path, scored: tuple[Path, Path]) -> None:
    stream, report = data_of(page.read_text(encoding="utf-8"))["stream"], read_report(scored[0]).report
    assert report.network_stream is not None
    assert math.fsum(report.network_stream["nats"]) == pytest.approx(report.network_nats, rel=1e-12)
    assert stream["others"].keys() == {"network alone"}
    assert stream["others"]["network alone"]["running"][-1] == pytest.approx(report.network_bpb)
    assert len(stream["position"]) == len(stream["local"]) == len(stream["others"]["network alone"]["local"]) > 20
    assert stream["position"][-1] == report.tokens_scored


def test_the_frozen_network_runs_beside_test_time_training(
    scored: tuple[Path, Path], tiny_artifact: Path, tokenizer_path: Path
) -> None:
    options = evalkit.ScoreOptions(
        artifact=str(tiny_artifact), tokenizer=str(tokenizer_path), tokens=str(scored[1]), seq_len=64,
        limit_tokens=600, threads=1,
    )  # fmt: skip
    training = {"settings": {"ttt": {"chunk_tokens": "128", "compare": "true"}}, "ttt": True}
    frozen = evalkit.score(options)
    for mixer in ("none", "hedge"):
        ttt_report = evalkit.score(replace(options, mixer=mixer, **training)).ttt_report
        assert ttt_report is not None
        nats, size = np.array(ttt_report["frozen_stream"]["nats"]), ttt_report["frozen_stream"]["tokens"]
        expected = np.add.reduceat(frozen.nll, np.arange(0, 600, size))
        np.testing.assert_allclose(nats, expected, rtol=1e-6)
        assert ttt_report["gain"]["bpb"] is not None


def test_buckets_of_a_long_stream_are_joined_and_still_add_up(rng: np.random.Generator) -> None:
    values, sums, whole = rng.uniform(0, 9, 300_001), BucketSums(), BucketSums()
    for piece in np.split(values, [0, 1, 5_000, 70_003, 200_000]):
        sums.add(piece)
        resumed = BucketSums()
        resumed.load_state_dict(sums.state_dict())
        sums = resumed
    whole.add(values)
    held = sums.report()
    assert held["tokens"] == whole.report()["tokens"] == 512
    expected = np.add.reduceat(values, np.arange(0, 300_001, 512))
    np.testing.assert_allclose(held["nats"], expected, rtol=1e-12)
    np.testing.assert_allclose(whole.report()["nats"], expected, rtol=1e-12)
    scores = TokenScores(nll=values, num_bytes=np.full(300_001, 3))
    stream = series.along_stream(scores, {"other": to_json(held)})
    np.testing.assert_allclose(stream["local"], stream["others"]["other"]["local"])
    assert len(stream["position"]) <= 160
    with pytest.raises(ValueError, match="buckets of 512 tokens for 7 tokens"):
        series.along_stream(TokenScores(nll=values[:7], num_bytes=np.ones(7, int)), {"other": held})


def test_intervals_take_documents_as_units(scored: tuple[Path, Path], page: Path) -> None:
    data, saved = data_of(page.read_text(encoding="utf-8")), read_report(scored[0])
    stream, tokenizer = open_report_stream(saved)
    scores = read_token_scores(scored[0].with_suffix(".npz"), saved)
    owner = series.document_index(stream.read(0, len(stream)), tokenizer.bos_id)
    bits = np.array([scores.nll[owner == d].sum() for d in range(6)]) / math.log(2)
    num_bytes = np.array([scores.num_bytes[owner == d].sum() for d in range(6)])
    residual = bits - bits.sum() / num_bytes.sum() * num_bytes
    error = math.sqrt(6 / 5 * (residual**2).sum()) / num_bytes.sum()
    assert data["half"] == pytest.approx(2.5705818 * error)  # t of 0.975 with 5 degrees of freedom
    assert all(row["half"] > 0 for row in data["window_position"])


@pytest.fixture(scope="module")
def pair(scored: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run and another that is 0.5 nats dearer at the first token of every document."""
    folder, saved = tmp_path_factory.mktemp("pair"), read_report(scored[0])
    scores = read_token_scores(scored[0].with_suffix(".npz"), saved)
    stream, tokenizer = open_report_stream(saved)
    dearer = scores.nll + 0.5 * (stream.read(0, len(stream))[:-1] == tokenizer.bos_id)
    other = write_report(folder / "other.json", replace(saved.report, stride=32), dearer, scores.num_bytes)
    assert run_command(["report", str(scored[0]), str(other), "-o", str(folder / "pair.html")]) == 0
    return folder / "pair.html"


def test_two_runs_on_one_page(pair: Path, scored: tuple[Path, Path]) -> None:
    data, report = data_of(pair.read_text(encoding="utf-8")), read_report(scored[0]).report
    assert [run["name"] for run in data["runs"]] == ["A", "B"]
    assert data["paired"]["nats_per_token"] == pytest.approx(-0.5 * 6 / report.tokens_scored)
    assert data["paired"]["better_documents"] == len(data["documents"]) == 6
    assert sum(row["bits"] for row in data["by_cost"]) == pytest.approx(-3 / math.log(2))
    assert data["stream"]["others"]["baseline"]["running"][-1] == pytest.approx(data["runs"][1]["bpb"])
    assert ["stride", "64", "32"] in data["differences"]
    assert data["passages"]
    moved = [d["nats"] - d["baseline_nats"] for d in data["paired"]["most_changed_positions"]]
    assert moved[:6] == pytest.approx([-0.5] * 6)


def test_what_two_runs_need(scored: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    report = str(scored[0])
    alone = shutil.copy(report, tmp_path / "alone.json")
    for words, said in (
        ([report, str(alone)], "comparing two runs needs --dump-nll of both"),
        ([report, report, report], "a page is about one"),
        ([report, report, "--nll", str(scored[0].with_suffix(".npz"))], "give one for each"),
        ([report, report, "--check", report], "--check goes with the page of one report"),
    ):
        assert run_command(["report", *words, "-o", str(tmp_path / "p.html")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def test_chunks_and_documents_add_up_to_the_score(scored: tuple[Path, Path]) -> None:
    saved = read_report(scored[0])
    report, scores = saved.report, read_token_scores(scored[0].with_suffix(".npz"), saved)
    stream, tokenizer = open_report_stream(saved)
    tokens = stream.read(0, len(stream))
    documents = series.by_document(scores, series.document_index(tokens, tokenizer.bos_id))
    total = sum(b * n for b, n in zip(documents["bpb"], documents["bytes"], strict=True))
    assert total / scores.num_bytes.sum() == pytest.approx(report.bpb)
    assert sum(documents["tokens"]) == len(scores.nll)
    assert report.ttt_report is not None
    chunks = series.by_chunk(scores, report.ttt_report["chunks"])
    assert chunks[-1]["stop"] == len(scores.nll)
    positions = series.by_document_position(scores, tokens, tokenizer.bos_id)
    assert positions["starts"] == 5
    assert sum(row["tokens"] for row in positions["rows"]) == len(scores.nll) - 5


@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 3), (64, 40), (50, 1)])
def test_position_in_the_window_is_that_of_the_plan(rng: np.random.Generator, seq_len: int, stride: int) -> None:
    scores = TokenScores(nll=rng.uniform(1, 2, 333), num_bytes=rng.integers(1, 5, 333))
    expected: dict[int, list[int]] = {}
    for span in plan_windows(1, 334, seq_len, stride):
        for position in range(span.start, span.stop):
            if span.window_start > 0:
                expected.setdefault(position - span.window_start, []).append(position)
    rows = series.by_window_position(scores, seq_len, stride)
    assert sum(row["tokens"] for row in rows) == 333 - seq_len
    for row in rows:
        first, last = map(int, row["label"].split("\u2013"))
        held = [p - 1 for context in range(first, last + 1) for p in expected[context]]
        assert row["tokens"] == len(held)
        assert row["bpb"] == pytest.approx(scores.nll[held].sum() / math.log(2) / scores.num_bytes[held].sum())
    assert series.by_window_position(scores, 400, 8) == []


def test_passages_give_back_the_text(scored: tuple[Path, Path]) -> None:
    saved = read_report(scored[0])
    report, scores = saved.report, read_token_scores(scored[0].with_suffix(".npz"), saved)
    stream, tokenizer = open_report_stream(saved)
    tokens = stream.read(0, len(stream))
    spans = passage_spans(scores, tokens, tokenizer, 0, len(scores.nll))
    documents = "".join(text for text, _, _ in spans).split("\u21b5")
    edges = [*np.flatnonzero(tokens == tokenizer.bos_id).tolist(), len(tokens)]
    for text, start, stop in zip(documents, edges[:-1], edges[1:], strict=True):
        assert text == tokenizer.decode(tokens[start + 1 : stop])
    assert "naïve" in documents[0]
    assert "😀" in documents[0]
    assert sum(nats for _, nats, _ in spans) == pytest.approx(report.nats, abs=1e-3 * len(spans))
    assert sum(number for _, _, number in spans) == len(scores.nll)


def test_choice_of_passages(rng: np.random.Generator) -> None:
    nll = rng.uniform(1, 2, 3200)
    nll[640:960] += 5
    nll[1600:1920] -= 0.9
    picks = {title: start for title, start, _ in choose_passages(TokenScores(nll=nll, num_bytes=np.full(3200, 2)))}
    assert picks["The beginning"] == 0
    assert picks["The costliest"] == 640
    assert picks["The cheapest"] == 1600
    short = TokenScores(nll=np.ones(5), num_bytes=np.zeros(5, dtype=np.int64))
    assert choose_passages(short) == [("The beginning", 0, 5)]


def test_page_without_anything_but_the_report(scored: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    values = json.loads(scored[0].read_text())
    values["artifact"]["path"] = "gone.ptz"
    del values["reliability"]
    (tmp_path / "alone.json").write_text(json.dumps(values))
    assert run_command(["report", str(tmp_path / "alone.json"), "-o", str(tmp_path / "p.html")]) == 0
    out = capsys.readouterr().out
    for part in ("--dump-nll", "gone.ptz", "--check", "--reliability"):
        assert part in out


def test_the_page_of_the_published_mixer(scored: tuple[Path, Path], tmp_path: Path) -> None:
    weights = {"mixer": "published", "mixer_report": {"experts": ["neural", "unigram"], "weights": [0.9, 0.1]}}
    (tmp_path / "p.json").write_text(json.dumps(json.loads(scored[0].read_text()) | weights))
    assert run_command(["report", str(tmp_path / "p.json"), "-o", str(tmp_path / "p.html")]) == 0
    assert data_of((tmp_path / "p.html").read_text())["mixer"] is None


def test_the_stream_of_a_report_may_lie_in_packed_shards(scored: tuple[Path, Path], tmp_path: Path) -> None:
    saved = read_report(scored[0])
    packed = tmp_path / "val.bin.gz"
    packed.write_bytes(gzip.compress(scored[1].read_bytes(), mtime=0))
    names = replace(saved.report.tokens, names=(str(packed),))
    moved = replace(saved, report=replace(saved.report, tokens=names))
    assert open_report_stream(moved)[0].sha256() == saved.report.tokens.sha256


def test_shards_that_changed_are_left_out_or_refused(scored: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    saved = read_report(scored[0])
    scores = read_token_scores(scored[0].with_suffix(".npz"), saved)
    other = replace(saved.report, tokens=replace(saved.report.tokens, sha256="1" * 64))
    path = write_report(tmp_path / "r.json", other, scores.nll, scores.num_bytes)
    assert run_command(["report", str(path), "-o", str(tmp_path / "p.html")]) == 0
    assert "are not those that" in capsys.readouterr().out
    assert run_command(["report", str(path), "--tokens", str(scored[1]), "-o", str(tmp_path / "p.html")]) == 2


def test_a_malformed_report_is_one_sentence(scored: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    for name, value in (
        ("mixer_report", {"experts": [1, 2]}),
        ("ttt_report", {"chunks": [3]}),
        ("reliability", {"positions": 3, "tokens": [0.5], "expected": [], "occurred": "x"}),
    ):
        values = json.loads(scored[0].read_text()) | {name: value}
        (tmp_path / "r.json").write_text(json.dumps(values))
        shutil.copy(scored[0].with_suffix(".npz"), tmp_path / "r.npz")
        assert run_command(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "p.html")]) == 2
        assert "evalkit score writes it" in capsys.readouterr().err


def test_a_check_of_another_score_is_refused(scored: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    check, page = tmp_path / "check.json", tmp_path / "p.html"
    for change in ({"mixer": "published"}, {"stride": 7}, {"artifact_sha256": "0" * 64}):
        subject = check_of(scored[0]).covered["subject"]
        write_check(check, LegalityReport(covered={"subject": {**subject, **change}}))
        assert run_command(["report", str(scored[0]), "--check", str(check), "-o", str(page)]) == 2
        assert next(iter(change)) in capsys.readouterr().err
        assert not page.exists()
    write_check(check, LegalityReport())
    assert run_command(["report", str(scored[0]), "--check", str(check), "-o", str(page)]) == 2
    assert "what was checked" in capsys.readouterr().err
    check.write_text('{"verdict": "legal"}')
    assert run_command(["report", str(scored[0]), "--check", str(check), "-o", str(page)]) == 2
    assert "has no format number; this evalkit reads format 2: check again" in capsys.readouterr().err


def test_documents_without_bytes_have_no_bits_per_byte() -> None:
    scores = TokenScores(nll=np.array([1.0, 2.0, 3.0]), num_bytes=np.array([0, 0, 4]))
    documents = series.by_document(scores, np.array([0, 1, 1]))
    assert documents["bpb"] == [None, pytest.approx(5 / math.log(2) / 4)]
    assert series.thinned(documents) == [[4, documents["bpb"][1], 1]]


TITLES = {
    "page": [
        "Along the stream", "The difference", "Calibration", "Gain of each expert", "Where the artifact",
        "By position in the window", "Text, coloured by cost", "Legality", "641 of 8,001 tokens audited", "Covered",
    ],
    "pair": ["Along the stream", "By document", "Tokens that differ most", "coloured by the difference"],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page in")
@pytest.mark.parametrize("which", ["page", "pair"])
def test_page_opens_in_a_browser_without_errors(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    opened: Path = request.getfixturevalue(which)
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", opened.resolve().as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    for title in TITLES[which]:
        assert title in done.stdout
    assert "<path" in done.stdout
