"""Logs and submission.json in their many spellings."""

from __future__ import annotations

import base64
import lzma
import subprocess
import sys
import zlib

import brotli
import pytest

from evalkit.verify.declared import read_declared
from evalkit.verify.files import decode
from evalkit.verify.json_leaves import read_leaves
from evalkit.verify.logs import read_log
from evalkit.verify.script import byte_constants, unwrap
from evalkit.verify.statements import Text


def text(content: str, file: str = "a.log") -> Text:
    return Text(file, len(content), tuple(content.split("\n")))


def test_the_newer_base_with_an_indented_block() -> None:
    (run,) = read_log(
        text(
            "Hyperparameters:\n  matrix_lr: 0.02\n  seed: 42\ntrain_shards: 80\nval_tokens: 40540160\n"
            "4000/20000 val_loss: 2.9 val_bpb: 1.12\n"
            "stopping_early: wallclock_cap train_time: 588135ms step: 4986/20000\n"
            "pre-quantization post-ema val_loss:2.81 val_bpb:1.08994070 eval_time:6006ms\n"
            "Code size (uncompressed): 116694 bytes\nCode size (compressed): 26845 bytes\n"
            "Serialized model quantized+brotli: 15957953 bytes\n"
            "Total submission size quantized+brotli: 15984798 bytes\n"
            "quantized_ttt val_loss:2.80 val_bpb:1.08664424 eval_time:84115ms\n"
        )
    )
    assert run.seed is not None
    assert run.seed.value == 42
    assert run.settings["matrix_lr"][0] == "0.02"
    assert run.settings["train_shards"][0] == "80"
    assert run.tokens is not None
    assert run.tokens.value == 40_540_160
    assert [(kind, n.value) for kind, n in run.codes] == [("raw", 116_694), ("compressed", 26_845)]
    assert [(s.label, s.bpb.value) for s in run.finals] == [("quantized_ttt", 1.08664424)]
    assert run.train_ms[-1].value == 588_135


def test_source_in_front_of_the_output_is_no_score() -> None:
    runs = read_log(
        text(
            'log0(f"final val_bpb:{bpb:.4f}")\n    b_loss, val_bpb = 0.0, 0.0\n    num_heads: int = 8\n'
            "final_exact val_loss:2.0 val_bpb:1.18450000\n"
        )
    )
    assert [s.bpb.value for run in runs for s in run.scores] == [1.1845]


def test_two_runs_in_one_file() -> None:
    one = "seed:1\nstopping_early: wallclock_cap train_time:600000ms step:9/20\nfinal val_loss:2.0 val_bpb:1.2000\n"
    runs = read_log(text(one + one.replace("1.2000", "1.3000").replace("seed:1", "seed:2")))
    assert [[s.bpb.value for s in run.finals] for run in runs] == [[1.2], [1.3]]
    assert [run.seed.value for run in runs if run.seed] == [1, 2]


def test_output_that_a_launcher_repeats_is_one_run() -> None:
    one = "seed:1\nfinal val_loss:2.0 val_bpb:1.2000\n"
    assert len(read_log(text(one + one))) == 1


def test_a_mixture_says_how_many_bytes_it_scored() -> None:
    (run,) = read_log(text("ppm_mix bytes=10982035 mix_bpb=1.000307 ppm_only=2.380212\n"))
    assert run.finals[0].bytes_scored == 10_982_035


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_and_line_ends(encoding: str) -> None:
    assert decode("one\r\ntwo\rthree\n".encode(encoding)) == "one\ntwo\nthree\n"


def test_binary_files_are_no_text() -> None:
    assert decode(bytes(range(256)) * 4) is None


