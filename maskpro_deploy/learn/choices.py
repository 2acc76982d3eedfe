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

from maskpro_deploy.errors import ConfigError, check_known

AUTO, NONE = "auto", "none"
PRIOR_INPUTS = (AUTO, "dense", "pruned")
DTYPES = (AUTO, "float32", "bfloat16")
DEVICES = (AUTO, "cpu", "cuda")
# tokens in a step: many small steps learn more in the same time, but a GPU is not filled by few tokens
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}
DEFAULT_OBJECTIVE = "ce+kl"
WEIGHT_RATE = 5e-4  # of Adam on kept weights, at the start
DELTA_RATE, JOINT_DELTA_RATE = 1e-3, 2e-3  # of Adam on the factors of low-rank deltas, under masks that stay and that move
FROZEN, JOINT = "frozen", "lora"  # of `WEIGHTS`: nothing moves, and what measured best together with the masks
RANK, ALPHA = 16, 32.0  # of these, as PEFT has them: deltas are scaled by alpha / rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One entry."""

    name: str  # what the option takes
    summary: str  # one line for the documentation
    hint: str = ""  # a few words for help texts
    home: str = ""  # "module:name" of the code; empty where there is none of its own

    @property
    def value(self) -> str:
        """What the option takes, in full."""
        return self.name

    def load(self) -> Any:
        """The code, imported now."""
        return _load(self.home)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorChoice(Choice):
    """An estimator; `summary` says what is learned from. Its code is a class, see `estimators.base.Estimator`."""

    learning_rate: float  # the default, as are objective, distribution and prior
    reward: str | None = None  # the value of `--reward` that it belongs to; None for any
    by_block: bool = False  # whether it is the form for objectives that go block by block
    one_pattern: bool = False  # whether all layers have to hold the same one
    objective: str = "ce"  # with the dense weights; with weights that a prior changed it is "ce"
    distribution: str = "conditional-bernoulli"
    prior: str = "wanda"
    pattern: str | None = None  # the only one that it learns; None for any
    own_start: bool = False  # whether it starts from the mask of that prior alone
    settings: tuple[str, ...] = ()  # of `LearnConfig`, that are its own
    moves_weights: bool = False  # whether the kept weights can move in its backward pass
    transposable: bool = False  # whether it learns masks that hold the pattern along both axes
    score_only: bool = False  # whether any distribution will do; others need one with a pathwise derivative
    backward: bool = True  # whether activations are kept for a backward pass
    products: int = 3  # matrix products of every layer in a step, a forward pass being one,
    products_per_sample: int = 0  # and as many for each of `--samples`
    copies: int = 1  # of the batch that go through the model side by side
    collects_gradients: bool = False  # whether those of all layers are held until the end of a step, in float32
    published: bool = False  # whether it is one of others: "auto" settings leave it as it was published
    passes: str  # the model's passes in a step, in words
    state: str = "5.4 bytes"  # for each weight beyond the frozen one, in words

    @property
    def usage(self) -> str:
        """The estimator and what it depends on."""
        return self.name if self.reward is None else f"{self.name} --reward {self.reward}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorChoice(Choice):
    """A one-shot mask to start from; `summary` is the score of a weight. Its code is a function, see `priors.base.Prior`."""

    takes: str = ""  # what follows the name and a colon; empty for nothing
    inputs: str = "dense"  # of a layer, that it sees by default: "dense" or "pruned"; empty for none
    needs_grams: bool = False  # of the inputs
    updates_weights: bool = False  # whether it can change the weights, too
    refinable: bool = True  # whether swaps make sense on its mask

    @property
    def value(self) -> str:
        """The name, with what it takes."""
        return f"{self.name}:{self.takes}" if self.takes else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveChoice(Choice):
    """What a step minimises."""

    teacher_share: float = 0.0  # of the divergence from the dense model's predictions; the rest is cross-entropy
    by_block: bool = False  # whether blocks are learned one after another, without a loss of the whole model

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model is compared with."""
        return self.by_block or self.teacher_share > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionChoice(Choice):
    """A distribution of masks; its code makes one from a pattern and a device, see `distributions.base.Distribution`."""

    pathwise: bool  # whether its marginals can be differentiated
    transposable_home: str = ""  # of its form over transposable masks, as `home`; empty where it has none

    def load_transposable(self) -> Any:
        """The code of that form, imported now."""
        return _load(self.transposable_home)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChoice(Choice):
    """What happens to kept weights while masks are learned; its code is a class, see `estimators.joint_weights.JointWeights`."""

    learning_rate: float | None = None  # the default; None where they stay
    by_deltas: bool = False  # whether low-rank deltas move


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice(Choice):
    """A way to train weights under masks that stay; its code is a class, see `recovery.method.Method`."""

    trainer: str = "maskpro_deploy.learn.recovery.trainer:RecoveryTrainer"  # the run that it needs, as `home`
    learning_rate: float  # the default
    by_block: bool = False  # whether blocks are trained one after another against the dense ones
    products: int = 3  # matrix products of every layer in a step, without those of a teacher
    trains_vectors: bool = False  # whether it can train the scales of norms and biases, too
    state: str  # for each kept weight beyond the weights, in words

    def load_trainer(self) -> Any:
        """The code of the run."""
        return _load(self.trainer)


def _load(home: str) -> Any:
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformChoice(Choice):
    """Channels that can change places without a change of the dense model; its code finds them, see `transforms.axes`."""


_ESTIMATORS, _PRIORS, _DISTRIBUTIONS, _METHODS, _TRANSFORMS = (
    f"maskpro_deploy.learn.{room}" for room in ("estimators", "priors", "distributions", "recovery", "transforms")
)

# fmt: off
ESTIMATORS: tuple[EstimatorChoice, ...] = (
    EstimatorChoice(
        name="pathwise", home=f"{_ESTIMATORS}.pathwise:PathwiseEstimator", learning_rate=0.04, objective="ce+kl",
        moves_weights=True, transposable=True,
        summary="the loss, through ∂L/∂m", passes="forward and backward",
    ),
    EstimatorChoice(
        name="pathwise", home=f"{_ESTIMATORS}.blockwise:BlockwiseEstimator", by_block=True, learning_rate=0.04, transposable=True,
        summary="with `--objective block`: the outputs of the block",
        passes="forward up to the block, dense and masked; backward through it",
    ),
    EstimatorChoice(
        name="maskpro", home=f"{_ESTIMATORS}.layerwise:LayerwiseEstimator", reward="layer", learning_rate=0.01,
        summary="every output's distance from the dense layer's", hint="forward passes only", backward=False, copies=2,
        passes="forward, dense and masked together",
    ),
    EstimatorChoice(
        name="maskpro", home=f"{_ESTIMATORS}.maskpro:MaskProEstimator", reward="loss",
        learning_rate=0.1,  # its steps are not divided by a second moment
        summary="one loss a sample", score_only=True, backward=False, products=1, products_per_sample=1,
        passes="forward, `--samples` + 1 of them", state="2.4 bytes",
    ),
    EstimatorChoice(
        name="maskpro-paper", home=f"{_ESTIMATORS}.maskpro_paper:MaskProPaperEstimator", learning_rate=50.0,  # MaskPro's own
        published=True,
        summary="as published: the residual against the initial mask, a moving average", hint="as published",
        distribution="plackett-luce", score_only=True, backward=False, products=2, passes="two forward", state="2.4 bytes",
        settings=("renew_initial",),
    ),
    EstimatorChoice(
        name="maskllm", home=f"{_ESTIMATORS}.maskllm:MaskLLMEstimator", one_pattern=True, published=True,
        learning_rate=0.001,  # its candidates are scaled by 100 and more before the softmax
        summary="the loss of soft masks; C(M, N) logits a group", hint="a baseline", passes="forward and backward",
        state="18 bytes for 2:4, and soft masks",
    ),
    EstimatorChoice(
        name="proxsparse", home=f"{_ESTIMATORS}.proxsparse:ProxSparseEstimator", one_pattern=True, published=True,
        learning_rate=1e-4,  # of the weights' copy
        pattern="2:4", prior="magnitude", own_start=True, collects_gradients=True, settings=("prox_strength", "prox_anchor"),
        summary="the loss of a copy of the weights that is pushed towards 2:4; its two largest are kept",
        hint="a baseline", passes="forward and backward, without masks", state="12 bytes, and gradients of 4",
    ),
    EstimatorChoice(
        name="susi", home=f"{_ESTIMATORS}.susi:SusiEstimator", one_pattern=True, published=True,
        learning_rate=0.001, prior="none", collects_gradients=True,
        summary="the loss of soft masks, N draws by a chain of softmaxes", hint="a baseline", passes="forward and backward",
        state="12 bytes, gradients of 4, and soft masks",
    ),
)

PRIORS: tuple[PriorChoice, ...] = (
    PriorChoice(name="wanda", summary=r"\|W\| times the norm of its input (arXiv 2306.11695)", home=f"{_PRIORS}.wanda:wanda"),
    PriorChoice(name="magnitude", summary=r"\|W\|", home=f"{_PRIORS}.magnitude:magnitude", inputs=""),
    PriorChoice(
        name="sparsegpt", home=f"{_PRIORS}.sparsegpt:sparsegpt", inputs="pruned", needs_grams=True, updates_weights=True,
        summary="cost by the optimal brain surgeon, column by column (arXiv 2301.00774)",
    ),
    PriorChoice(
        name="ria", home=f"{_PRIORS}.ria:ria",
        summary="share of its column plus share of its row, times the root of the input norm (Zhang et al., ICLR 2024); "
        "without the channel permutation",
    ),
    PriorChoice(
        name="file", home=f"{_PRIORS}.from_file:from_file", takes="PATH", hint="masks or a pruned folder",
        summary="a mask file or a pruned folder, of the same dense weights; among its weights Wanda's order",
    ),
    PriorChoice(
        name="none", home=f"{_PRIORS}.no_prior:no_prior", summary="a random mask by `--seed`", hint="random", inputs="",
        refinable=False,
    ),
)

OBJECTIVES: tuple[ObjectiveChoice, ...] = (
    ObjectiveChoice(name="ce", summary="cross-entropy of the next token", hint="cross-entropy"),
    ObjectiveChoice(
        name="kl", summary="the divergence from the dense model's predictions", hint="to the dense model", teacher_share=1.0
    ),
    ObjectiveChoice(name="ce+kl", summary="the mean of both", hint="the mean of both", teacher_share=0.5),
    ObjectiveChoice(
        name="block", hint="by blocks", by_block=True,
        summary="the squared difference of each block's outputs from the dense block's, one block after the other",
    ),
)

DISTRIBUTIONS: tuple[DistributionChoice, ...] = (
    DistributionChoice(
        name="conditional-bernoulli", home=f"{_DISTRIBUTIONS}.conditional_bernoulli:conditional_bernoulli", pathwise=True,
        transposable_home=f"{_DISTRIBUTIONS}.transposable:transposable_bernoulli",
        summary="p(m) ∝ exp⟨θ, m⟩ over the masks with exactly N of M",
    ),
    DistributionChoice(
        name="plackett-luce", home=f"{_DISTRIBUTIONS}.plackett_luce:PlackettLuce", pathwise=False,
        summary="MaskPro's own: N draws without replacement (N ≤ 8)",
    ),
)

WEIGHTS: tuple[WeightsChoice, ...] = (
    WeightsChoice(name=FROZEN, summary="they stay those of the dense model"),
    WeightsChoice(
        name="train", home=f"{_ESTIMATORS}.joint_weights:KeptWeights", learning_rate=WEIGHT_RATE, hint="every kept weight",
        summary="every kept weight moves with the masks",
    ),
    WeightsChoice(
        name=JOINT, home=f"{_ESTIMATORS}.joint_weights:LowRankWeights", learning_rate=JOINT_DELTA_RATE, by_deltas=True,
        summary="low-rank deltas of all layers move with the masks, W + s B A", hint="low-rank deltas",
    ),
)

TRANSFORMS: tuple[TransformChoice, ...] = (
    TransformChoice(
        name="residual", hint="of the whole model", home=f"{_TRANSFORMS}.axes:find_residual",
        summary="channels of the residual stream: columns of every layer that reads it (the output head and routers, too), rows "
        "of every layer that writes it, norms, embeddings; one permutation for the whole model",
    ),
    TransformChoice(
        name="mlp", hint="of each MLP", home=f"{_TRANSFORMS}.axes:find_mlps",
        summary="hidden channels of each MLP, and of each expert: rows of its first layers, columns of its last one",
    ),
    TransformChoice(
        name="heads", hint="of each key/value head", home=f"{_TRANSFORMS}.axes:find_heads",
        summary="channels of each key/value head: rows of the value projection, and columns of the output projection for every "
        "query head that shares it",
    ),
)

METHODS: tuple[MethodChoice, ...] = (
    MethodChoice(
        name="full", home=f"{_METHODS}.full:FullRecovery", learning_rate=WEIGHT_RATE, trains_vectors=True, state="4 bytes",
        summary="every kept weight, by the loss of the whole model", hint="every kept weight",
    ),
    MethodChoice(
        name="lora", home=f"{_METHODS}.lora:LoraRecovery", learning_rate=DELTA_RATE, state="16 bytes for each number in A and B",
        summary="low-rank deltas of the kept weights, W + M ∘ (s B A), by the loss of the whole model",
        hint="low-rank deltas, merged under the mask",
    ),
    MethodChoice(
        name="block", home=f"{_METHODS}.block:BlockRecovery", trainer=f"{_METHODS}.block_trainer:BlockTrainer", by_block=True,
        learning_rate=WEIGHT_RATE, state="4 bytes, of one block", hint="in the memory of one block",
        summary="every kept weight, one block after the other by the outputs of the dense block",
    ),
)
# fmt: on

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


def find(choices: Sequence[C], name: str) -> C:
    """The entry of a name that is known."""
    return next(choice for choice in choices if choice.name == name)


def find_transforms(text: str) -> tuple[str, ...]:
    """The transforms that `--transform` names, each once and in the order in which they are made."""
    given = [part.strip() for part in text.split(",")] if text != NONE else []
    for part in given:
        check_known("--transform", part, (AUTO, NONE, *names_of(TRANSFORMS)))
    if len(given) > 1 and (alone := {AUTO, NONE} & set(given)):
        raise ConfigError(f"--transform {text}: {sorted(alone)[0]} stands alone.")
    return tuple(name for name in names_of(TRANSFORMS) if name in given)


def find_prior(text: str) -> tuple[PriorChoice, str]:
    """The prior that `--prior` names, and what it takes (empty for nothing)."""
    name, colon, argument = text.partition(":")
    entry = next((choice for choice in PRIORS if choice.name == name and bool(colon) == bool(choice.takes)), None)
    check_known("--prior", text if entry is None else entry.value, (choice.value for choice in PRIORS))
    assert entry is not None  # else it was refused
    return entry, argument


def find_estimator(name: str, reward: str, *, by_block: bool) -> EstimatorChoice:
    """The entry for an estimator that is known, a reward, and a kind of objective."""
    for choice in ESTIMATORS:
        if choice.name == name and choice.reward in (None, reward) and choice.by_block == by_block:
            return choice
    able = ", ".join(f"--estimator {choice.usage}" for choice in ESTIMATORS if choice.by_block)
    raise ConfigError(f"--objective block is learned by {able}, not by {name}.")
