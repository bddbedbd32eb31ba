"""Plans, the published layouts, files, and the search under a cap."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.artifact.compression import inflate
from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata, read_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.model.gpt import GPT
from evalkit.plumbing import files
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically
from evalkit.recipes import load_recipe
from evalkit.train.export.export import code_size, pack_artifact, quantize_state_dict, write_artifact
from evalkit.train.export.fit import FitResult, fit
from evalkit.train.export.torch_layouts import LAYOUTS, compress_payload, shuffled, torch_object
from evalkit.train.quantization.curvature import Curvature
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import PLANS, QuantizationPlan, TensorRule, layer_count

PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
SYSTEMS = ["baseline", "pr333", "pr344", "pr592", "pr634", "pr849"]


def full_size_shapes(system: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = GPT(load_recipe(system).model_config())
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def formats(system: str) -> dict[str, str]:
    shapes = full_size_shapes(system)
    layers = layer_count(shapes)
    return {name: PLANS[system].rule_for(name, shape.numel(), layers).format for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("system", "quantised", "passthrough"),
    [("pr333", 65, 51), ("pr592", 75, 56), ("pr344", 68, 83), ("pr634", 69, 52), ("pr849", 69, 74)],
)
def test_plans_store_what_the_published_files_store(system: str, quantised: int, passthrough: int) -> None:
    found = formats(system)
    integers = [f for f in found.values() if f.startswith("int")]
    assert (len(integers), len(found) - len(integers)) == (quantised, passthrough)
    mlp, attention = {
        "pr333": ("int5", "int6"),
        "pr592": ("int5", "int6"),
        "pr344": ("int6", "int6"),
        "pr634": ("int6", "int6"),
        "pr849": ("int5", "int5"),
    }[system]
    assert found["blocks.3.mlp.fc.weight"] == mlp
    assert found["blocks.3.attn.c_k.weight"] == attention
    late = {name for name in found if name.endswith("attn.c_k.weight") and found[name] == "float16"}
    expected = {"blocks.9.attn.c_k.weight", "blocks.10.attn.c_k.weight"} if system == "pr333" else set()
    assert late == expected
    assert found["tok_emb.weight"] == ("float16" if system in ("pr333", "pr344") else "int8")
    assert found["bigram.proj.weight"] == "float16"
    assert found["blocks.0.q_gain" if "blocks.0.q_gain" in found else "blocks.0.attn.q_gain"] == (
        "float32" if system in ("pr333", "pr344") else "float16"
    )
    assert found["smear.gate"] == ("float32" if system == "pr333" else "float16")


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="int3"):
        TensorRule(patterns=("*",), format="int3")
    with pytest.raises(InputError, match="clips"):
        TensorRule(patterns=("*",), format="int6", clips=(0.0,))
    with pytest.raises(InputError, match="smallest step"):
        TensorRule(patterns=("*",), format="int6", min_step=-1)
    with pytest.raises(InputError, match="no rule"):
        QuantizationPlan(rules=()).rule_for("x", 3, 1)


def tiny_model(system: str, width: int = 128) -> GPT:
    """Random weights; at 128, tables and the MLP's matrices are above the bound up to which plans keep float16."""
    torch.manual_seed(0)
    overrides = {
        "vocab_size": 4 * width + 8, "num_layers": 2, "model_dim": width, "num_heads": 4, "num_kv_heads": 2,
        "mlp_hidden": 4 * width + 8,
    }  # fmt: skip
    if system == "pr344":
        overrides["trigram_buckets"] = 600 * width // 128
    if system != "baseline":
        overrides["bigram_buckets"] = 600 * width // 128
    if system == "pr849":
        overrides["num_kv_heads"] = 4
    config = load_recipe(system).model_config(**overrides)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("container", ["torch-zstd", "torch-xz", "torch-zlib", "torch-brotli"])
