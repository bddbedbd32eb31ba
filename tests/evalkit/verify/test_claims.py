"""Every claim holds in a folder that tells one story, and is contradicted where one thing in it is changed."""

from __future__ import annotations

import base64
import json
import lzma

import pytest
from folders import Made

from evalkit.verify.claim import KINDS
from evalkit.verify.verify import VerifyReport, verify_folder


def contradicted(report: VerifyReport) -> set[str]:
    return {c.claim for c in report.claims if c.status == "contradicted"}


def held(report: VerifyReport) -> set[str]:
    return {c.claim for c in report.claims if c.status == "holds"}


def test_a_folder_that_tells_one_story_is_consistent(made: Made) -> None:
    report = verify_folder(made.write())
    assert report.verdict == "consistent"
    assert held(report) == {"score", "bpb", "coverage", "size", "time", "seeds", "configuration", "data", "files"}
    assert {c.claim for c in report.claims} == set(KINDS)


def test_every_piece_of_evidence_is_the_line_that_it_names(made: Made) -> None:
    made.model = 16_100_000
    path = made.write()
    report = verify_folder(path)
    places = [p for c in report.claims for p in c.evidence]
    assert places
    for place in places:
        assert (path / place.file).read_text().split("\n")[place.line - 1].strip() == place.text


def test_a_score_that_no_log_has(made: Made) -> None:
    made.declared["val_bpb"] = 1.09512345
    report = verify_folder(made.write())
    assert contradicted(report) == {"score"}
    claim = next(c for c in report.claims if c.claim == "score")
    assert claim.stated == 1.09512345
    assert claim.evidence[0].file == "submission.json"
    assert any(p.file.endswith(".log") for p in claim.evidence)


@pytest.mark.parametrize("stated", [1.10156789, 1.1016, 1.101568, 1.10157])
def test_a_mean_is_compared_at_the_printed_digits(made: Made, stated: float) -> None:
    made.declared["val_bpb"] = stated
    assert "score" in held(verify_folder(made.write()))


def test_a_seed_whose_log_says_otherwise(made: Made) -> None:
    made.declared["seed_results"] = {str(s): {"val_bpb": v + (2e-4 if s == 2 else 0)} for s, v in made.bpb.items()}
    report = verify_folder(made.write())
    assert contradicted(report) == {"score"}
    assert "seed 2" in next(c.message for c in report.claims if c.status == "contradicted")


def test_a_score_of_a_training_step_is_no_final_score(made: Made) -> None:
    made.declared = {"val_bpb": 1.25, "seed_results": {}}
    assert contradicted(verify_folder(made.write())) == {"score"}


def test_a_score_that_stands_in_a_table_leaves_the_folder_incomplete(made: Made) -> None:
    made.declared = {"val_bpb": 1.09512345, "seed_results": {}}
    path = made.write()
    (path / "results.csv").write_text("name,val_bpb\nrepacked,1.09512345\n")
    assert verify_folder(path).verdict == "incomplete"


def test_a_wrong_count_of_bytes_stands_out(made: Made) -> None:
    made.ratio = 2.8672  # a leading space counted twice
    report = verify_folder(made.write())
    assert "bpb" in contradicted(report)
    assert "+17.7%" in next(c.message for c in report.claims if c.claim == "bpb")


def test_one_line_whose_score_was_not_computed_from_its_loss(made: Made) -> None:
    logs = {f"train_seed{s}.log": made.log(s, ratio=made.ratio * (1 + (1e-4 if s == 3 else 0))) for s in made.bpb}
    assert contradicted(verify_folder(made.write(logs))) == {"bpb"}


def test_a_constant_in_place_of_the_bytes(made: Made) -> None:
    made.code = "import math\nval_bpb = val_loss / (math.log(2) * 3.5)\n"
    logs = {f"train_seed{s}.log": f"Final BPB: {v:.8f}\nval_bpb: {v:.8f}\n" for s, v in made.bpb.items()}
    report = verify_folder(made.write(logs))
    assert contradicted(report) == {"bpb"}
    assert next(c for c in report.claims if c.claim == "bpb").evidence[0].line == 2


def test_a_part_of_the_validation_text(made: Made) -> None:
    made.tokens = 10_137_600
    report = verify_folder(made.write())
    assert contradicted(report) == {"coverage"}
    assert "16.3%" in next(c.message for c in report.claims if c.claim == "coverage")


def test_a_model_over_the_cap(made: Made) -> None:
    made.model = 16_000_001 - len(made.code.encode())
    report = verify_folder(made.write())
    assert contradicted(report) == {"size"}
    assert "1 over the cap" in next(c.message for c in report.claims if c.claim == "size")
    made.model -= 1
    assert "size" in held(verify_folder(made.write()))


def test_a_total_that_leaves_the_code_out(made: Made) -> None:
    made.model, made.code = 15_960_000, "x = 1\n" * 10_000
    made.declared["bytes_total"] = made.model
    report = verify_folder(made.write())
    assert contradicted(report) == {"size"}
    assert "the model without code" in next(c.message for c in report.claims if c.claim == "size")


def test_a_log_that_counts_the_script_before_it_was_wrapped_is_counted_with_what_ships(made: Made) -> None:
    made.code = "x = 1\n" * 20_000
    made.model = 15_950_000
    path = made.write()
    packed = base64.b85encode(lzma.compress(made.code.encode())).decode()
    (path / "train_gpt.py").write_text(f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({packed!r})))\n")
    assert "size" in held(verify_folder(path))


