"""The steps that deploy the sparse model: export, build an engine, measure, serve."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import TYPE_CHECKING

from maskpro_deploy.bench.results import wording
from maskpro_deploy.demo.state import Demo
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.progress import Meter, Meters

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.summary import Verdict

QUESTION = "What is the capital of France?"
_LATENCY_S = 60.0
_ANSWER_TOKENS = 48
_HTTP_TIMEOUT_S = 300


def export_bundles(demo: Demo) -> None:
    """The sparse bundle, verified against torch and proven again on its own bytes, and the dense twin."""
    from maskpro_deploy.exporters import ExportConfig, export
    from maskpro_deploy.torch_lm import TorchLM
    from maskpro_deploy.validation import validate

    meters = Meters()
    started = time.monotonic()
    manifest = export(
        demo.sparse, demo.bundle, ExportConfig(require_sparsity=demo.pattern),
        reference=lambda: TorchLM.open(demo.sparse), force=True, progress=meters,
    )  # fmt: skip
    seconds = time.monotonic() - started
    meters.close()
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
    meter = Meter("building", "s")
    report = build_engine(folder, EngineConfig(backend="tensorrt-rtx", max_batch=4), meter)
    meter.close()
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

    meter = Meter("benchmark", "cases")
    config = LatencyConfig(sweep=SweepConfig(budget_s=_LATENCY_S, seed=demo.seed))
    arms = open_arms([demo.bundle, demo.dense_bundle], "cpu", None)
    result = run_latency(arms, config, notes=notes_for(arms), progress=meter)
    meter.close()
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
    """Start the server on a free loopback port, ask a question, stop it."""
    from maskpro_deploy.runtime.http.lifecycle import running_server

    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": _ANSWER_TOKENS, "temperature": 0}
    with running_server(demo.bundle) as url:
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
    demo.figures["serve"] = {"question": QUESTION, "answer": text, "completion_tokens": tokens, "seconds": round(seconds, 3)}
    demo.rows += [
        ("asked over HTTP", QUESTION),
        ("the sparse model answered", " ".join(text.split())),
        ("HTTP request, whole", f"{seconds:.2f} s for {tokens} tokens"),
    ]
