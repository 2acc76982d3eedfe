"""Settings of a run that learns masks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from maskpro_deploy.errors import ConfigError, check_range
from maskpro_deploy.learn import choices
from maskpro_deploy.learn.choices import AUTO, DistributionChoice, EstimatorChoice, PriorChoice, WeightsChoice
from maskpro_deploy.learn.run_config import DEFAULT_BUDGET_S as DEFAULT_BUDGET_S
from maskpro_deploy.learn.run_config import RunConfig, name_flag
from maskpro_deploy.pattern import LARGEST_LISTED_BLOCK, LayerPatterns, NMPattern

_NOT_NEGATIVE = ("temperature", "weight_decay", "prox_anchor")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig(RunConfig):
    """How to learn a mask.

    Raises:
        ConfigError: a value is out of range.
    """

    pattern: NMPattern  # the N:M pattern
    layer_patterns: tuple[tuple[str, NMPattern], ...] = ()  # others, for layers that a regular expression names, see `patterns`
    transposable: bool = False  # masks whose transpose holds the pattern too: N in each row and column of each M x M block
    # the one-shot mask to start from: a name of `choices.PRIORS`; "file:PATH" is a mask file or a sparse checkpoint, "auto" the
    # estimator's own
    prior: str = AUTO
    other_weights: bool = False  # take the masks of "file:PATH" though they were made for other weights of the same shapes
    prior_update: bool = False  # keep SparseGPT's weight update too; the base weights change then, and the result says so
    # of a layer while its prior is computed: "dense", those of the dense model; "pruned", those behind the blocks that are pruned
    # already; "auto", pruned for SparseGPT (as published) and dense for the others
    prior_inputs: str = AUTO
    refine: bool = False  # improve the prior by swaps on the Gram matrix (see `refine`)
    # what changes places before masks are made: names of `choices.TRANSFORMS`, "none", or "auto", all that the model allows
    transform: str = AUTO
    # inverse temperature of the first samples: the logits are this times log(score / mean score of the group)
    prior_strength: float = 6.0
    estimator: str = "pathwise"  # how the gradient of the logits is computed: a name of `choices.ESTIMATORS`
    reward: str = "layer"  # with "maskpro": "layer", each output's distance from the dense layer's, or "loss", the model's
    distribution: str = AUTO  # of the masks: a name of `choices.DISTRIBUTIONS`; "auto" is the estimator's own
    samples: int = 4  # masks tried in a step of "maskpro" with the reward "loss", in antithetic pairs
    # share of the groups that leave the argmax mask in such a sample, at the start; it decays linearly to 0
    flip_rate: float = 0.02
    # into how many parts the layers are divided there; a step samples one part and leaves the others at the argmax
    parts: int = 1
    # whether "maskpro-paper" takes its argmax mask as the initial one whenever a sample has halved that one's loss
    renew_initial: bool = False
    prox_strength: float = 0.25  # of the regulariser of "proxsparse", λ: by how much a step pushes the copy of the weights to 2:4
    prox_anchor: float = 0.0  # of its second one, which pulls the copy back to the weights; 0 is none
    # step of the logits relative to their spread; it decays linearly to 0. None: the estimator's own.
    learning_rate: float | None = None
    # of the samples at the start, decaying linearly to 0; 0 runs every step with the argmax mask, which measured best for short
    # budgets (samples stray into masks that are worse, and their gradients say less about the best one)
    temperature: float = 0.0
    # a name of `choices.WEIGHTS`: whether and how the kept weights move in the same backward pass as the logits; "auto" is what
    # measured best: low-rank deltas where the estimator can move them and there is anything to learn
    weights: str = AUTO
    weight_rate: float | None = None  # their step at the start; it decays linearly to 0. None: the choice's own.
    weight_decay: float = 0.0  # by which share of itself a trained weight shrinks a step, relative to the rate
    rank: int = choices.RANK  # of low-rank deltas
    alpha: float = choices.ALPHA  # they are scaled by alpha / rank
    include: str | None = None  # regular expression of layers to prune (all linear layers but the output embedding by default)
    exclude: str | None = None  # regular expression of layers to leave dense
    # the same, and the result says so; "auto" chooses them by `dense_share`
    dense_layers: str | None = None
    dense_share: float | None = None  # of the multiply-adds, that stay dense where they are worth most (see `dense_layers`)

    def __post_init__(self) -> None:
        self._check_run()
        LayerPatterns(self.pattern, self.layer_patterns)  # refuses what is no regular expression
        self._check_numbers(("prior_strength", "learning_rate", "weight_rate", "prox_strength"), _NOT_NEGATIVE)
        self._check_samples()
        self._check_estimator()
        self._check_weights()
        self._check_prior()
        self._check_transposable()
        self._check_patterns("include", "exclude", "dense_layers")
        self._check_dense_layers()

    def _check_samples(self) -> None:
        check_range("--parts", self.parts, least=1)
        check_range("--flip-rate", self.flip_rate, above=0, below=1)
        check_range("--samples", self.samples, least=2)
        if self.samples % 2:
            raise ConfigError(f"--samples {self.samples} has to be an even number: samples come in antithetic pairs.")

    def _check_weights(self) -> None:
        check_range("--rank", self.rank, least=1)
        check_range("--alpha", self.alpha, above=0)
        if not self.weights_choice.by_deltas and (self.rank, self.alpha) != (choices.RANK, choices.ALPHA):
            raise ConfigError(f"--rank and --alpha belong to --weights lora, not to {self.weights_choice.name}.")
        if not self.trains_weights:
            able = " or ".join(choice.name for choice in choices.WEIGHTS if choice.learning_rate is not None)
            for field in ("weight_rate", "weight_decay"):
                if getattr(self, field):
                    raise ConfigError(f"{name_flag(field)} belongs to --weights {able}; the weights are frozen.")
        elif not self.estimator_choice.moves_weights:
            able = ", ".join(f"--estimator {choice.usage}" for choice in choices.ESTIMATORS if choice.moves_weights)
            by_block = " with --objective block" if self.estimator_choice.by_block else ""
            raise ConfigError(f"--weights {self.weights} goes with {able}, not with {self.estimator}{by_block}.")
        elif self.temperature > 0:
            raise ConfigError(f"--weights {self.weights} needs --temperature 0: the weights move under the argmax mask.")

    def _check_estimator(self) -> None:
        estimator = self.estimator_choice  # refuses an objective that it does not learn by
        if self.layer_patterns and estimator.one_pattern:
            raise ConfigError(f"--estimator {self.estimator} learns one pattern for all layers, not --sparsity {self.patterns}.")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", estimator.learning_rate)
        if self.prior == AUTO:
            object.__setattr__(self, "prior", estimator.prior)
        if estimator.pattern not in (None, str(self.pattern)):
            raise ConfigError(f"--estimator {estimator.name} learns {estimator.pattern} masks, not {self.pattern}.")
        if estimator.own_start and self.prior != estimator.prior:
            raise ConfigError(f"--estimator {estimator.name} starts from --prior {estimator.prior}, not from {self.prior}.")
        self._check_own_settings()
        if not (estimator.score_only or self.distribution_choice.pathwise):
            able = " or ".join(f"--estimator {choice.usage}" for choice in choices.ESTIMATORS if choice.score_only)
            raise ConfigError(f"--distribution {self.distribution} has a score but no pathwise derivative.\nUse it with {able}.")

    def _check_own_settings(self) -> None:
        """Refuse settings of another estimator."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other in choices.ESTIMATORS:
            for name in other.settings:
                if other.name != self.estimator and getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name_flag(name)} belongs to --estimator {other.name}, not to {self.estimator}.")

    def _check_dense_layers(self) -> None:
        if self.dense_layers == AUTO and self.dense_share is None:
            raise ConfigError("--dense-layers auto needs --dense-share: how much may stay dense.")
        if self.dense_share is None:
            return
        check_range("--dense-share", self.dense_share, above=0, below=1)
        if self.dense_regex is not None:
            raise ConfigError(f"--dense-layers {self.dense_layers} names the layers, --dense-share chooses them.\nOmit one.")
        if self.prior_update or self.prior_choice.takes:
            given = "--prior-update" if self.prior_update else f"--prior {self.prior}"
            raise ConfigError(f"--dense-share does not go with {given}.\nName the layers with --dense-layers REGEX.")

    def _check_prior(self) -> None:
        prior = self.prior_choice
        if choices.find_transforms(self.transform) and prior.takes:
            raise ConfigError(f"--transform {self.transform} does not go with --prior {self.prior}: its masks are made already.")
        if self.prior_update and not prior.updates_weights:
            able = ", ".join(choice.value for choice in choices.PRIORS if choice.updates_weights)
            raise ConfigError(f"--prior-update belongs to --prior {able}; --prior {self.prior} changes no weights.")
        if self.prior_update and self.objective_choice.needs_dense and not self.trains_weights:
            raise ConfigError(
                f"--objective {self.minimised} compares with the dense model, whose weights --prior-update changes.\n"
                f"Use --objective ce, or omit --prior-update, or add --weights train, which keeps the dense ones apart."
            )
        if self.other_weights and not prior.takes:
            raise ConfigError(f"--other-weights belongs to --prior file:PATH; --prior {self.prior} reads no masks.")
        if self.refine and not prior.refinable:
            raise ConfigError(f"--refine needs a mask to refine; --prior {self.prior} has none worth it.")

    def _check_transposable(self) -> None:
        if not self.transposable:
            return
        if self.layer_patterns:
            raise ConfigError(f"--transposable is for one pattern in all layers, not for --sparsity {self.patterns}.")
        if not self.estimator_choice.transposable:
            able = " or ".join(choices.names_of([c for c in choices.ESTIMATORS if c.transposable]))
            raise ConfigError(f"--transposable is learned with --estimator {able}, not with {self.estimator}.")
        if not self.distribution_choice.transposable_home:
            able = " or ".join(c.name for c in choices.DISTRIBUTIONS if c.transposable_home)
            raise ConfigError(f"--transposable is learned with --distribution {able}, not with {self.distribution}.")
        if self.refine:
            raise ConfigError("--refine exchanges weights within a row, which breaks the columns of a --transposable mask.")
        if self.learns and self.pattern.m > LARGEST_LISTED_BLOCK:
            raise ConfigError(
                f"--transposable is learned for M up to {LARGEST_LISTED_BLOCK}: a block of {self.pattern} has too many masks.\n"
                f"Add --steps 0 for the mask of the prior."
            )

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn: a limit of 0 leaves the prior."""
        return 0 not in (self.budget_s, self.steps, self.tokens)

    @property
    def estimator_choice(self) -> EstimatorChoice:
        by_block = self.objective != AUTO and choices.find(choices.OBJECTIVES, self.objective).by_block
        return choices.find_estimator(self.estimator, self.reward, by_block=by_block)

    @property
    def prior_choice(self) -> PriorChoice:
        return choices.find_prior(self.prior)[0]

    @property
    def distribution_choice(self) -> DistributionChoice:
        chosen = self.estimator_choice.distribution if self.distribution == AUTO else self.distribution
        return choices.find(choices.DISTRIBUTIONS, chosen)

    def load_distribution(self) -> Any:
        """What makes the distribution of the masks from a pattern and a device, imported now."""
        return self.distribution_choice.load_transposable() if self.transposable else self.distribution_choice.load()

    @property
    def weights_choice(self) -> WeightsChoice:
        """What happens to the kept weights; where it is "auto", what measured best."""
        if self.weights != AUTO:
            return choices.find(choices.WEIGHTS, self.weights)
        learns = self.learns and self.temperature == 0
        return choices.find(choices.WEIGHTS, choices.JOINT if learns and self.estimator_choice.moves_weights else choices.FROZEN)

    @property
    def trained_rate(self) -> float:
        """The rate of the kept weights at the start; 0 where they are frozen."""
        return self.weight_rate or self.weights_choice.learning_rate or 0.0

    @property
    def pruned_inputs(self) -> bool:
        """Whether the prior sees the inputs behind pruned blocks."""
        return (self.prior_choice.inputs if self.prior_inputs == AUTO else self.prior_inputs) == "pruned"

    @property
    def needs_grams(self) -> bool:
        """Whether the prior needs Gram matrices, block by block."""
        prior = self.prior_choice
        return prior.needs_grams or self.refine or (self.pruned_inputs and bool(prior.inputs))

    @property
    def transforms(self) -> tuple[str, ...]:
        """Names of the transforms that are tried; see `requires_transforms`."""
        if self.transform != AUTO:
            return choices.find_transforms(self.transform)
        scored = self.prior_choice.refinable and not self.prior_choice.takes
        able = scored and not self.transposable and not self.estimator_choice.published
        return choices.names_of(choices.TRANSFORMS) if able else ()

    @property
    def requires_transforms(self) -> bool:
        """Whether the model has to allow them."""
        return self.transform != AUTO

    @property
    def prior_sees_text(self) -> bool:
        """Whether calibration text is run through the model."""
        return bool(self.prior_choice.inputs) or self.needs_grams

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        assert self.learning_rate is not None  # it was filled in when the settings were made
        return self.learning_rate

    @property
    def prior_file(self) -> str | None:
        """The path behind `file:`."""
        return choices.find_prior(self.prior)[1] or None

    @property
    def minimised(self) -> str:
        """The objective, where it is "auto" the one that measured best."""
        if self.objective != AUTO:
            return self.objective
        return "ce" if self.prior_update and not self.trains_weights else self.estimator_choice.objective

    def among(self, ranks: int) -> Self:
        return self if self.estimator_choice.score_only else RunConfig.among(self, ranks)  # else they try masks in turn

    def on(self, device: str) -> Self:
        return dataclasses.replace(RunConfig.on(self, device), weights=self.weights_choice.name)

    def to_json(self) -> dict[str, Any]:
        """Every setting, with the pattern as text."""
        others = [[expression, str(pattern)] for expression, pattern in self.layer_patterns]
        return {**dataclasses.asdict(self), "pattern": str(self.pattern), "layer_patterns": others}

    @property
    def patterns(self) -> LayerPatterns:
        """The pattern of every layer."""
        return LayerPatterns(self.pattern, self.layer_patterns)

    @property
    def dense_regex(self) -> str | None:
        """What names the layers that stay dense, where they are named."""
        return None if self.dense_layers in (None, AUTO) else self.dense_layers

    @property
    def trains_weights(self) -> bool:
        """Whether the kept weights move, too."""
        return self.weights_choice.learning_rate is not None

    @classmethod
    def known_values(cls) -> dict[str, tuple[str, ...]]:
        """The values that a field can have, of those fields that have few; `prior` can have more, see `choices.find_prior`."""
        return {
            **RunConfig.known_values(),
            "prior_inputs": choices.PRIOR_INPUTS,
            "estimator": choices.names_of(choices.ESTIMATORS),
            "reward": choices.rewards(),
            "distribution": (AUTO, *choices.names_of(choices.DISTRIBUTIONS)),
            "weights": (AUTO, *choices.names_of(choices.WEIGHTS)),
        }
