"""The steps of the demo: fetch, learn, recover, prove, export, build, evaluate, measure, serve, as their own commands do it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskpro_deploy.bench.results import wording
from maskpro_deploy.data import BUILTIN, HELD_OUT, SELF
from maskpro_deploy.demo.finished_masks import find_masks, forget_masks, keep_masks
from maskpro_deploy.demo.state import Demo
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.progress import Meter, Meters

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.summary import Verdict
    from maskpro_deploy.data import Text
    from maskpro_deploy.learn import LearnResult, RecoverResult

R = TypeVar("R")
_MASKS_SHARE = 0.8  # of the budget: masks and low-rank deltas first, then every weight that the masks keep
_WEIGHTS, _METHOD, _RATE = "lora", "full", 2e-4
_TEXTS = (BUILTIN, BUILTIN, f"{SELF}:4096")  # in equal shares; dialogues that the model writes keep it able to answer
_LEAST_TO_WRITE_S = 120.0  # budget; with less, writing would take too much of it
_EVAL_WINDOW, _EVAL_WINDOWS = 512, 16
QUESTION = "What is the capital of France?"
_LATENCY_S = 60.0
_ANSWER_TOKENS = 48
_HTTP_TIMEOUT_S = 300


def fetch(demo: Demo) -> None:
    """Get the model's folder."""
    from maskpro_deploy.models import demo_model

    demo.dense = demo_model()
    demo.rows.append(("model", "SmolLM2-135M-Instruct (from 4-bit GGUF)"))
    demo.figures["model"] = demo.dense.name


