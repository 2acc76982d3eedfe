"""The plan: counted shapes, and a peak that a real run confirms within the stated error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from decoder_families import write_family
from test_learn import CONFIG

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import ConfigError, FormatError, PatternError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.planning.plan import ERROR, plan
from maskpro_deploy.learn.planning.probe import weigh_state
from maskpro_deploy.learn.planning.runs import PlannedLearning, PlannedRecovery, PlannedRun
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.run_config import RunConfig
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

LARGE = LearnConfig(
    pattern=NMPattern(2, 4),
    weights="frozen",
    steps=1,
    window=256,
    batch_tokens=2048,
    calibration_tokens=256,
    heldout_tokens=256,
    dtype="float32",
)
RUN = """
import sys
from pathlib import Path
from typing import Any
import numpy as np, torch
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.memory import tuned_process
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.model.paged_blocks import open_paged
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.peak_memory import peak_rss
from maskpro_deploy.torch_lm import load_causal_lm
import transformers.models.llama.modeling_llama
short = {"steps": 1, "window": 256, "batch_tokens": 2048, "calibration_tokens": 256, "heldout_tokens": 256}
pattern, kind = NMPattern(2, 4), sys.argv[2]
windows = np.random.default_rng(0).integers(0, 2000, (8, 256)).astype(np.int32)
before = peak_rss()
with tuned_process():
    if kind == "recover-block":
        open_model = lambda: open_paged(Checkpoint.open(Path(sys.argv[1])), torch.float32, "cpu")
    else:
        open_model = lambda: LearningModel(load_causal_lm(Path(sys.argv[1]), torch.float32))
    model = open_model()
    if kind.startswith("recover"):
        layers = prunable_layers(model.model, pattern, None, None)
        masks = {name: pattern.top(np.arange(layer.weight.numel()).reshape(layer.weight.shape)) for name, layer in layers.items()}
        teacher = open_model()
        masks = MaskSet.from_arrays(pattern, masks, "")
        config = RecoverConfig(method=sys.argv[3], **short)
        kind = config.method_choice.load_trainer()
        trainer = kind(model, windows, windows[:1], config, masks, teacher)
    else:
        config = LearnConfig(pattern=pattern, weights=sys.argv[3], **short)
        trainer = Trainer(model, windows, windows[:1], config)
    trainer.prepare()
    trainer.run()