def test_torch_containers_load_through_the_published_path(system: str, container: str, tmp_path: Path) -> None:
    state = tiny_model(system, width=64).state_dict()
    tensors = quantize_state_dict(state, PLANS[system].for_width(64 / 512))
    assert sum(isinstance(t, QuantizedTensor) for t in tensors.values()) > 6
    path = tmp_path / "model.ptz"
    written = write_artifact(path, tensors, container, layout=LAYOUTS[system])  # type: ignore[arg-type]
    artifact = load_artifact(path)
    assert (artifact.sha256, artifact.size) == (written.sha256, written.n_bytes)
    assert set(artifact.tensors) == set(tensors)
    for name, tensor in tensors.items():
        loaded = artifact.tensors[name]
        assert loaded.dtype == tensor.dtype
        assert np.array_equal(loaded.dequantize(), tensor.dequantize())


PUBLISHED = ("333", "344", "592", "849", "1218", "1334", "1394", "1477", "1493", "1529")


@pytest.mark.parametrize(("system", "recipe"), [(system, f"pr{system}") for system in PUBLISHED])
def test_the_dict_is_the_published_exporters_own(system: str, recipe: str) -> None:
    if not PARITY.is_dir():
        pytest.skip("the parity references are not here")
    [path] = (PARITY / system / "small").glob("*.ptz")
    original = torch.load(io.BytesIO(inflate(path.read_bytes())), weights_only=True)
    ours = torch_object(load_artifact(path).tensors, LAYOUTS[recipe])
    assert_equal_trees(ours, original)


def test_brotli_is_the_published_exporters_own() -> None:
    """For the file's first part, which the compressor writes without having seen the rest: all takes half a minute."""
    if not PARITY.is_dir():
        pytest.skip("the parity references are not here")
    [path] = (PARITY / "1334" / "small").glob("*.ptz")
    sorted_bytes = shuffled(inflate(path.read_bytes()))[len(shuffled(b"")) :][:1_600_000]
    payload = np.frombuffer(sorted_bytes, np.uint8).reshape(2, -1).T.tobytes()
    assert compress_payload(payload, "brotli")[:600_000] == path.read_bytes()[:600_000]


@pytest.mark.parametrize("container", ["evalkit", "torch-brotli"])
def test_tables_of_seven_bits(container: str, tmp_path: Path) -> None:
    table = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    hessian = torch.eye(32)
    rule = TensorRule(patterns=("tok_emb.weight",), format="int7", deviations=5.0, gptq=True)
    tensors = quantize_state_dict({"tok_emb.weight": table}, QuantizationPlan(rules=(rule,)), {"tok_emb": hessian})
    path = tmp_path / "model"
    write_artifact(path, tensors, container, layout=LAYOUTS["pr1493"])  # type: ignore[arg-type]
    loaded = load_artifact(path).tensors["tok_emb.weight"]
    assert isinstance(loaded, QuantizedTensor)
    assert (loaded.bits, loaded.format) == (7, "int7")
    assert np.abs(loaded.values.astype(int)).max() > 31  # more than six bits hold
    assert np.array_equal(loaded.dequantize(), tensors["tok_emb.weight"].dequantize())
    step = 5.0 * table.std(dim=1) / 63
    assert (torch.from_numpy(loaded.dequantize()) - table).abs().max() < 0.6 * step.max() + 0.01


def test_shuffled_bytes_are_marked_and_sorted() -> None:
    assert shuffled(b"abcdefg") == b"BSHF\x02acegbdf"


@pytest.mark.parametrize("system", ["pr1218", "pr1334", "pr1394", "pr1477", "pr1493", "pr1529"])
def test_later_plans_store_what_the_published_files_store(system: str) -> None:
    found = formats(system)
    integers = {name: format for name, format in found.items() if format.startswith("int")}
    tables = {"tok_emb.weight", "ve_shared.embed.weight"} if system in ("pr1218", "pr1334") else {"tok_emb.weight"}
    assert {name for name, format in integers.items() if format == "int8"} == tables
    assert len(integers) == 66 + len(tables)
    assert set(found.values()) == {"int6", "int8", "float16"}


