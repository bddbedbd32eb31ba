"""What is read from a script is what the script computes, or it is named; nothing of a script is ever executed."""

import dataclasses
import io

import numpy as np
import pytest
import torch
import zstandard
from source_scripts import looped, plain, wrapped

from evalkit.artifact.load import load_artifact
from evalkit.artifact.recognition import OpenSettings
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.source.reading import read_source

CONFIG = ModelConfig(
    vocab_size=64, num_layers=4, model_dim=32, num_heads=4, num_kv_heads=2, mlp_hidden=96, smear_gate=True,
    bigram_buckets=128, bigram_dim=16, rope_dims=4, rope_train_len=256, xsa_last_n=2, ln_scale=True,
)  # fmt: skip
LOOPED = ModelConfig(
    vocab_size=64, num_layers=4, model_dim=32, num_heads=4, num_kv_heads=2, mlp_hidden=96, skip_gates=True,
    skip_rows=4, rope_dims=4, rope_train_len=256, xsa_last_n=2, ln_scale=True, activation="leaky_relu2",
    layer_order=(0, 1, 2, 1, 2, 1, 2, 3), parallel_form="joint", parallel_start=3,
)  # fmt: skip


def draw(config: ModelConfig) -> GPT:
    torch.manual_seed(3)
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def save(model: GPT, path) -> None:
    """Write a model as the published exporters do (layout B, everything plain)."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    content = io.BytesIO()
    torch.save({"w": state, "m": dict.fromkeys(state, "passthrough")}, content)
    path.write_bytes(zstandard.compress(content.getvalue(), 1))


def write(tmp_path, script: str) -> str:
    path = tmp_path / "train_gpt.py"
    path.write_text(script)
    return str(path)


def resolve(tmp_path, config: ModelConfig, script: str, logs=()):
    save(draw(config), tmp_path / "a.ptz")
    artifact = load_artifact(tmp_path / "a.ptz")
    return artifact.resolve(source=read_source(write(tmp_path, script), logs, shapes=artifact.shapes))


ACTIVATIONS = {
    "torch.relu(self.fc(x))": ("relu2", 0.5),
    "F.relu(self.fc(x))": ("relu2", 0.5),
    "F.leaky_relu(self.fc(x), negative_slope=0.9)": ("leaky_relu2", 0.9),
    "F.leaky_relu(self.fc(x), 0.25)": ("leaky_relu2", 0.25),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_setting_is_read_with_its_line(tmp_path, activation: str) -> None:
    name, slope = ACTIVATIONS[activation]
    script = plain(activation)
    resolved = resolve(tmp_path, CONFIG, script)
    expected = dataclasses.replace(CONFIG, activation=name, leaky_slope=slope, rope_table="bf16", skip_rows=2)
    expected = dataclasses.replace(expected, layer_order=(0, 1, 2, 3))
    assert resolved.config == expected
    assert resolved.seq_len == 256
    lines = script.splitlines()
    for setting, fragment in (
        ("xsa_last_n", "XSA_LAST_N"), ("rope_base", "ROPE_BASE"), ("ln_scale", "LN_SCALE"),
        ("activation", "relu(self.fc"),
    ):  # fmt: skip
        label, _, line = resolved.origins[setting].partition(":")
        assert label == "train_gpt.py"
        assert fragment in lines[int(line) - 1]


@pytest.mark.parametrize(("script", "config"), [(plain(), CONFIG), (looped(), LOOPED)])
def test_the_network_read_is_the_network_that_the_script_builds(tmp_path, script: str, config: ModelConfig) -> None:
    # Our own script, executed here and nowhere else: its network and ours give the same loss with the same weights.
    resolved = resolve(tmp_path, config, script)
    built: dict = {"__name__": "script"}
    exec(script.replace('raise_if_run = open("/nonexistent/evalkit-must-not-run-this")', ""), built)
    theirs = built["GPT"](built["Hyperparameters"]())
    if hasattr(theirs, "looping_active"):
        theirs.looping_active = True
    ours = draw(config)
    theirs.load_state_dict(ours.state_dict())
    read = GPT(dataclasses.replace(resolved.config, rope_table="exact"))
    read.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 64, (2, 300))  # longer than the training length, so that NTK acts
    with torch.no_grad():
        logits = read.eval()(ids[:, :-1])
        if hasattr(theirs, "forward_logits"):
            expected = theirs.forward_logits(ids[:, :-1])
            np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=2e-4)
        else:
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 64), ids[:, 1:].reshape(-1))
            assert theirs(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(loss.item(), abs=2e-5)


def test_repeats_gates_and_joint_blocks(tmp_path) -> None:
    config = resolve(tmp_path, LOOPED, looped()).config
    assert config.layer_order == (0, 1, 2, 1, 2, 1, 2, 3)
    assert (config.parallel_form, config.parallel_start) == ("joint", 3)
    assert (config.activation, config.leaky_slope, config.rope_table) == ("leaky_relu2", 0.5, "exact")


@pytest.mark.parametrize("form", ["lzma", "brotli"])
def test_wrappers_are_undone_and_lines_are_those_inside(tmp_path, form: str) -> None:
    resolved = resolve(tmp_path, CONFIG, wrapped(plain(), form))
    assert resolved.config.xsa_last_n == 2
    assert resolved.origins["xsa_last_n"].startswith("train_gpt.py (unwrapped):")


def test_a_log_goes_before_the_script_s_defaults(tmp_path) -> None:
    config = dataclasses.replace(CONFIG, num_layers=6)
    log = tmp_path / "train.log"
    log.write_text("Hyperparameters:\n  num_layers: 6\n  xsa_last_n: 4\n  rope_base: 50000.0\nstep:1/9 loss:6.9\n")
    resolved = resolve(tmp_path, config, plain(), [str(log)])
    assert resolved.config.xsa_last_n == 4
    assert resolved.config.rope_base == 50000.0
    assert resolved.origins["xsa_last_n"] == "train.log:3"


def test_a_command_line_s_environment_goes_before_the_defaults(tmp_path) -> None:
    page = tmp_path / "README.md"
    page.write_text("```bash\nNUM_LAYERS=6 XSA_LAST_N=4 LN_SCALE=0 \\\ntorchrun train_gpt.py\n```\n")
    resolved = resolve(tmp_path, dataclasses.replace(CONFIG, num_layers=6), plain(), [str(page)])
    assert (resolved.config.xsa_last_n, resolved.config.ln_scale) == (4, False)
    assert resolved.origins["ln_scale"] == "README.md:2"


def test_defaults_of_another_run_are_not_taken_for_what_ran(tmp_path) -> None:
    # As PR287: the script says nine layers and no XSA, the run had eleven and XSA on the last four.
    with pytest.raises(OpenSettings, match=r"says num_layers 4, the artifact has 6") as caught:
        resolve(tmp_path, dataclasses.replace(CONFIG, num_layers=6), plain())
    assert "xsa_last_n" in caught.value.names
    assert "activation" not in caught.value.names  # no environment variable changes the code


def test_a_log_that_says_two_things_settles_nothing(tmp_path) -> None:
    log = tmp_path / "train.log"
    log.write_text("  xsa_last_n: 4\n  xsa_last_n: 2\n")
    with pytest.raises(OpenSettings, match=r"train\.log gives xsa_last_n different values") as caught:
        resolve(tmp_path, CONFIG, plain(), [str(log)])
    assert "xsa_last_n" in caught.value.names


CHANGES = {
    "another activation": ("ACTIVATION.square()", "F.gelu(self.fc(x))"),
    "another order of skips": ("skips.pop()", "skips.pop(0)"),
    "no norm of the keys": ("F.rms_norm(k, (k.size(-1),))", "k"),
    "interleaved rotation": ("x[..., :half], x[..., half:]", "x[..., ::2], x[..., 1::2]"),
    "another hash": ("27191", "27193"),
    "the mixing weights swapped": ("mix[0] * x + mix[1] * x0", "mix[1] * x + mix[0] * x0"),
    "a scale of the attention": ("is_causal=True,", "is_causal=True, scale=0.1,"),
    "not causal": ("is_causal=True,", ""),
    "another cap": ("torch.tanh(logits / self.logit_softcap)", "torch.sigmoid(logits / self.logit_softcap)"),
    "a norm with a floor": ("return F.rms_norm(x, (x.size(-1),))\n", "return F.rms_norm(x, (x.size(-1),), eps=0.1)\n"),
    "half of the smear": ("(1 - g) * x + g *", "(1 - g) * x + 0.5 * g *"),
    "frequencies of another kind": ("inv_freq.dtype), inv_freq)", "inv_freq.dtype), inv_freq * 0.9)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_understood_is_named_and_not_guessed(tmp_path, change: str) -> None:
    before, after = CHANGES[change]
    script = (plain("ACTIVATION") if "ACTIVATION" in before else plain()).replace(before, after)
    assert script != plain()
    save(draw(CONFIG), tmp_path / "a.ptz")
    artifact = load_artifact(tmp_path / "a.ptz")
    reading = read_source(write(tmp_path, script), shapes=artifact.shapes)
    assert not reading.understood
    assert any("train_gpt.py:" in problem for problem in reading.problems)


def test_another_model_s_script_tells_nothing(tmp_path) -> None:
    with pytest.raises(OpenSettings, match=r"the artifact has a tensor that the script's model has not"):
        resolve(tmp_path, CONFIG, looped())


def test_a_script_that_depends_on_the_machine_says_where(tmp_path) -> None:
    script = plain().replace("if self.bigram is not None:", "if torch.cuda.device_count() > 1:")
    save(draw(CONFIG), tmp_path / "a.ptz")
    reading = read_source(write(tmp_path, script), shapes=load_artifact(tmp_path / "a.ptz").shapes)
    line = next(i for i, text in enumerate(script.splitlines(), 1) if "device_count" in text)
    what = f"train_gpt.py:{line} cannot be followed: it depends on 'torch.cuda.device_count() > 1'"
    assert reading.problems == (f"{what}, which only a run would tell",)
