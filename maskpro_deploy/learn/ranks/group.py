"""The processes of a run, as `torchrun` starts them, and what they say to each other: tensors, and short texts as bytes."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskpro_deploy.errors import InputError, MachineError

log = logging.getLogger(__name__)

TIMEOUT_S = 1800.0  # that a rank waits for the others


class Pending(ABC):
    """A sum over ranks that is under way."""

    @abstractmethod
    def wait(self) -> Tensor:
        """The sum."""


class Ranks(ABC):
    """The processes of a run.

    Attributes:
        rank: the number of this one, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of so many things are this rank's."""
        return slice(self.rank, count, self.size)

    @abstractmethod
    def start_sum(self, tensor: Tensor) -> Pending:
        """Start the sum of a tensor over all ranks; it is overwritten."""

    @abstractmethod
    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Sums of numbers over all ranks, the same to the bit on each."""

    @abstractmethod
    def tell(self, value: Any) -> Any:
        """What rank 0 says, as JSON holds it."""

    @abstractmethod
    def copy(self, tensor: Tensor) -> Tensor:
        """Let a tensor be that of rank 0, in place."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """What every rank says, as JSON holds it, in order."""

    def check_equal(self, facts: dict[str, Any]) -> None:
        """Refuse ranks that differ in what decides on the result.

        Raises:
            InputError: on every rank, naming what differs.
        """
        everywhere = self.gather(facts)
        for name in facts:
            if unlike := [rank for rank, theirs in enumerate(everywhere) if theirs.get(name) != everywhere[0].get(name)]:
                raise InputError(
                    f"rank {unlike[0]} has another {name} than rank 0: {everywhere[unlike[0]].get(name)}, not "
                    f"{everywhere[0].get(name)}.\nStart every rank with the same options, on the same files and versions."
                )


class _Done(Pending):
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> Tensor:
        return self._tensor


class _Alone(Ranks):
    """One process."""

    rank, size = 0, 1

    def start_sum(self, tensor: Tensor) -> Pending:
        return _Done(tensor)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def tell(self, value: Any) -> Any:
        return value

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value]


ALONE: Ranks = _Alone()


class _Sum(Pending):
    def __init__(self, tensor: Tensor, work: dist.Work | None) -> None:
        self._tensor, self._work = tensor, work

    def wait(self) -> Tensor:
        if self._work is not None:
            with _plain_errors():
                self._work.wait()
        return self._tensor


class _Group(Ranks):
    """Several processes that torch.distributed has brought together; texts and numbers go over the CPU."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # numbers and texts go over the CPU: asking a GPU for one would make it run dry
        self._numbers = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def close(self) -> None:
        """Forget what has to be gone before the program ends."""
        self._numbers = None

    def start_sum(self, tensor: Tensor) -> Pending:
        with _plain_errors():
            return _Sum(tensor, dist.all_reduce(tensor, async_op=True))

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        everywhere = torch.zeros(self.size, len(numbers), dtype=torch.float64)
        everywhere[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        with _plain_errors():
            dist.all_reduce(everywhere, group=self._numbers)  # adding zeros rounds nothing, whatever the order
        return [float(sum(column)) for column in everywhere.t().tolist()]

    def copy(self, tensor: Tensor) -> Tensor:
        sent = tensor.contiguous()  # itself, unless it is a view of another order
        with _plain_errors():
            dist.broadcast(sent, 0)
        return tensor if sent is tensor else tensor.copy_(sent)

    def tell(self, value: Any) -> Any:
        return self.gather(value if self.leads else None)[0]

    def gather(self, value: Any) -> list[Any]:
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [int(n) for n in self.sum_numbers([float(len(text)) * (r == self.rank) for r in range(self.size)])]
        padded = torch.zeros(self.size, max(lengths), dtype=torch.uint8)
        padded[self.rank, : len(text)] = text
        with _plain_errors():
            dist.all_reduce(padded, group=self._numbers)
        rows = padded.numpy()
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Say in one line that another rank is gone or does not answer (MachineError)."""
    try:
        yield
    except RuntimeError as e:
        log.info("%s", e)
        late = "imeout" in str(e) or "imed out" in str(e)
        why = "one of them did not answer in time" if late else "a connection broke"
        raise MachineError(
            f"rank {dist.get_rank()} lost the others: {why}.\n"
            f"Their own errors say more; go on from the last saved state with --resume."
        ) from e


@contextmanager
def joined_ranks(device: str, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """The ranks of this run: alone, unless the process was started by `torchrun`.

    Raises:
        MachineError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    shares_gpu = device == "cuda" and torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = torch.device("cuda", 0 if shares_gpu else local) if device == "cuda" else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" and not shares_gpu else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as e:
        raise MachineError(f"the other ranks cannot be reached: {str(e).splitlines()[0]}") from e
    group = _Group()
    yield group
    dist.barrier()  # rank 0 keeps what the others find each other by
    group.close()
    dist.destroy_process_group()  # after an error the connections are left to the end of the process: closing broken ones aborts
