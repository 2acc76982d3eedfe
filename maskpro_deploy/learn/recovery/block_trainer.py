"""The run that recovers block by block: whose turn it is, and where the weights of the other blocks are.

All blocks get the same share of the limit, in order; with `--refit` every one is refitted, also where the limit is reached before
its turn. A finished block's weights go into a file of their own, `block-0.safetensors` and so on, next to the saved state (or in
a temporary folder). With models whose blocks stay on disk (`model.paged_blocks`) they are read from there again when they are
needed. The saved state has the block at work alone; a resumed run lets both streams of hidden states pass the finished blocks
again.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.loop import Point
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.model import Windows
from maskpro_deploy.learn.recovery.block import BlockRecovery
from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer
from maskpro_deploy.system.files import atomic_file
from maskpro_deploy.system.input_file import open_tensors
from maskpro_deploy.system.on_demand import OnDemand

log = logging.getLogger(__name__)


class BlockTrainer(RecoveryTrainer):
    """See the module."""

    compares_steps = False  # they are of different blocks

    @property
    def method(self) -> BlockRecovery:
        assert isinstance(self.learner, BlockRecovery)
        return self.learner

    def prepare(self) -> None:
        """Measure the dense model, and put both streams in front of the first block."""
        assert self.teacher is not None  # `RecoverConfig.needs_teacher`
        with self.timing("preparing_s"):
            self._batches = self.calibration()
            self.learner = self.config.method_choice.load()(self.config, self.model, self.masked, self._step_loss())
            self.method.open(BlockStream(self.model, self._batches), BlockStream(self.teacher, self._batches))
            self._layers = self._find_layers()
            for model in (self.model, self.teacher):
                model.check_head(self.text)
            self.model.check_backward(self.text)
        with self.timing("measuring_s"):
            self.dense_loss = self.heldout_loss(self.teacher)
        with self.timing("preparing_s"):
            self._start_square = sum(self._measure_square(block) for block in self.method.blocks)

    def _find_layers(self) -> dict[str, dict[str, nn.Linear]]:
        """The masked layers of every block, by weight name."""
        found = {b: [n for n in self.masks if n.startswith(f"{b}.")] for b in self.method.blocks}
        if not any(found.values()):
            raise ConfigError("no masked layer is in a block.\nUse --method full.")
        if outside := [n for n in self.masks if not any(n in names for names in found.values())]:
            log.warning("%d masked layers are in no block and keep their weights, %s the first", len(outside), outside[0])
        modules = self.model.model.get_submodule
        return {block: {n: modules(n.removesuffix(".weight")) for n in names} for block, names in found.items()}

    def _measure_square(self, block: str) -> float:
        self._keep(block)
        return sum(float(layer.weight.float().square().sum()) for layer in self._layers[block].values())

    def _keep(self, block: str) -> None:
        """Have the weights of this block in memory, in both models."""
        assert self.teacher is not None
        self.model.keep_block(block)
        self.teacher.keep_block(block)

    @cached_property
    def _folder(self) -> Path:
        """Where finished blocks go."""
        if self.store is not None:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            return self.store.folder
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _file(self, place: int) -> Path:
        return self._folder / f"block-{place}.safetensors"

    def _batch(self, step: int) -> Windows:
        windows: Windows = self._batches[self.method.next_batch()].cpu().numpy().astype(np.int32)
        return windows

    def _step(self) -> None:
        count = len(self.method.blocks)
        while self.method.place < min(int(self._fraction() * count), count - 1):
            if self.method.place >= 0:
                self._finish()
            self._begin(self.method.place + 1)
            self.save()
        super()._step()

    def count_tokens(self, windows: Windows) -> int:
        return self.method.tokens - self.counters.tokens

    def count_epochs(self) -> float:
        return self.counters.tokens / sum(batch.numel() for batch in self._batches)

    def _done(self) -> bool:
        through = self.method.place == len(self.method.blocks) - 1
        return super()._done() and (through or self.counters.step == 0 or self._out_of_patience())

    def _begin(self, place: int, *, refit: bool = True) -> None:
        """Mask the layers of a block, which begins."""
        block = self.method.blocks[place]
        self._keep(block)
        self.masked = [self.mask_layer(name, linear) for name, linear in self._layers[block].items()]
        self.method.begin(place, self.masked, refit=refit)

    def _finish(self) -> None:
        """Let the streams pass the block at work, and put its weights where they stay."""
        error, place = self.method.finish(), self.method.place
        log.info("block %d of %d: relative error %.4f", place + 1, len(self.method.blocks), error)
        with atomic_file(self._file(place)) as temporary:
            save_file({layer.name: layer.weight.contiguous() for layer in self.masked}, temporary)
        for name, linear in self._layers[self.method.block].items():
            self.model.replace(name, linear)
        self.model.take_weights(self._layers[self.method.block], self._file(place))
        self.masked = []

    def keep_best(self) -> None:
        self._best = {"place": torch.tensor(self.method.place), **self.method.values()}

    def measure_movement(self) -> dict[str, float]:
        return {"moved": math.sqrt((self.method.moved + self.method.measure_move()) / max(1e-30, self._start_square))}

    def note_movement(self, point: Point) -> str:
        return f"block {self.method.place + 1} of {len(self.method.blocks)}"

    def restore(self) -> None:
        assert self.store is not None
        _, counters = self.store.load()
        for place in range(int(counters["place"])):
            block = self.method.blocks[place]
            self._keep(block)
            self.model.take_weights(self._layers[block], self._file(place))
            self.method.pass_by(place)
        if int(counters["place"]) >= 0:
            self._begin(int(counters["place"]), refit=False)
        super().restore()

    def collect_weights(self) -> Mapping[str, Tensor]:
        """See `RecoveryTrainer.collect_weights`; those of finished blocks are read when they are asked for."""
        place = int(self._best["place"])
        finished = {n: partial(_read, self._file(i), n) for i in range(place) for n in self._layers[self.method.blocks[i]]}
        begun = self.method.weights_of({key: x for key, x in self._best.items() if key != "place"})
        return OnDemand(finished | {name: partial(begun.__getitem__, name) for name in begun})


def _read(file: Path, name: str) -> Tensor:
    with open_tensors(file, "pt") as tensors:
        weight: Tensor = tensors.get_tensor(name)
    return weight