print(peak_rss() - before)
"""


def kinds_of(config: LearnConfig) -> dict[str, tuple[LearnConfig, RecoverConfig | None]]:
    """Settings of the kinds of runs, on as many tokens."""
    shared = {f.name: getattr(config, f.name) for f in fields(RunConfig) if f.name != "objective"}
    joint = replace(config, weights="train", objective="ce+kl")
    return {
        "learn": (config, None),
        "joint": (joint, None),
        "recover": (config, RecoverConfig(**shared)),
        "joint-lora": (replace(joint, weights="lora", weight_rate=None), None),
        "recover-lora": (config, RecoverConfig(method="lora", **shared)),
        "recover-block": (config, RecoverConfig(method="block", **shared)),
    }


def make_run(config: LearnConfig, recover: RecoverConfig | None) -> PlannedRun:
    return PlannedLearning(config=config) if recover is None else PlannedRecovery(config=recover, learning=config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model whose activations are far larger than the rest, and one whose weights and their state are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"wide": (128, 4), "deep": (512, 8)}
    made = {}
    for side, (hidden, layers) in sizes.items():
        shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=2000, num_hidden_layers=layers, tie_word_embeddings=True, **shape))
        made[side] = tmp_path_factory.mktemp("plan") / side
        model.save_pretrained(made[side])
    return made


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        ("learn", "wide"),
        ("joint", "deep"),
        ("recover", "deep"),
        ("joint-lora", "deep"),
        ("recover-lora", "deep"),
        ("recover-block", "deep"),
    ],
)
def test_a_real_run_confirms_the_peak(kind: str, side: str, folders: dict[str, Path]) -> None:
    config, recover = kinds_of(LARGE)[kind]
    predicted = plan(Checkpoint.open(folders[side]), config, "cpu", torch.float32, recover=recover, timed=False).memory
    way = config.weights if recover is None else recover.method
    command = [sys.executable, "-c", RUN, str(folders[side]), kind, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    measured, expected = int(done.stdout), replace(predicted, writing=0).peak - predicted.program  # nothing is written here
    assert abs(expected - measured) <= ERROR * measured, (expected, measured, predicted)


def test_what_trains_weights_holds_the_dense_ones_apart(dense: Checkpoint, tiny_sparse: Path) -> None:
    found = {
        kind: plan(dense, config, "cpu", torch.float32, recover=recover, timed=False)
        for kind, (config, recover) in kinds_of(CONFIG).items()
    }
    of_masks, joint, recovery = (found[kind].memory for kind in ("learn", "joint", "recover"))
    prunable, parameters = found["learn"].prunable, found["learn"].parameters
    assert (of_masks.teacher, joint.teacher, recovery.teacher) == (0, 4 * prunable, 4 * parameters)
    assert of_masks.weights == joint.weights == recovery.weights == 4 * parameters
    assert recovery.activations == joint.activations == of_masks.activations
    assert found["joint"].maskllm_bytes_per_weight is found["recover"].maskllm_bytes_per_weight is None
    masked = plan(
        Checkpoint.open(tiny_sparse), CONFIG, "cpu", torch.float32, recover=RecoverConfig(steps=1, window=32), timed=False
    )
    assert (masked.layers, masked.prunable, masked.pattern) == (14, prunable, "2:4")
    untaught = RecoverConfig(steps=1, window=32, batch_tokens=128, objective="ce")
    alone = plan(dense, CONFIG, "cpu", torch.float32, recover=untaught, timed=False)
    assert alone.memory.teacher == 0
    assert alone.memory.head * 2 == recovery.head


@pytest.mark.parametrize(("dtype", "size", "low"), [(torch.float32, 4, 0), (torch.bfloat16, 2, 1)])
def test_state_is_what_the_formats_say(dtype: torch.dtype, size: int, low: int) -> None:
    """Bytes a weight, as the modules of logits and kept weights state them, and what a run remembers."""
    masks, logits = 1 / 8, 2 + 1 + 2
    kept = (1 + 2 + low) / 2  # both moments, and what a coarse weight lacks, of every second weight
    of = {kind: weigh_state(make_run(*pair), dtype) for kind, pair in kinds_of(CONFIG).items()}
    assert of["learn"].per_weight == pytest.approx(logits + 3 * masks)  # masks in use, of the start, and the best
    assert of["joint"].per_weight == pytest.approx(logits + 3 * masks + kept + size / 2)  # and the best weights
    assert of["recover"].per_weight == pytest.approx(masks + kept + 2 * size / 2)  # the best weights, and those of the start
    assert of["joint-lora"].per_weight == pytest.approx(logits + 3 * masks + size / 2)
    assert of["joint-lora"].per_factor == pytest.approx(3 * 4, rel=0.01)  # itself and both moments, in float32
    assert of["recover-lora"].per_weight == pytest.approx(masks)
    assert of["recover-lora"].per_factor == pytest.approx(5 * 4, rel=0.01)  # and the best, and the start
    assert of["recover-lora"].copied_factor == pytest.approx(4)
    assert of["recover"].per_vector == of["recover"].per_factor == 0
    assert of["recover"].copied == pytest.approx(size / 2)
    norms = weigh_state(make_run(CONFIG, RecoverConfig(steps=1, window=32, train="norms")), dtype)
    assert norms.per_weight == pytest.approx(masks)
    assert norms.per_vector >= 5 * 4  # exact values, both moments, the best, and the start, in float32


def test_norms_that_are_trained_keep_more_for_the_backward_pass(dense: Checkpoint) -> None:
    weights, everything = (
        plan(dense, CONFIG, "cpu", torch.float32, recover=RecoverConfig(steps=1, window=32, train=train), timed=False).memory
        for train in ("weights", "all")
    )
    assert everything.state > weights.state
    assert everything.activations >= weights.activations


def test_counts_are_those_of_the_files(dense: Checkpoint) -> None:
    found = plan(dense, CONFIG, "cpu", torch.float32, timed=False)
    names = [n for n in dense.names if "_proj." in n]
    assert found.layers == len(names) == 14
    assert found.prunable == sum(dense.shapes[n][0] * dense.shapes[n][1] for n in names)
    assert found.parameters == sum(torch.Size(s).numel() for s in dense.shapes.values())  # tied weights count once
    assert found.memory.weights == 4 * found.parameters
    assert found.maskllm_bytes_per_weight == 24
    assert found.step_s is None


def test_more_tokens_take_more_memory_and_fewer_layers_less(dense: Checkpoint) -> None:
    small = plan(dense, CONFIG, "cpu", torch.float32, timed=False).memory
    twice = plan(dense, replace(CONFIG, batch_tokens=256), "cpu", torch.float32, timed=False).memory
    fewer = plan(dense, replace(CONFIG, include="mlp"), "cpu", torch.float32, timed=False).memory
    assert twice.activations == pytest.approx(2 * small.activations, rel=0.02)
    assert fewer.state < small.state
    assert plan(dense, replace(CONFIG, prior="sparsegpt"), "cpu", torch.float32, timed=False).memory.prior > 4 * 64**2


def test_an_estimator_without_a_backward_pass_keeps_no_activations_and_one_by_blocks_those_of_a_block(dense: Checkpoint) -> None:
    whole, layer, loss, block = (
        plan(dense, replace(CONFIG, learning_rate=None, **chosen), "cpu", torch.float32, timed=False).memory
        for chosen in ({}, {"estimator": "maskpro"}, {"estimator": "maskpro", "reward": "loss"}, {"objective": "block"})
    )
    assert loss.activations < layer.activations < whole.activations
    assert block.activations < whole.activations
    assert loss.state < layer.state


def test_time_is_measured_here(dense: Checkpoint) -> None:
    found = plan(dense, CONFIG, "cpu", torch.float32)
    assert found.products_s is not None
    assert found.masks_s is not None
    assert found.products_s > 0
    assert found.masks_s > 0
    assert found.step_s == found.products_s + found.masks_s


def test_what_does_not_fit_is_one_plain_error(dense: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PatternError, match="2:3 does not fit layer"):
        plan(dense, replace(CONFIG, pattern=NMPattern(2, 3)), "cpu", torch.float32, timed=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    (tmp_path / "model.safetensors").write_bytes((dense.folder / "model.safetensors").read_bytes())
    with pytest.raises(FormatError, match="could not be opened"):
        plan(Checkpoint.open(tmp_path), CONFIG, "cpu", torch.float32, timed=False)


def test_the_command_prints_a_table_or_one_object(dense: Checkpoint) -> None:
    words = ["plan", "--model", str(dense.folder), "--window", "32", "--batch-tokens", "128", "--no-time", "--dtype", "float32"]
    words += ["--weights", "frozen"]
    text = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    assert "peak:" in text
    assert "MaskLLM" in text
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).stdout)
    assert found["peak_bytes"] > found["memory"]["program"]


def test_the_command_plans_recovery_and_refuses_what_does_not_belong_to_it(dense: Checkpoint, tiny_sparse: Path) -> None:
    words = ["--window", "32", "--batch-tokens", "128", "--no-time", "--dtype", "float32"]
    text = (
        CliRunner().invoke(cli, ["plan", "--model", str(tiny_sparse), "--recover", "full", *words], catch_exceptions=False).stdout
    )
    assert "under 2:4 masks" in text
    assert "MaskLLM" not in text
    found = json.loads(
        CliRunner().invoke(cli, ["plan", "--model", str(dense.folder), "--weights", "train", "--json", *words]).stdout
    )
    assert found["memory"]["teacher"] == 4 * found["prunable"]
    for options, message in (
        (["--recover", "full", "--weights", "train"], "--weights says how masks are learned"),
        (["--recover", "full", "--prior", "wanda"], "--prior says how masks are learned"),
        (["--recover", "full", "--include", "mlp"], "--include is what the masks of the checkpoint say already"),
        (["--train", "all"], "--train belongs to --recover"),
    ):
        done = CliRunner().invoke(cli, ["plan", "--model", str(tiny_sparse), *options, *words])
        assert isinstance(done.exception, ConfigError)
        assert message in str(done.exception)


@pytest.mark.parametrize("family", ["falcon", "mpt", "gpt2", "lfm2", "minimax", "granitemoe"])
def test_every_family_is_planned_with_the_layers_that_learning_masks(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_family(family, tmp_path / "m"))
    planned = plan(checkpoint, CONFIG, "cpu", torch.float32, timed=False)
    model = LearningModel(load_causal_lm(checkpoint.folder, torch.float32))
    layers = prunable_layers(model.model, CONFIG.pattern, None, None, find_tensors(model, checkpoint))
    assert (planned.layers, planned.prunable) == (len(layers), sum(layer.weight.numel() for layer in layers.values()))
    assert planned.memory.activations > 0


def test_layers_that_stay_dense_are_named_with_the_reason(dense: Checkpoint) -> None:
    def run(*options: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["plan", "--model", str(dense.folder), "--no-time", "--json", *options])
        assert done.exit_code == 0, done.output
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    whole, named, chosen = run(), run("--dense-layers", r"\.1\.mlp\."), run("--dense-share", "10%")
    assert whole["layers"] == named["layers"] + 3
    assert named["memory"]["state"] < whole["memory"]["state"]
    assert {name.split(".")[4] for name in named["left_dense"]} == {"gate_proj", "up_proj", "down_proj"}
    assert set(named["left_dense"].values()) == {r"--dense-layers \.1\.mlp\."}
    assert (whole["left_dense"], whole["dense_share"], chosen["dense_share"]) == ({}, None, 0.1)
    text = CliRunner().invoke(cli, ["plan", "--model", str(dense.folder), "--no-time", "--dense-share", "10%"]).stdout
    assert "left dense: 10 % of the multiply-adds" in text
