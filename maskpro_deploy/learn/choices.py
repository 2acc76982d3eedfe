"""What learning offers to choose from: estimators, priors, objectives and distributions, one entry each.

Options and help texts of the command line, defaults, checks, `plan` and the tables of `docs/learning.md` are made from these
entries. A new estimator, prior or distribution is one new file and one entry here; its code is loaded when it is used, so this
module needs no torch.

`summary` is the text of the documentation, `hint` the few words that help texts put behind the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from maskpro_deploy.errors import ConfigError

AUTO = "auto"
PRIOR_INPUTS = (AUTO, "dense", "pruned")
DTYPES = (AUTO, "float32", "bfloat16")
DEVICES = (AUTO, "cpu", "cuda")
# tokens in a step: many small steps learn more in the same time, but a GPU is not filled by few tokens
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One entry.

    Attributes:
        name: what the option takes.
        summary: one line for the documentation.
        hint: a few words for help texts; may be empty.
        home: "module:name" of the code; empty where there is none of its own.
    """

    name: str
    summary: str
    hint: str = ""
    home: str = ""

    @property
    def value(self) -> str:
        """What the option takes, in full."""
        return self.name

    def load(self) -> Any:
        """The code, imported now."""
        module, _, attribute = self.home.partition(":")
        return getattr(import_module(module), attribute)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorChoice(Choice):
    """An estimator; `summary` says what is learned from. Its code is a class, see `estimators.base.Estimator`.

    Attributes:
        reward: the value of `--reward` that it belongs to; None for any.
        by_block: whether it is the form for objectives that go block by block.
        learning_rate: the default.
        objective: the default with the dense weights; with weights that a prior changed it is "ce".
        distribution: the default.
        score_only: whether any distribution will do; others need one with a pathwise derivative.
        backward: whether activations are kept for a backward pass.
        products: matrix products of every layer in a step, a forward pass being one.
        products_per_sample: and as many for each of `--samples`.
        copies: of the batch that go through the model side by side.
        passes: the model's passes in a step, in words.
        state: bytes for each weight beyond the frozen one, in words.
    """

    learning_rate: float
    reward: str | None = None
    by_block: bool = False
    objective: str = "ce"
    distribution: str = "conditional-bernoulli"
    score_only: bool = False
    backward: bool = True
    products: int = 3
    products_per_sample: int = 0
    copies: int = 1
    passes: str
    state: str = "5.4 bytes"

    @property
    def usage(self) -> str:
        """The estimator and what it depends on."""
        return self.name if self.reward is None else f"{self.name} --reward {self.reward}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorChoice(Choice):
    """A one-shot mask to start from; `summary` is the score of a weight. Its code is a function, see `priors.base.Prior`.

    Attributes:
        takes: what follows the name and a colon; empty for nothing.
        inputs: the inputs of a layer that it sees by default, "dense" or "pruned"; empty for none.
        needs_grams: whether it needs Gram matrices of the inputs.
        updates_weights: whether it can change the weights, too.
        refinable: whether swaps make sense on its mask.
    """

    takes: str = ""
    inputs: str = "dense"
    needs_grams: bool = False
    updates_weights: bool = False
    refinable: bool = True

    @property
    def value(self) -> str:
        """The name, with what it takes."""
        return f"{self.name}:{self.takes}" if self.takes else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveChoice(Choice):
    """What a step minimises.

    Attributes:
        teacher_share: of the divergence from the dense model's predictions; the rest is cross-entropy.
        by_block: whether blocks are learned one after another, without a loss of the whole model.
    """

    teacher_share: float = 0.0
    by_block: bool = False

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model is compared with."""
        return self.by_block or self.teacher_share > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionChoice(Choice):
    """A distribution of masks; its code makes one from a pattern and a device, see `distributions.base.Distribution`.

    Attributes:
        pathwise: whether its marginals can be differentiated.
    """

    pathwise: bool


_ESTIMATORS, _PRIORS = "maskpro_deploy.learn.estimators", "maskpro_deploy.learn.priors"
_DISTRIBUTIONS = "maskpro_deploy.learn.distributions"

ESTIMATORS: tuple[EstimatorChoice, ...] = (
    EstimatorChoice(
        name="pathwise",
        summary="the loss, through ∂L/∂m",
        home=f"{_ESTIMATORS}.pathwise:PathwiseEstimator",
        learning_rate=0.04,
        objective="ce+kl",
        passes="forward and backward",
    ),
    EstimatorChoice(
        name="pathwise",
        by_block=True,
        summary="with `--objective block`: the outputs of the block",
        home=f"{_ESTIMATORS}.blockwise:BlockwiseEstimator",
        learning_rate=0.04,
        passes="forward up to the block, dense and masked; backward through it",
    ),
    EstimatorChoice(
        name="maskpro",
        reward="layer",
        summary="every output's distance from the dense layer's",
        hint="forward passes only",
        home=f"{_ESTIMATORS}.layerwise:LayerwiseEstimator",
        learning_rate=0.01,
        backward=False,
        copies=2,
        passes="forward, dense and masked together",
    ),
    EstimatorChoice(
        name="maskpro",
        reward="loss",
        summary="one loss a sample",
        home=f"{_ESTIMATORS}.maskpro:MaskProEstimator",
        learning_rate=0.1,  # its steps are not divided by a second moment
        score_only=True,
        backward=False,
        products=1,
        products_per_sample=1,
        passes="forward, `--samples` + 1 of them",
        state="2.4 bytes",
    ),
    EstimatorChoice(
        name="maskpro-paper",
        summary="as published: the residual against the initial mask, a moving average",
        hint="as published",
        home=f"{_ESTIMATORS}.maskpro_paper:MaskProPaperEstimator",
        learning_rate=50.0,  # MaskPro's own
        distribution="plackett-luce",
        score_only=True,
        backward=False,
        products=2,
        passes="two forward",
        state="2.4 bytes",
    ),
    EstimatorChoice(
        name="maskllm",
        summary="the loss of soft masks; C(M, N) logits a group",
        hint="a baseline",
        home=f"{_ESTIMATORS}.maskllm:MaskLLMEstimator",
        learning_rate=0.001,  # its candidates are scaled by 100 and more before the softmax
        passes="forward and backward",
        state="18 bytes for 2:4, and soft masks",
    ),
)

PRIORS: tuple[PriorChoice, ...] = (
    PriorChoice(
        name="wanda",
        summary=r"\|W\| times the norm of its input (arXiv 2306.11695)",
        home=f"{_PRIORS}.wanda:wanda",
    ),
    PriorChoice(name="magnitude", summary=r"\|W\|", home=f"{_PRIORS}.magnitude:magnitude", inputs=""),
    PriorChoice(
        name="sparsegpt",
        summary="cost by the optimal brain surgeon, column by column (arXiv 2301.00774)",
        home=f"{_PRIORS}.sparsegpt:sparsegpt",
        inputs="pruned",
        needs_grams=True,
        updates_weights=True,
    ),
    PriorChoice(
        name="ria",
        summary="share of its column plus share of its row, times the root of the input norm (Zhang et al., ICLR 2024); "
        "without the channel permutation",
        home=f"{_PRIORS}.ria:ria",
    ),
    PriorChoice(
        name="file",
        takes="PATH",
        summary="a mask file or sparse folder of the same dense weights; among its weights Wanda's order",
        hint="masks or a sparse folder",
        home=f"{_PRIORS}.from_file:from_file",
    ),
    PriorChoice(
        name="none",
        summary="a random mask by `--seed`",
        hint="random",
        home=f"{_PRIORS}.no_prior:no_prior",
        inputs="",
        refinable=False,
    ),
)

OBJECTIVES: tuple[ObjectiveChoice, ...] = (
    ObjectiveChoice(name="ce", summary="cross-entropy of the next token", hint="cross-entropy"),
    ObjectiveChoice(
        name="kl",
        summary="the divergence from the dense model's predictions",
        hint="to the dense model",
        teacher_share=1.0,
    ),
    ObjectiveChoice(name="ce+kl", summary="the mean of both", hint="the mean of both", teacher_share=0.5),
    ObjectiveChoice(
        name="block",
        summary="the squared difference of each block's outputs from the dense block's, one block after the other",
        hint="by blocks",
        by_block=True,
    ),
)

DISTRIBUTIONS: tuple[DistributionChoice, ...] = (
    DistributionChoice(
        name="conditional-bernoulli",
        summary="p(m) ∝ exp⟨θ, m⟩ over the masks with exactly N of M",
        home=f"{_DISTRIBUTIONS}.conditional_bernoulli:conditional_bernoulli",
        pathwise=True,
    ),
    DistributionChoice(
        name="plackett-luce",
        summary="MaskPro's own: N draws without replacement (N ≤ 8)",
        home=f"{_DISTRIBUTIONS}.plackett_luce:PlackettLuce",
        pathwise=False,
    ),
)

C = TypeVar("C", bound=Choice)


def names_of(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Every name once, in order."""
    return tuple(dict.fromkeys(choice.name for choice in choices))