def learn(demo: Demo) -> None:
    """Learn the masks, and deltas with them; a run that was interrupted goes on where it was."""
    from maskpro_deploy.learn import LearnConfig, learn_checkpoint

    config = LearnConfig(pattern=demo.pattern, weights=_WEIGHTS, budget_s=_MASKS_SHARE * demo.budget_s, seed=demo.seed)
    text, heldout = _read_texts(demo)

    def start(*, resume: bool) -> LearnResult:
        meter = Meter("learning", "s")
        return learn_checkpoint(demo.dense, demo.masked, text, heldout, config, resume=resume, force=True, progress=meter)

    demo.learned = find_masks(demo) or _go_on(start)
    keep_masks(demo, demo.learned)
    figures = demo.learned.summary()
    demo.figures["learn"] = figures
    demo.rows += [
        ("learned", f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s"),
        ("groups changed against the one-shot mask", f"{100 * figures['groups_changed']:.1f} %"),
    ]


def recover(demo: Demo) -> None:
    """Train the kept weights against the dense model, for what is left of the budget."""
    from maskpro_deploy.learn import RecoverConfig, recover_checkpoint

    budget_s = (1 - _MASKS_SHARE) * demo.budget_s
    config = RecoverConfig(method=_METHOD, learning_rate=_RATE, budget_s=budget_s, seed=demo.seed)
    text, heldout = _read_texts(demo)

    def start(*, resume: bool) -> RecoverResult:
        meter = Meter("recovering", "s")
        return recover_checkpoint(demo.masked, demo.sparse, text, heldout, config, resume=resume, force=True, progress=meter)

    demo.recovered = _go_on(start)
    forget_masks(demo)
    figures = demo.recovered.summary()
    demo.figures["recover"] = figures
    demo.rows += [
        ("recovered", f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s"),
        ("kept weights moved by", f"{100 * figures['moved']:.1f} % of their length"),
    ]


def _read_texts(demo: Demo) -> tuple[Text, Text]:
    """The texts of both phases: the built-in one and, where there is time, what the dense model writes itself."""
    from maskpro_deploy.data import load_texts
    from maskpro_deploy.learn.self_text import write_text

    def write(name: str, tokens: int) -> Text:
        return write_text(demo.dense, name, tokens, seed=demo.seed, progress=Meter("writing", "tokens"))

    if demo.budget_s >= _LEAST_TO_WRITE_S:
        with suppress(CheckFailed):  # a model that writes nothing learns from the built-in text alone
            return load_texts(_TEXTS, HELD_OUT, write)
    return load_texts(BUILTIN, HELD_OUT)


def _go_on(start: Callable[..., R]) -> R:
    """The result of a run that goes on where it was interrupted, if it was."""
    try:
        return start(resume=True)
    except InputError:  # nothing to resume, or the state of another run
        return start(resume=False)


def prove(demo: Demo) -> None:
    """Count every group of the sparse checkpoint."""
    from maskpro_deploy.validation import validate

    with closing(Meter("validating", "weights")) as meter:
        report = validate(demo.sparse, demo.pattern, progress=meter)
    if not report.holds:
        raise CheckFailed(f"{demo.sparse}: {report.verdict}")
    groups = sum(t.groups for t in report.required)
    demo.rows.append((f"layers exactly {demo.pattern}", f"{len(report.required)} of {len(report.required)}, {groups:,} groups"))
    demo.figures["validation"] = {k: v for k, v in report.to_json().items() if k != "tensors"}


def evaluate(demo: Demo) -> None:
    """Perplexity of the dense, the one-shot, the learned and the recovered model, in fp32 on the same held-out windows."""
    from maskpro_deploy.data import load_text, load_tokenizer, separator_token
    from maskpro_deploy.evaluate import EvalProtocol, compare_all
    from maskpro_deploy.torch_lm import TorchLM

    assert demo.learned is not None
    protocol = EvalProtocol(window=_EVAL_WINDOW)
    tokenizer = load_tokenizer(demo.dense)
    separator = separator_token(demo.dense, tokenizer)
    windows = protocol.windows(load_text(HELD_OUT), tokenizer, separator=separator, bos_token=None).tokens
    # spread over the whole text, so that every genre counts
    windows = windows[np.linspace(0, len(windows) - 1, min(_EVAL_WINDOWS, len(windows))).astype(int)]
    one_shot = TorchLM.open(demo.dense)
    one_shot.apply(demo.learned.prior_masks)
    models = {"one-shot": one_shot, "learned": TorchLM.open(demo.masked), "recovered": TorchLM.open(demo.sparse)}
    with closing(Meter("evaluating", "windows")) as meter:
        dense, compared = compare_all(models, TorchLM.open(demo.dense), windows, meter)
    values = {"dense": dense, **{name: c.model for name, c in compared.items()}}
    below = {name: 1.0 - values[name].perplexity / values["one-shot"].perplexity for name in ("learned", "recovered")}
    demo.figures["quality"] = {
        "protocol": {**protocol.to_json(), "windows": len(windows), "data": HELD_OUT},
        "perplexity": {name: v.perplexity for name, v in values.items()},
        "stderr": {name: v.stderr for name, v in values.items()},
        "below_one_shot": below,
        "kl_to_dense": {name: c.kl for name, c in compared.items()},
        "top1_agreement": {name: c.top1_agreement for name, c in compared.items()},
    }
    demo.rows += [
        ("held-out perplexity, dense", f"{dense.perplexity:.2f}"),
        ("held-out perplexity, one-shot Wanda mask", f"{values['one-shot'].perplexity:.2f}"),
        *(
            (f"held-out perplexity, {what}", f"{values[name].perplexity:.2f} ({100 * below[name]:.0f} % below one-shot)")
            for name, what in (("learned", "learned masks and deltas"), ("recovered", "recovered weights"))
        ),
    ]


def export_bundles(demo: Demo) -> None:
    """The sparse bundle, verified against torch and proven again on its own bytes, and the dense twin."""
    from maskpro_deploy.exporters import ExportConfig, export
    from maskpro_deploy.torch_lm import TorchLM
    from maskpro_deploy.validation import validate

    config, started = ExportConfig(require_sparsity=demo.pattern), time.monotonic()
    with closing(Meters()) as meters:
        reference = lambda: TorchLM.open(demo.sparse)  # noqa: E731
        manifest = export(demo.sparse, demo.bundle, config, reference=reference, force=True, progress=meters)
    seconds = time.monotonic() - started
    export(demo.dense, demo.dense_bundle, unverified="the dense twin is for comparison only", force=True)
    report = validate(demo.bundle, demo.pattern)
    if not report.holds:
        raise CheckFailed(f"{demo.bundle}: {report.verdict}")
    v = manifest.verification
    demo.figures["export"] = {"seconds_with_verification": round(seconds, 1), **v}
    demo.rows += [
        ("ONNX against torch, largest logit difference", f"{v['max_logit_difference']:.1e}"),
        ("ONNX against torch, greedy tokens equal", f"{v['greedy_equal']} of {v['greedy_tokens']}"),
        (f"ONNX weights exactly {demo.pattern}", f"{len(report.required)} of {len(report.required)}"),
    ]


def build(demo: Demo) -> None:
    """An engine ahead of time, where the library for it is installed."""
    demo.not_measured.append("speed of sparse kernels: it needs an NVIDIA GPU and TensorRT (maskpro-deploy doctor says more)")
    if missing("tensorrt-rtx"):
        demo.rows.append(("TensorRT-RTX engine", "not built: pip install 'maskpro-deploy[tensorrt-rtx]'"))
        demo.not_measured.append("whether TensorRT-RTX builds the graph: it is not installed here")
        return
    from maskpro_deploy.exporters import EngineConfig, ExportConfig, build_engine, export

    folder = demo.out / "bundle-fp16"
    reason = "its fp32 twin was compared with torch; `export --dtype fp16` compares in fp16 arithmetic"
    export(demo.sparse, folder, ExportConfig(dtype="fp16"), unverified=reason, force=True)
    with closing(Meter("building", "s")) as meter:
        report = build_engine(folder, EngineConfig(backend="tensorrt-rtx", max_batch=4), meter)
    engine = report.engine
    eligible = sum(row.eligible for row in report.layers)
    demo.rows += [
        ("TensorRT-RTX engine, fp16", f"built in {report.build_s:.1f} s, {report.bytes / 1e6:.0f} MB, {engine.target}"),
        ("layers eligible for sparse tensor cores", f"{eligible} of {len(report.layers)}"),
    ]
    demo.figures["engine"] = report.to_json()
    demo.not_measured.append(f"the engine's speed: no GPU ran it ({engine.sparse_kernels})")


def measure(demo: Demo) -> None:
    """Prefill and decode latency of both bundles in one interleaved run."""
    from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency
    from maskpro_deploy.bench.sweeps.summary import verdicts
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig
    from maskpro_deploy.targets.arms import notes_for, open_arms

    config = LatencyConfig(sweep=SweepConfig(budget_s=_LATENCY_S, seed=demo.seed))
    arms = open_arms([demo.bundle, demo.dense_bundle], "cpu", None)
    with closing(Meter("benchmark", "cases")) as meter:
        result = run_latency(arms, config, notes=notes_for(arms), progress=meter)
    demo.latency = result
    demo.figures["latency"] = result.to_json()
    if not result.valid:
        demo.not_measured.append(f"latency: the run was invalid ({result.invalid_reasons[0]})")
        return
    for case in result.cases:
        for arm in result.arms:
            summary = case.summary(arm.name)
            if summary is not None:
                name = "sparse" if arm is result.arms[0] else "dense"
                demo.rows.append((f"{case.case.label}, {name}", f"{summary.median:.1f} ms"))
    demo.rows += [(f"{v.case}, speed of sparse over dense", _show_verdict(v)) for v in verdicts(result)]
    demo.not_measured.append("a gain of 2:4 on this CPU: stock onnxruntime has no 2:4 kernels, so none is expected")


def _show_verdict(verdict: Verdict) -> str:
    """A comparison in a line of the table."""
    if verdict.ratio is None:
        return "too few sessions"
    speed, interval = wording.format_ratio(verdict.ratio)
    return f"{speed} {interval}: {wording.describe_outcome(verdict.ratio, same_kernels=verdict.same_kernels)}"


def ask(demo: Demo) -> None:
    """Ask the sparse and the dense model one question, each over HTTP."""
    answers = {name: _ask_bundle(bundle) for name, bundle in (("sparse", demo.bundle), ("dense", demo.dense_bundle))}
    demo.figures["serve"] = {"question": QUESTION, **answers}
    sparse, dense = answers["sparse"], answers["dense"]
    demo.rows += [
        ("asked over HTTP", QUESTION),
        ("the sparse model answered", " ".join(sparse["answer"].split())),
        ("the dense model answered", " ".join(dense["answer"].split())),
        ("HTTP request, whole, sparse", f"{sparse['seconds']:.2f} s for {sparse['completion_tokens']} tokens"),
    ]


def _ask_bundle(bundle: Path) -> dict[str, Any]:
    """Start a server on a free loopback port, ask the question, stop it."""
    from maskpro_deploy.runtime.http.config import ServeConfig
    from maskpro_deploy.runtime.http.lifecycle import running_server

    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": _ANSWER_TOKENS, "temperature": 0}
    with running_server(bundle, ServeConfig(port=0, generation_config="none")) as url:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=_HTTP_TIMEOUT_S) as response:
            model = json.load(response)["data"][0]["id"]
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            data=json.dumps({"model": model, **body}).encode(),
            headers={"Content-Type": "application/json"},
        )
        started = time.monotonic()
        with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as response:
            answer = json.load(response)
        seconds = time.monotonic() - started
    text, tokens = answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]
    return {"answer": text, "completion_tokens": tokens, "seconds": round(seconds, 3)}