def test_code_in_a_file_that_is_not_counted(made: Made) -> None:
    made.model = 15_990_000
    path = made.write()
    (path / "train_gpt.py").write_text('exec(open("decoded.py").read())\n')
    (path / "decoded.py").write_text("x = 1\n" * 10_000)
    logs = sorted(path.glob("*.log"))
    for log in logs:
        log.write_text(log.read_text().replace("Total submission size int8+zlib:", "Total of the two int8+zlib:"))
    report = verify_folder(path)
    assert contradicted(report) == {"size"}
    assert "decoded.py" in next(c.message for c in report.claims if c.claim == "size")


@pytest.mark.parametrize(("train_ms", "word"), [(600_900, "holds"), (601_500, "contradicted")])
def test_training_has_a_step_of_grace(made: Made, train_ms: int, word: str) -> None:
    made.train_ms = train_ms
    report = verify_folder(made.write())
    assert next(c.status for c in report.claims if c.claim == "time") == word


def test_an_evaluation_over_ten_minutes(made: Made) -> None:
    made.eval_ms = 616_850
    assert contradicted(verify_folder(made.write())) == {"time"}


def test_no_limit_of_time_outside_the_ten_minute_track(made: Made) -> None:
    made.train_ms, made.eval_ms = 3_600_000, 700_000
    made.declared["track"] = "non_record_16mb"
    assert verify_folder(made.write()).verdict == "consistent"


def test_a_log_of_another_seed_than_its_name(made: Made) -> None:
    logs = {f"train_seed{s}.log": made.log(s, seed=1337 if s == 1 else s) for s in made.bpb}
    report = verify_folder(made.write(logs))
    assert "seeds" in contradicted(report)


def test_files_that_are_only_numbered_name_no_seed(made: Made) -> None:
    made.declared = {"seeds": [41, 42, 43], "seed_results": {}}
    logs = {f"train_seed{s}.log": made.log(s, seed=40 + s) for s in made.bpb}
    assert "seeds" in held(verify_folder(made.write(logs)))


def test_a_run_with_another_active_setting(made: Made) -> None:
    logs = {f"train_seed{s}.log": made.log(s, settings={"matrix_lr": "0.02"} if s == 3 else {}) for s in made.bpb}
    report = verify_folder(made.write(logs))
    assert contradicted(report) == {"configuration"}
    claim = next(c for c in report.claims if c.claim == "configuration")
    assert (claim.stated, claim.found) == ("0.04", "0.02")


def test_a_score_of_one_run_with_the_bytes_of_another(made: Made) -> None:
    small = made.log(1, bpb=1.10077777, model=15_800_000)
    logs = {f"train_seed{s}.log": made.log(s) + (small if s == 1 else "") for s in made.bpb}
    made.declared["seed_results"] = {
        str(s): {"val_bpb": v, "bytes_total": (15_800_000 if s == 1 else made.model) + len(made.code)}
        for s, v in made.bpb.items()
    }
    assert contradicted(verify_folder(made.write(logs))) == {"configuration"}


def test_validation_text_in_the_artifact(made: Made) -> None:
    made.readme += "The first million validation tokens, stored verbatim.\n"
    assert contradicted(verify_folder(made.write())) == {"data"}


@pytest.mark.parametrize("words", [
    "No validation tokens are stored in the artifact.",
    "You are only allowed to test-time train on validation set tokens you've already evaluated.",
    "It never trains on the validation set.",
])  # fmt: skip
def test_words_that_deny_it_are_no_confession(made: Made, words: str) -> None:
    made.readme += words + "\n"
    assert verify_folder(made.write()).verdict == "consistent"


def test_training_shards_that_hold_validation_documents(made: Made) -> None:
    made.tokens, made.ratio = 47_851_520, 3.1571515
    path = made.write()
    for log in path.glob("*.log"):
        log.write_text(log.read_text().replace("train_shards:80", "train_shards:1499"))
    (path / "prepare.py").write_text('parser.add_argument("--val-docs", type=int, default=10_000)\n')
    assert contradicted(verify_folder(path)) == {"data"}
    (path / "README.md").write_text("python prepare.py --val-docs 50000\n")
    assert verify_folder(path).verdict == "consistent"


@pytest.mark.parametrize(("earlier", "word"), [(1.1033, "contradicted"), (1.1147, "holds")])
def test_a_gain_that_is_said_to_clear_the_threshold(made: Made, earlier: float, word: str) -> None:
    made.readme += f"Merged SOTA (PR #1): **{earlier}**. Clears the 0.005-nat threshold.\n"
    report = verify_folder(made.write())
    assert next(c.status for c in report.claims if c.claim == "significance") == word


def test_a_missing_log_leaves_the_folder_incomplete(made: Made) -> None:
    path = made.write()
    (path / "train_seed3.log").unlink()
    report = verify_folder(path)
    assert report.verdict == "incomplete"
    assert "seed 3" in next(c.message for c in report.claims if c.claim == "files")


def test_no_log_at_all_is_incomplete(made: Made) -> None:
    path = made.write()
    for log in path.glob("*.log"):
        log.unlink()
    assert verify_folder(path).verdict == "incomplete"


def test_a_copy_of_a_log_is_no_second_run(made: Made) -> None:
    path = made.write()
    (path / "train.log").write_text((path / "train_seed1.log").read_text())
    report = verify_folder(path)
    assert report.verdict == "consistent"
    assert report.folder.copies == (("train.log", "train_seed1.log"),)


def test_the_json_has_what_the_contract_says(made: Made) -> None:
    values = json.loads(json.dumps(verify_folder(made.write()).to_dict(), allow_nan=False))
    assert values["verdict"] in ("consistent", "contradicted", "incomplete")
    for claim in values["claims"]:
        assert {"claim", "status", "stated", "found", "evidence", "message"} <= set(claim)
        assert all(set(place) == {"file", "line", "text"} for place in claim["evidence"])
