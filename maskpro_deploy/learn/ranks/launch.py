"""`--nproc N`: the same command on several processes of this machine, started and watched by torch's elastic agent (`torchrun`).

A rank that was killed ends all of them. They start again from the last saved state, a few times; an error that a rank reports
itself ends the run, since it would come back.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from maskpro_deploy.errors import Interrupted, MachineError
from maskpro_deploy.learn.state import StateStore

log = logging.getLogger(__name__)

_RESTARTS = 3
_STOP_S = 120  # that ranks have to save their state after an interrupt


def is_launched() -> bool:
    """Whether this process is one of several already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def leads() -> bool:
    """Whether this process is the first of them, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def goes_on(out: Path) -> bool:
    """Whether `torchrun` started this process again, and there is a state of the run to go on from."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and StateStore(StateStore.folder_for(out)).path.is_file()


def launch(count: int, arguments: Sequence[str], out: Path) -> int:
    """Run `maskpro-deploy` with these arguments on so many processes; the exit code is that of the first that failed.

    Raises:
        MachineError: ranks were killed again and again.
        Interrupted: the user stopped them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    state, given = StateStore(StateStore.folder_for(out)).path, [*arguments]
    for restarts in range(_RESTARTS + 1):
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=DefaultLogsSpecs(), shutdown_timeout=_STOP_S,
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "maskpro_deploy", *given)
            return 0
        except SignalException as e:
            raise Interrupted("the ranks were stopped.\nGo on with the same command and --resume.") from e
        except ChildFailedError as e:
            failed = min(e.failures.values(), key=lambda failure: failure.timestamp)
        if failed.exitcode >= 0:
            return failed.exitcode
        if restarts < _RESTARTS:
            log.warning("rank %d was killed by signal %d: all start again", failed.local_rank, -failed.exitcode)
            if state.is_file() and "--resume" not in given:
                given.append("--resume")
    raise MachineError(
        f"rank {failed.local_rank} was killed by signal {-failed.exitcode}, {_RESTARTS + 1} times; memory may not suffice for "
        f"{count} ranks.\nGo on with the same command, --resume, and fewer ranks."
    )