def test_json_values_know_their_line_and_digits() -> None:
    leaves, problem = read_leaves("s.json", '{\n "val_bpb": 1.2340,\n "seeds": [1, 2],\n "x": {"y": 1e-3}\n}')
    assert problem is None
    assert [(leaf.path, leaf.value, leaf.decimals, leaf.place.line) for leaf in leaves] == [
        (("val_bpb",), 1.234, 3, 2),
        (("seeds", "0"), 1.0, 0, 3),
        (("seeds", "1"), 2.0, 0, 3),
        (("x", "y"), 0.001, 3, 4),
    ]


def test_json_with_a_missing_comma_is_read_on() -> None:
    leaves, problem = read_leaves("s.json", '{"val_bpb": 1.2 "name": "x"}')
    assert problem is not None
    assert [leaf.path for leaf in leaves] == [("val_bpb",), ("name",)]


@pytest.mark.parametrize(
    "content",
    [
        '{"val_bpb": 1.1}',
        '{"mean_val_bpb": 1.1}',
        '{"val_bpb": "1.1000"}',
        '{"val_bpb": {"mean": 1.1}}',
        '{"results": {"mean_val_bpb": 1.1}}',
        '{"baseline_bpb": 1.2, "val_bpb_std": 0.001, "ttt_bpb": 1.1}',
    ],
)
def test_spellings_of_the_headline(content: str) -> None:
    headline = read_declared(text(content, "submission.json")).headline
    assert headline is not None
    assert headline.value == 1.1


@pytest.mark.parametrize(
    "content",
    [
        '{"val_bpb": 1.1, "seed_results": {"1": {"val_bpb": 1.0999}, "2": {"val_bpb": 1.1001}}}',
        '{"val_bpb": 1.1, "seeds": {"1": 1.0999, "2": 1.1001}}',
        '{"val_bpb": 1.1, "seed_1": {"val_bpb": 1.0999}, "seed_2": {"val_bpb": 1.1001}}',
        '{"val_bpb": 1.1, "runs": [{"seed": 1, "val_bpb": 1.0999}, {"seed": 2, "val_bpb": 1.1001}]}',
    ],
)
def test_spellings_of_the_seeds(content: str) -> None:
    results = read_declared(text(content, "submission.json")).results
    assert [(r.seed, r.bpb.value if r.bpb else None) for r in results] == [("1", 1.0999), ("2", 1.1001)]


def test_a_wrapped_script_is_opened_and_never_executed() -> None:
    source = "import os\n" + "raise SystemExit('executed')\n" * 200
    for module, compress in (("lzma", lzma.compress), ("zlib", zlib.compress), ("brotli", brotli.compress)):
        packed = base64.b85encode(compress(source.encode())).decode()
        wrapper = f"import {module} as L,base64 as B\nexec(L.decompress(B.b85decode({packed!r})))"
        assert unwrap("train_gpt.py", wrapper.encode()) == source


def test_a_wrapper_of_another_kind_is_read_as_it_is() -> None:
    script = "exec(open('other.py').read())\nval_bpb = 1\n"
    assert unwrap("train_gpt.py", script.encode()) == script


def test_reading_a_folder_does_not_import_torch() -> None:
    code = "import sys, evalkit.verify.folder; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_payload_that_grows_without_end_is_cut() -> None:
    packed = base64.b85encode(lzma.compress(b"import x\n" + b"\0" * (64 << 20), preset=0)).decode()
    wrapper = f"import lzma,base64\nexec(lzma.decompress(base64.b85decode('{packed}')))"
    assert len(unwrap("train_gpt.py", wrapper.encode())) <= len(wrapper)


@pytest.mark.parametrize(
    ("line", "constants"),
    [
        ("val_bpb = loss / (math.log(2) * 3.5)", [3.5]),
        ("bpb = bits / (tokens * 4.3)", [4.3]),
        ("bpb = bits / num_bytes", []),
        ("loss = x / 3.5", []),
        ("bpb = loss / math.log(2.0) * tokens / num_bytes", []),
    ],
)
def test_constants_of_bytes_per_token(line: str, constants: list[float]) -> None:
    assert [c for _, _, c in byte_constants(line)] == constants
