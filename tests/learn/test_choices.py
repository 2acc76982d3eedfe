"""What there is to choose from: every entry loads, help and docs are made from the entries, and one more is one entry."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_learn import CONFIG, run

from maskpro_deploy import learn_masks
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.cli import cli
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn import LearnConfig, choices
from maskpro_deploy.learn.choices import (
    Choice,
    DistributionChoice,
    EstimatorChoice,
    MethodChoice,
    ObjectiveChoice,
    PriorChoice,
    WeightsChoice,
)
from maskpro_deploy.learn.distributions.conditional_bernoulli import Enumerated
from maskpro_deploy.learn.estimators.base import Estimator
from maskpro_deploy.learn.model.model import Windows
from maskpro_deploy.learn.priors.base import LayerView, Verdict
from maskpro_deploy.learn.recovery.method import Method
from maskpro_deploy.pattern import NMPattern

ROOT = Path(__file__).resolve().parents[2]
ALL = (
    *choices.ESTIMATORS, *choices.PRIORS, *choices.OBJECTIVES, *choices.DISTRIBUTIONS, *choices.WEIGHTS, *choices.METHODS,
    *choices.TRANSFORMS,
)  # fmt: skip


class Backwards(Estimator):
    """An estimator that turns every preference round."""

    def step(self, windows: Windows, step: int, left: float) -> torch.Tensor:
        loss = self._try_masks(windows, step)
        for site in self._sites:
            site.logits.mul_(-self._config.rate)
            site.kept = site.argmax()
        return torch.tensor(loss)


def last_weights(layer: LayerView) -> Verdict:
    """A prior that keeps the last weights of every group."""
    return Verdict(importance=torch.arange(1.0, layer.weight.shape[1] + 1).expand_as(layer.weight))


@pytest.mark.parametrize("choice", ALL, ids=lambda choice: f"{type(choice).__name__}-{choice.value}")
def test_every_entry_says_what_it_is_and_loads(choice: Choice) -> None:
    assert choice.summary
    assert not choice.summary.endswith(".")
    if isinstance(choice, WeightsChoice):
        assert bool(choice.home) == (choice.learning_rate is not None)
    if not isinstance(choice, ObjectiveChoice) and choice.name != "frozen":
        assert callable(choice.load())
    if isinstance(choice, EstimatorChoice):
        assert issubclass(choice.load(), Estimator)
        assert choice.objective in choices.names_of(choices.OBJECTIVES)
        assert choice.distribution in choices.names_of(choices.DISTRIBUTIONS)
    if isinstance(choice, MethodChoice):
        assert issubclass(choice.load(), Method)
    if isinstance(choice, DistributionChoice):
        assert hasattr(choice.load()(NMPattern(2, 4), "cpu"), "pathwise") == choice.pathwise
    if isinstance(choice, PriorChoice):
        assert choice.inputs in ("", "dense", "pruned")


def test_no_two_entries_are_the_same() -> None:
    keys = [(e.name, e.reward, e.by_block) for e in choices.ESTIMATORS]
    assert len(set(keys)) == len(keys)
    for entries in (choices.PRIORS, choices.OBJECTIVES, choices.DISTRIBUTIONS, choices.WEIGHTS, choices.METHODS):
        assert len(choices.names_of(entries)) == len(entries)
    homes = [choice.home for choice in ALL if choice.home]
    assert len(set(homes)) == len(homes)


def test_every_estimator_and_prior_file_has_its_entry() -> None:
    homes = {choice.home.partition(":")[0].rpartition(".")[2] for choice in ALL}
    shared = {"__init__", "base", "compute", "refine", "planes", "blocks", "transport", "transposable"}
    for room in ("estimators", "priors", "distributions"):
        files = {path.stem for path in (ROOT / "maskpro_deploy" / "learn" / room).glob("*.py")}
        assert files - shared <= homes


def test_options_and_defaults_need_no_torch() -> None:
    code = "import sys; from maskpro_deploy.commands import learn, plan, recover; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    text = CliRunner().invoke(cli, ["learn", "--help"], catch_exceptions=False).stdout
    for choice in ALL:
        assert choice.value in text or isinstance(choice, MethodChoice)
    text = CliRunner().invoke(cli, ["recover", "--help"], catch_exceptions=False).stdout
    for method in choices.METHODS:
        assert method.value in text


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    for settings in ({"prior": "file"}, {"prior": "wanda:x"}, {"estimator": "x"}, {"objective": "x"}, {"distribution": "x"}):
        with pytest.raises(ConfigError, match="is not known"):
            LearnConfig(pattern=NMPattern(2, 4), **settings)
    with pytest.raises(ConfigError, match="--estimator maskpro --reward loss or --estimator maskpro-paper"):
        LearnConfig(pattern=NMPattern(2, 4), distribution="plackett-luce")


def test_a_new_estimator_is_one_entry(dense: Checkpoint, text: Text, heldout: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EstimatorChoice(
        name="backwards", summary="nothing", home=f"{__name__}:Backwards", learning_rate=3.0, score_only=True, passes="one"
    )
    monkeypatch.setattr(choices, "ESTIMATORS", (*choices.ESTIMATORS, entry))
    config = replace(CONFIG, estimator="backwards", learning_rate=None, steps=2)
    assert config.rate == 3.0
    assert config.minimised == "ce"
    assert replace(config, distribution="plackett-luce").distribution_choice.name == "plackett-luce"
    masks = learn_masks(dense.folder, text, config, heldout=heldout)
    assert all(config.pattern.holds(masks.mask(name)) for name in masks)


def test_a_new_prior_is_one_entry(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PriorChoice(name="last", summary="the place in the group", home=f"{__name__}:last_weights", inputs="")
    monkeypatch.setattr(choices, "PRIORS", (*choices.PRIORS, entry))
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, prior="last", steps=1))
    first = result.prior_masks.mask(next(iter(result.prior_masks)))
    assert first.reshape(-1, 4).tolist() == [[False, False, True, True]] * (first.size // 4)


def test_a_new_distribution_is_one_entry(dense: Checkpoint, text: Text, heldout: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = DistributionChoice(name="again", summary="the same", home=f"{Enumerated.__module__}:Enumerated", pathwise=True)
    monkeypatch.setattr(choices, "DISTRIBUTIONS", (*choices.DISTRIBUTIONS, entry))
    config = replace(CONFIG, steps=2)
    again = learn_masks(dense.folder, text, replace(config, distribution="again"), heldout=heldout)
    assert again.sha256() == learn_masks(dense.folder, text, config, heldout=heldout).sha256()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = f"|{'---|' * len(head)}"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def tables() -> list[str]:
    """The tables of the documentation."""
    inputs = {"": "none", "dense": "of the dense model", "pruned": "behind the pruned blocks"}
    first = choices.ESTIMATORS[0]
    return [
        table(
            ("estimator", "passes a step", "what is learned from", "learning rate", "state a weight"),
            [
                (
                    f"`{e.usage}`" + (" (default)" if e is first else ", block by block" if e.by_block else ""),
                    e.passes,
                    e.summary,
                    f"{e.learning_rate:g}",
                    e.state,
                )
                for e in choices.ESTIMATORS
            ],
        ),
        table(("distribution", "of the masks"), [(f"`{d.name}`", d.summary) for d in choices.DISTRIBUTIONS]),
        table(
            ("prior", "score of a weight", "inputs it sees"),
            [
                (f"`{p.value}`" + (" (default)" if p is choices.PRIORS[0] else ""), p.summary, inputs[p.inputs])
                for p in choices.PRIORS
            ],
        ),
        table(("objective", "what is minimised"), [(f"`{o.name}`", o.summary) for o in choices.OBJECTIVES]),
        table(
            ("`--weights`", "what happens to the weights", "rate"),
            [(f"`{w.name}`", w.summary, "" if w.learning_rate is None else f"{w.learning_rate:g}") for w in choices.WEIGHTS],
        ),
        table(
            ("method", "what is trained", "learning rate", "state beyond the weights, a kept weight"),
            [
                (f"`{m.name}`" + (" (default)" if m is choices.METHODS[0] else ""), m.summary, f"{m.learning_rate:g}", m.state)
                for m in choices.METHODS
            ],
        ),
        table(("`--transform`", "what moves"), [(f"`{t.name}`", t.summary) for t in choices.TRANSFORMS]),
    ]


@pytest.mark.parametrize("number", range(7))
def test_the_documentation_has_every_entry(number: int) -> None:
    wanted, page = tables()[number], "recover.md" if number == 5 else "learning.md"
    assert wanted in (ROOT / "docs" / page).read_text(encoding="utf-8"), f"docs/{page} should have\n{wanted}"