def assert_equal_trees(a: object, b: object) -> None:
    if isinstance(b, dict):
        assert isinstance(a, dict)
        assert set(a) == set(b)
        for key, value in b.items():
            assert_equal_trees(a[key], value)
    elif isinstance(b, torch.Tensor):
        assert isinstance(a, torch.Tensor)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


def test_quantised_models_keep_their_values_and_round_trip(tmp_path: Path) -> None:
    model = tiny_model("pr592")
    state = model.state_dict()
    tensors = quantize_state_dict(state, PLANS["pr592"])
    path = tmp_path / "model.evk"
    metadata = NativeMetadata(config={"num_layers": 2})
    written = write_artifact(path, tensors, "evalkit", metadata=metadata)
    again = write_artifact(tmp_path / "again.evk", tensors, "evalkit", metadata=metadata)
    assert written.sha256 == again.sha256
    back = read_native(path.read_bytes())
    assert back.metadata.config == {"num_layers": 2}
    for name, tensor in tensors.items():
        assert np.array_equal(back.tensors[name].dequantize(), tensor.dequantize())
        weight = state[name].float().numpy()
        if isinstance(tensor, QuantizedTensor):
            error = np.abs(tensor.dequantize() - weight).reshape(weight.shape[0], -1)
            step = tensor.scale.astype(np.float32).reshape(-1, 1)
            # clips of the search and of the int8 quantile may cut single weights; the bulk is within half a step
            assert np.mean(error <= 0.5001 * step) > 0.99
        else:
            assert np.abs(tensor.dequantize() - weight).max() < 2e-2


def test_gptq_lowers_the_output_error_of_a_model() -> None:
    model = tiny_model("pr849")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks.")]
    tokens = torch.randint(0, 520, (8, 64), generator=torch.Generator().manual_seed(1))
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(
            lambda _, x, n=n: inputs.setdefault(n, []).append(x[0].reshape(-1, x[0].shape[-1]))
        )
        for n in names
    ]
    hessians = collect_hessians(model, [tokens])
    for handle in handles:
        handle.remove()
    state = model.state_dict()
    plan = PLANS["pr849"]
    plain = quantize_state_dict(state, plan)
    better = quantize_state_dict(state, plan, hessians)
    compared = 0
    for name in names:
        key = name + ".weight"
        if not isinstance(plain[key], QuantizedTensor):
            continue
        x = torch.cat(inputs[name])
        errors = [
            float((x @ (torch.from_numpy(t[key].dequantize()) - state[key]).T).square().sum()) for t in (plain, better)
        ]
        assert errors[1] < errors[0]
        compared += 1
    assert compared == 4
    with pytest.raises(InputError, match="no Hessian"):
        quantize_state_dict(state, plan, {})


def test_values_that_cannot_be_stored_are_refused() -> None:
    plan = PLANS["pr592"]
    with pytest.raises(InputError, match="finite"):
        quantize_state_dict({"x": torch.tensor([float("inf")])}, plan)
    with pytest.raises(InputError, match="too large"):
        quantize_state_dict({"x": torch.tensor([1e9])}, plan)
    with pytest.raises(InputError, match="floating"):
        quantize_state_dict({"x": torch.tensor([1])}, plan)
    tensors: dict[str, StoredTensor] = {
        "x": QuantizedTensor(values=np.zeros((2, 2), np.int8), scale=np.ones(2, np.float16), bits=7)
    }
    with pytest.raises(InputError, match="7 bits"):
        pack_artifact(tensors, "torch-zstd", layout=LAYOUTS["pr592"])
    with pytest.raises(InputError, match="layout"):
        pack_artifact(tensors, "torch-zstd")
    with pytest.raises(InputError, match="container"):
        pack_artifact(tensors, "zip")  # type: ignore[arg-type]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(
    failing: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    expected = InputError if error is OSError else error
    path = tmp_path / "model.evk"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, fail)
        with pytest.raises(expected):
            write_atomically(path, b"x" * 1000)
    assert os.listdir(tmp_path) == []
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, fail)
        with pytest.raises(expected):
            write_atomically(path, b"new")
    assert os.listdir(tmp_path) == ["model.evk"]
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_code_is_counted_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("é = 1\n", encoding="utf-8")
    assert code_size([tmp_path / "a.py"] * 2) == 14
    with pytest.raises(InputError, match="does not exist"):
        code_size([tmp_path / "b.py"])


