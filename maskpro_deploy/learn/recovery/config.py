"""Settings of a run that trains the weights under masks that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError, check_range
from maskpro_deploy.learn import choices
from maskpro_deploy.learn.choices import AUTO, MethodChoice
from maskpro_deploy.learn.run_config import RunConfig, name_flag

WEIGHTS, NORMS, ALL = "weights", "norms", "all"  # what `train` can be
_OF_DELTAS = {"rank": choices.RANK, "alpha": choices.ALPHA, "rslora": False, "target_modules": None}  # with their defaults
_OF_LORA = {**_OF_DELTAS, "adapter": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverConfig(RunConfig):
    """How to recover quality.

    Raises:
        ConfigError: a value is out of range, or belongs to another method.
    """

    method: str = "full"  # a name of `choices.METHODS`
    train: str = WEIGHTS  # kept weights; "norms": vectors alone, the scales of norms and biases; "all": both
    learning_rate: float | None = None  # at the start; it decays linearly to 0. None: the method's own.
    weight_decay: float = 0.0  # by which share of itself a trained weight shrinks a step, relative to the rate
    other_weights: bool = False  # take a teacher although the masks were made for other weights of the same shapes
    refit: bool = False  # of `block`: least squares for every layer before the steps; helps masks that were not learned
    # of `lora`, as PEFT has them
    rank: int = choices.RANK
    alpha: float = choices.ALPHA  # deltas are scaled by alpha / rank
    rslora: bool = False  # by alpha / sqrt(rank) instead
    target_modules: str | None = None  # regular expression of layers that get a delta; None: all masked layers
    adapter: str | None = None  # folder of a PEFT adapter to start from, whose settings hold then

    def __post_init__(self) -> None:
        self._check_run()
        self._check_numbers(("learning_rate",), ("weight_decay",))
        check_range("--rank", self.rank, least=1)
        check_range("--alpha", self.alpha, above=0)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", self.method_choice.learning_rate)
        self._check_patterns("target_modules")
        if self.method != "lora":
            self._check_left(_OF_LORA, f"belongs to --method lora, not to {self.method}")
        if self.adapter is not None:
            self._check_left(_OF_DELTAS, "belongs to deltas that start at zero: --adapter has its own")
        if self.refit and not self.method_choice.by_block:
            raise ConfigError(f"--refit belongs to --method block, not to {self.method}.")
        if self.method_choice.by_block and self.objective not in (AUTO, choices.DEFAULT_OBJECTIVE):
            raise ConfigError(f"--objective {self.objective} is of the whole model, not for --method {self.method}.")
        if self.train != WEIGHTS and not self.method_choice.trains_vectors:
            raise ConfigError(f"--train {self.train} goes with --method full, not with {self.method}.")

    def _check_left(self, defaults: Mapping[str, object], why: str) -> None:
        """Refuse any of some settings that is not at its default."""
        for field, default in defaults.items():
            if getattr(self, field) != default:
                raise ConfigError(f"{name_flag(field)} {why}.")

    @property
    def method_choice(self) -> MethodChoice:
        return choices.find(choices.METHODS, self.method)

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        assert self.learning_rate is not None  # it was filled in when the settings were made
        return self.learning_rate

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model is compared with."""
        return self.objective_choice.needs_dense or self.method_choice.by_block

    @classmethod
    def known_values(cls) -> dict[str, tuple[str, ...]]:
        """The values that a field can have, of those fields that have few."""
        known = RunConfig.known_values()
        whole = tuple(choice.name for choice in choices.OBJECTIVES if not choice.by_block)
        own = {"method": choices.names_of(choices.METHODS), "train": (WEIGHTS, NORMS, ALL), "objective": (AUTO, *whole)}
        return known | own
