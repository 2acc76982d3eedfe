"""The run that learns masks, and with `--weights train` the weights that they keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.dense_layers import DenseChoice, choose_dense, split_layers
from maskpro_deploy.learn.distributions.base import Distribution
from maskpro_deploy.learn.distributions.blocks import from_blocks
from maskpro_deploy.learn.distributions.planes import flips, top, unpack
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.kernels.kept_weights import gather_kept, measure_added, scatter_kept
from maskpro_deploy.learn.loop import Point, TrainingLoop
from maskpro_deploy.learn.measuring import SHARE
from maskpro_deploy.learn.model.basis import apply
from maskpro_deploy.learn.model.calibration import BlockStream, InputNorms, whole_model_norms
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site
from maskpro_deploy.learn.model.teacher import ask_without_masks
from maskpro_deploy.learn.model.transposable_sites import TransposableSite
from maskpro_deploy.learn.monitor import Observer
from maskpro_deploy.learn.priors.compute import compute_prior
from maskpro_deploy.learn.ranks.group import Ranks
from maskpro_deploy.learn.ranks.sharing import share_arrays
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.learn.transforms.search import Found, Search, deadline
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.transform import Transform, read_transform


class Trainer(TrainingLoop):
    """One run that learns masks.

    Args:
        names: what weights of the model are called in the checkpoint; those that it lacks stay dense. None: as in the model.
    """

    preparing: ClassVar[str] = "prior"

    def __init__(
        self, model: LearningModel, text: Windows, heldout: Windows, config: LearnConfig, store: StateStore | None = None,
        progress: Progress = SILENT, observers: Sequence[Observer] = (), names: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, text, heldout, config, store, progress, observers)
        self.config = config.on(model.head.device.type)
        # by weight name in the model: those whose places `sites` take, and those that stay dense on purpose, with the reason
        self.layers, self.dense = split_layers(model.model, self.config, names)
        self.choice: DenseChoice | None = None  # which more stay dense, if that is chosen by `dense_share`
        self.names = {name: name for name in model.parameter_names} if names is None else names
        self.transform = Transform()  # what the weights went through, see `transforms`
        self.found: Found | None = None  # and what is known of it, if this run found it
        self.norms: InputNorms = whole_model_norms  # what gives the norms of the layers' inputs, where a prior needs them alone
        config.estimator_choice.load().check_model(model.model, self.layers)
        make_family = config.load_distribution()
        self._families: dict[NMPattern, Distribution] = {  # of masks, by their pattern
            pattern: make_family(pattern, model.head.device) for pattern in map(config.patterns.of, self.layers)
        }
        self._site: type[Site] = TransposableSite if config.transposable else Site
        self.masked: list[Site] = []
        self._prior: dict[str, Tensor] = {}  # bits of the masks that learning started from
        self._best: dict[str, Tensor] = {}  # and of those at the point with the lowest held-out loss
        self._best_weights: dict[str, Tensor] = {}  # what these keep, where weights move

    @property
    def sites(self) -> list[Site]:
        """The layers that learn."""
        return self.masked

    @property
    def estimator(self) -> Estimator:
        """The learner of this run."""
        assert isinstance(self.learner, Estimator)
        return self.learner

    def prepare(
        self, progress: Progress = SILENT, given: MaskSet | None = None, choosing: Progress = SILENT, ordering: Progress = SILENT
    ) -> None:
        """Measure the dense model, compute the prior (with `given` masks for a file), and put sites in the layers' places.

        Channels change places before the prior is computed; `ordering` shows how far that is. With `dense_share` layers that stay
        dense are chosen after it; `choosing` shows that.

        What the saved state holds is taken from there, see `read_saved`.
        """
        config = self.config
        with self.timing("preparing_s"):
            self.model.check_head(self.text)
            if config.needs_grams or config.estimator_choice.by_block:
                BlockStream(self.model, [self.model.tokens(self.text[:1])])  # refuses a model that does not run block by block
            self.model.check_backward(self.text)
        if self.saved is None:
            with self.timing("measuring_s"):
                self.dense_loss = self.heldout_loss()
        with self.timing("preparing_s"):
            if self.saved is None:
                self._change_basis(given, ordering)
                self._start_from_prior(progress, given, choosing)
            else:
                self._start_from_saved(self.saved[0])
            loss = StepLoss(self.model, ask_without_masks(self.model, self.masked), config.objective_choice.teacher_share)
            self.learner = config.estimator_choice.load()(config, self.model, self.masked, loss)
            self.learner.join(self.ranks)

    def _change_basis(self, given: MaskSet | None, progress: Progress) -> None:
        """Let channels change places: as the given masks need it, or so that the prior's masks keep more."""
        config = self.config
        if given is not None and given.transform:
            self.transform = given.transform
            apply(self.model, self.transform, self.names)
        if not config.transforms:
            return
        batches = self.calibration()
        norms = dict(self.norms(self.model, self.layers, batches)) if config.prior_choice.inputs else None
        search = Search(
            model=self.model, layers=self.layers, names=self.names, patterns=config.patterns, norms=norms, seed=config.seed,
            progress=progress, until=deadline(SHARE * config.budget_s if config.budget_s else None),
        )  # fmt: skip
        if self.ranks.leads:
            self.found = search.run(config.transforms, batches[0], required=config.requires_transforms)
        self.found = share_found(self.ranks, self.found)
        self.transform = self.found.transform
        if not self.ranks.leads:
            search.adopt(config.transforms, self.transform)
        if norms is not None:
            self.norms = lambda *_: norms

    def _start_from_prior(self, progress: Progress, given: MaskSet | None, choosing: Progress) -> None:
        dense = {n: y.weight.detach().clone() for n, y in self.layers.items()} if self._keeps_dense_apart else {}
        batches = self.calibration() if self.config.prior_sees_text else []
        priors = compute_prior(self.model, self.layers, self.config, batches, given, progress, self.norms)
        for name, layer in self.layers.items():  # ranks on other machines may differ in the last bits
            self.ranks.copy(priors[name])
            if self.config.prior_update:
                self.ranks.copy(layer.weight.data)
        progress.close()
        if self.config.dense_share is not None:
            self._choose_dense(self.config.dense_share, priors, choosing)
        for name, layer in self.layers.items():
            self._put_site(name, layer, priors.pop(name), dense.pop(name, None))

    def _choose_dense(self, share: float, priors: Mapping[str, Tensor], progress: Progress) -> None:
        """Leave dense what the prior's masks cost most in, for a share of the multiply-adds."""
        allowed_s = None if self.config.budget_s is None else SHARE * self.config.budget_s
        masks = {name: partial(self._mask_by, name, priors[name]) for name in self.layers}
        batches = self.calibration()
        choice = None
        if self.ranks.leads:
            choice = choose_dense(self.model, self.layers, masks, batches, share, progress=progress, allowed_s=allowed_s)
        self._leave_dense(DenseChoice.from_json(self.ranks.tell(None if choice is None else choice.to_json())))
        progress.close()

    def _mask_by(self, name: str, logits: Tensor) -> Tensor:
        """The mask that initial logits stand for.  # (M, G) or (P, B) -> (O, C) boolean"""
        shape, pattern = self.layers[name].weight.shape, self.config.patterns.of(name)
        if self.config.transposable:
            return from_blocks(self._families[pattern].mode(logits), shape[1])
        return top(logits, pattern.n).t().reshape(shape)

    def _leave_dense(self, choice: DenseChoice) -> None:
        self.choice = choice
        self.dense |= choice.reasons()
        self.layers = {name: layer for name, layer in self.layers.items() if name not in self.dense}

    def _start_from_saved(self, tensors: Mapping[str, Tensor]) -> None:
        """Sites with the prior's masks, as `start_tensors` saved them; the learner brings its logits and weights."""
        if (choice := tensors.get("start/choice")) is not None:
            self._leave_dense(DenseChoice.from_json(json.loads(choice.numpy().tobytes())))
        if (places := tensors.get("start/places")) is not None:
            bases = {k.removeprefix("start/basis/"): v.numpy() for k, v in tensors.items() if k.startswith("start/basis/")}
            self.transform = read_transform(places.numpy().tobytes().decode(), bases, "the saved state")
            apply(self.model, self.transform, self.names)
        if (found := tensors.get("start/found")) is not None:
            self.found = Found.from_json(json.loads(found.numpy().tobytes()), self.transform)
        for name, layer in self.layers.items():
            device = layer.weight.device
            if (weight := tensors.get(f"start/weight/{name}")) is not None:
                layer.weight.data = weight.to(device)
            kept = unpack(tensors[f"start/{name}"].to(device), layer.weight.numel()).view(layer.weight.shape)
            site = self._put_site(name, layer, self._site.logits_of(kept, self.config.patterns.of(name).m))
            if (logits := tensors.get(f"start/logits/{name}")) is not None:
                site.logits.copy_(logits)

    def _put_site(self, name: str, layer: nn.Linear, logits: Tensor, dense: Tensor | None = None) -> Site:
        """Put a site in a layer's place; `dense` is its dense weight, where the prior changed it and both are needed."""
        site = self._site(name, layer, self._families[self.config.patterns.of(name)], logits)
        self._prior[name] = site.kept
        if self.config.trains_weights:
            site.train_weight(dense)
        self.model.replace(name, site)
        self.masked.append(site)
        return site

    def start_tensors(self) -> dict[str, Tensor]:
        """The prior's masks, the weights that it changed and no step moves, and the logits where the learner has others."""
        tensors = {name: bits.clone() for name, bits in self._prior.items()}  # the best ones may be the same
        if self.choice is not None:
            tensors["choice"] = _to_bytes(json.dumps(self.choice.to_json()))
        if self.transform:
            tensors["places"] = _to_bytes(self.transform.describe_places())
            tensors |= {f"basis/{name}": torch.from_numpy(basis) for name, basis in self.transform.bases.items()}
        if self.found is not None:
            tensors["found"] = _to_bytes(json.dumps(self.found.to_json()))
        saved = self.learner.tensors()
        for s in self.masked:
            if self.config.prior_update and not self.config.trains_weights:
                tensors[f"weight/{s.name}"] = s.weight
            if f"logits/{s.name}" not in saved:
                tensors[f"logits/{s.name}"] = s.logits
        return tensors

    @property
    def _keeps_dense_apart(self) -> bool:
        """Whether the prior changes weights that the teacher needs as they were."""
        return self.config.prior_update and self.config.trains_weights

    def check_finite(self) -> None:
        learned = self.estimator.learned()
        for site in self.masked:
            parts = {"logits": learned.get(site.name, site.logits)}
            if self.config.trains_weights:
                parts["weights"] = site.weight
            for what, values in parts.items():
                if not torch.isfinite(values).all():
                    flag = "--learning-rate" if what == "logits" else "--weight-rate"
                    raise CheckFailed(
                        f"the {what} of {site.name} are not finite after step {self.counters.step}: nothing after the last saved "
                        f"state was kept.\nTry a smaller {flag}, or --dtype float32."
                    )

    def keep_best(self) -> None:
        self._best = {s.name: s.kept for s in self.masked}
        if self.config.trains_weights:
            self._best_weights = {s.name: gather_kept(s.weight, s.kept) for s in self.masked}

    def best_tensors(self) -> dict[str, Tensor]:
        return self._best | {f"weights/{name}": kept for name, kept in self._best_weights.items()}

    def restore_best(self, tensors: Mapping[str, Tensor]) -> None:
        self._best = {s.name: tensors[s.name] for s in self.masked}
        self._best_weights = {s.name: tensors[f"weights/{s.name}"] for s in self.masked if f"weights/{s.name}" in tensors}

    def remembered_start(self) -> dict[str, Tensor]:
        return self._prior

    def measure_movement(self) -> dict[str, float]:
        moved = self.moved() if self.config.trains_weights else 0.0
        return {"flips": self.flips(), "entropy": self.entropy(), "moved": moved}

    def note_movement(self, point: Point) -> str:
        moved = f"  moved {100 * point.moved:.1f} %" if self.config.trains_weights else ""
        return f"flips {100 * point.flips:.1f} %  entropy {point.entropy:.2f}{moved}"

    def flips(self) -> float:
        """Share of groups whose argmax mask differs from the prior's."""
        changed = sum(flips(s.kept, self._prior[s.name], s.pattern.m, s.weight.numel()) for s in self.masked)
        return changed / sum(s.groups for s in self.masked)

    def moved(self) -> float:
        """Length of what was added to the kept weights, relative to theirs in the dense model."""
        parts = [measure_added(gather_kept(s.weight, s.kept), gather_kept(s.dense, s.kept)) for s in self.masked]
        return math.sqrt(sum(added for added, _ in parts) / sum(start for _, start in parts))

    def moved_by_layer(self) -> dict[str, float]:
        """The same for each layer of the result, by name in the checkpoint; nothing where weights are frozen.

        A layer whose dense weights are all zero has no such ratio and is left out.
        """
        parts = {
            self.names[s.name]: measure_added(self._best_weights[s.name], gather_kept(s.dense, self._best[s.name]))
            for s in self.masked
            if s.name in self._best_weights
        }
        return {name: math.sqrt(added / start) for name, (added, start) in parts.items() if start}

    def entropy(self) -> float:
        """Entropy of the masks' distribution, mean over groups (blocks, where masks are transposable); nats."""
        return sum(s.entropy() for s in self.masked) / sum(s.logits.shape[1] for s in self.masked)

    def masks(self, dense_sha256: str = "") -> MaskSet:
        """The argmax masks of the point of the curve with the lowest held-out loss: never worse there than the prior."""
        return self._masks_of(self._best, dense_sha256)

    def prior_masks(self, dense_sha256: str = "") -> MaskSet:
        """The one-shot masks that learning started from."""
        return self._masks_of(self._prior, dense_sha256)

    def collect_changed_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights that are not the checkpoint's, as it stores them: all of them if they move, or a prior changed them."""
        if not (self.config.prior_update or self.config.trains_weights):
            return {}
        changed = {}
        for s in self.masked:
            kept = self._best_weights.get(s.name)
            weight = s.weight if kept is None else scatter_kept(s.weight, self._best[s.name], kept)
            stored = weight.t() if s.name in self.model.transposed else weight
            changed[self.names[s.name]] = stored.float().cpu().numpy()
        return changed

    def _masks_of(self, bits: dict[str, Tensor], dense_sha256: str) -> MaskSet:
        masks = {self.names[s.name]: s.mask(bits[s.name]) for s in self.masked}
        transposed = frozenset(self.names[s.name] for s in self.masked if s.name in self.model.transposed)
        dense = {self.names[name]: reason for name, reason in self.dense.items()}
        patterns = {self.names[s.name]: s.pattern for s in self.masked}
        return MaskSet.from_arrays(
            self.config.pattern, masks, dense_sha256, transposed=transposed, dense=dense, patterns=patterns,
            transposable=self.config.transposable, transform=self.transform,
        )  # fmt: skip


def share_found(ranks: Ranks, found: Found | None) -> Found:
    """What rank 0 found, on all of them."""
    said = ranks.tell(None if found is None else [found.to_json(), found.transform.describe_places()])
    bases = share_arrays(ranks, {} if found is None else found.transform.bases)
    return Found.from_json(said[0], read_transform(said[1], bases, "rank 0"))


def _to_bytes(text: str) -> Tensor:
    """A text among the tensors of a saved state."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