def test_fit_fills_the_cap_and_keeps_what_loses_less() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "blocks.0.mlp.fc.weight": torch.randn(400, 200, generator=generator) * 0.16,
        "blocks.0.mlp.proj.weight": torch.randn(200, 400, generator=generator) * 0.16,
        "gain": torch.ones(200),
    }
    modules = {"blocks.0.mlp.fc": 200, "blocks.0.mlp.proj": 400}
    hessians = {name: torch.eye(columns) for name, columns in modules.items()}
    curvature = Curvature(outputs={name: torch.ones(600 - columns) for name, columns in modules.items()}, entries={})
    measured = []

    def squared_error(tensors: Mapping[str, StoredTensor]) -> float:
        measured.append(sum(float(np.square(t.dequantize() - state[n].numpy()).sum()) for n, t in tensors.items()))
        return measured[-1]

    def packed(tensors: Mapping[str, StoredTensor]) -> int:
        return len(pack_artifact(tensors, "evalkit"))

    def fitted(cap: int, loss: Callable[[Mapping[str, StoredTensor]], float] = squared_error) -> FitResult:
        return fit(
            state, PLANS["pr634"], hessians=hessians, curvature=curvature, loss=loss, pack=packed, cap_bytes=cap,
            code_bytes=2000,
        )  # fmt: skip

    plan, *attempts = fitted(60_000).table
    assert (plan.label, {row.label for row in attempts}) == ("the plan", {"a step for each tensor"})
    measured.clear()
    cap = plan.total_bytes - 10_000
    tight = fitted(cap)
    assert packed(tight.tensors) + 2000 == tight.best.total_bytes
    assert 0.998 * (cap - 2000) < tight.best.total_bytes - 2000 <= cap - 2000
    assert [row.loss for row in tight.table if row.loss is not None] == [tight.best.loss] == measured
    assert any(not row.fits for row in tight.table), "the plan"
    # With room for both, the lower loss decides, whichever it is.
    roomy = fitted(plan.total_bytes + 2000)
    assert roomy.best.loss == min(row.loss for row in roomy.table if row.loss is not None) < tight.best.loss
    upside_down = fitted(plan.total_bytes + 2000, lambda tensors: -squared_error(tensors))
    assert (roomy.best.label, upside_down.best.label) == ("a step for each tensor", "the plan")
    with pytest.raises(InputError, match="nothing fits 2100 bytes: the smallest took"):
        fitted(2100)


def test_bfloat16_tables_are_rounded_once() -> None:
    table = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    plan = QuantizationPlan(rules=(TensorRule(patterns=("*",), format="float16"),))
    stored = quantize_state_dict({"tok_emb.weight": table}, plan)["tok_emb.weight"]
    assert isinstance(stored, PlainTensor)
    assert stored.dtype == "bfloat16"
    assert np.array_equal(stored.dequantize(), table.bfloat16().float().numpy())
    halves = QuantizationPlan(rules=(TensorRule(patterns=("*",), format="bfloat16"),))
    direct = quantize_state_dict({"tok_emb.weight": table}, halves)["tok_emb.weight"]
    assert np.array_equal(direct.dequantize(), stored.dequantize())
