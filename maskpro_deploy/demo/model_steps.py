"""The steps that make the sparse model and judge it: fetch, learn, prove, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskpro_deploy.demo.state import Demo
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.system.progress import Meter

if TYPE_CHECKING:
    from maskpro_deploy.learn import LearnResult

_EVAL_WINDOW, _EVAL_WINDOWS = 512, 32


def fetch(demo: Demo) -> None:
    """Get the model's folder."""
    from maskpro_deploy.models import demo_model

    demo.dense = demo_model()
    demo.rows.append(("model", "SmolLM2-135M-Instruct (from 4-bit GGUF)"))
    demo.figures["model"] = demo.dense.name


def learn(demo: Demo) -> None:
    """Learn the masks; a run that was interrupted goes on where it was."""
    from maskpro_deploy.data import BUILTIN, HELD_OUT, load_text
    from maskpro_deploy.learn import LearnConfig, learn_checkpoint

    config = LearnConfig(pattern=demo.pattern, budget_s=demo.budget_s, seed=demo.seed)
    text, heldout = load_text(BUILTIN), load_text(HELD_OUT)

    def start(*, resume: bool) -> LearnResult:
        meter = Meter("learning", "s")
        return learn_checkpoint(
            demo.dense, demo.sparse, text, heldout, config, resume=resume, force=True, progress=meter
        )  # fmt: skip

    try:
        demo.learned = start(resume=True)
    except InputError:  # nothing to resume, or the state of another run
        demo.learned = start(resume=False)
    figures = demo.learned.summary()
    demo.figures["learn"] = figures
    demo.rows += [
        ("learned", f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['seconds']:.0f} s"),
        ("groups changed against the one-shot mask", f"{100 * figures['groups_changed']:.1f} %"),
    ]


def prove(demo: Demo) -> None:
    """Count every group of the sparse checkpoint."""
    from maskpro_deploy.validation import validate

    meter = Meter("validating", "weights")
    report = validate(demo.sparse, demo.pattern, progress=meter)
    meter.close()
    if not report.holds:
        raise CheckFailed(f"{demo.sparse}: {report.verdict}")
    groups = sum(t.groups for t in report.required)
    demo.validation = report
    demo.rows.append((f"layers exactly {demo.pattern}", f"{len(report.required)} of {len(report.required)}, {groups:,} groups"))
    demo.figures["validation"] = {k: v for k, v in report.to_json().items() if k != "tensors"}


def evaluate(demo: Demo) -> None:
    """Perplexity of the dense, the one-shot and the learned model, in fp32 on the same held-out windows."""
    from maskpro_deploy.data import HELD_OUT, load_text, load_tokenizer, separator_token
    from maskpro_deploy.evaluate import EvalProtocol, compare_all
    from maskpro_deploy.torch_lm import TorchLM

    assert demo.learned is not None
    protocol = EvalProtocol(window=_EVAL_WINDOW)
    tokenizer = load_tokenizer(demo.dense)
    windows = protocol.windows(
        load_text(HELD_OUT), tokenizer, separator=separator_token(demo.dense, tokenizer), bos_token=None
    ).tokens  # fmt: skip
    # spread over the whole text, so that every genre counts
    windows = windows[np.linspace(0, len(windows) - 1, min(_EVAL_WINDOWS, len(windows))).astype(int)]
    one_shot = TorchLM.open(demo.dense)
    one_shot.apply(demo.learned.prior_masks)
    meter = Meter("evaluating", "windows")
    dense, compared = compare_all(
        {"one-shot": one_shot, "learned": TorchLM.open(demo.sparse)}, TorchLM.open(demo.dense), windows, meter
    )  # fmt: skip
    meter.close()
    values = {"dense": dense, **{name: c.model for name, c in compared.items()}}
    below = 1.0 - values["learned"].perplexity / values["one-shot"].perplexity
    demo.figures["quality"] = {
        "protocol": {**protocol.to_json(), "windows": len(windows), "data": HELD_OUT},
        "perplexity": {name: v.perplexity for name, v in values.items()},
        "stderr": {name: v.stderr for name, v in values.items()},
        "learned_below_one_shot": below,
        "kl_to_dense": {name: c.kl for name, c in compared.items()},
        "top1_agreement": {name: c.top1_agreement for name, c in compared.items()},
    }
    demo.rows += [
        ("held-out perplexity, dense", f"{dense.perplexity:.2f}"),
        ("held-out perplexity, one-shot Wanda mask", f"{values['one-shot'].perplexity:.2f}"),
        ("held-out perplexity, learned mask", f"{values['learned'].perplexity:.2f} ({100 * below:.0f} % below one-shot)"),
    ]