def rewards() -> tuple[str, ...]:
    """The values of `--reward`."""
    return tuple(dict.fromkeys(choice.reward for choice in ESTIMATORS if choice.reward is not None))


def describe(choices: Sequence[Choice]) -> str:
    """All of them for a help text: `a, b (its hint)`; of several entries with one name the first."""
    first = [find(choices, name) for name in names_of(choices)]
    return ", ".join(f"{choice.value} ({choice.hint})" if choice.hint else choice.value for choice in first)


def check_known(flag: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not one of those known.

    Raises:
        ConfigError: it is unknown; the message has the flag and what is known.
    """
    if value not in known:
        raise ConfigError(f"{flag} {value!r} is unknown; choose one of {', '.join(known)}.")


def find(choices: Sequence[C], name: str) -> C:
    """The entry of a name that is known."""
    return next(choice for choice in choices if choice.name == name)


def find_prior(text: str) -> tuple[PriorChoice, str]:
    """The prior that `--prior` names, and what it takes (empty for nothing).

    Raises:
        ConfigError: it is unknown.
    """
    name, colon, argument = text.partition(":")
    known = [choice.value for choice in PRIORS]
    entry = next((choice for choice in PRIORS if choice.name == name and bool(colon) == bool(choice.takes)), None)
    check_known("--prior", text if entry is None else entry.value, known)
    assert entry is not None  # else it was refused
    return entry, argument


def find_estimator(name: str, reward: str, *, by_block: bool) -> EstimatorChoice:
    """The entry for an estimator that is known, a reward, and a kind of objective.

    Raises:
        ConfigError: the estimator does not learn block by block.
    """
    for choice in ESTIMATORS:
        if choice.name == name and choice.reward in (None, reward) and choice.by_block == by_block:
            return choice
    able = ", ".join(f"--estimator {choice.usage}" for choice in ESTIMATORS if choice.by_block)
    raise ConfigError(f"--objective block is learned by {able}, not by {name}.")
