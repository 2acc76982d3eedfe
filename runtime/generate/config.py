"""Settings of a text generator, checked where they are made; messages name the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.errors import check_range
from maskpro_deploy.runtime.generate.scheduler import SchedulerConfig
from maskpro_deploy.runtime.sessions.session import SessionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig(SessionConfig, SchedulerConfig):
    """How a bundle is run: the settings of its session and of its scheduler, and the generator's own.

    Where `max_cache_tokens` is None, `load` takes as many as fit an eighth of this machine's memory; it takes `max_prefill_rows`
    from the session.

    Attributes:
        spin: see `SessionConfig`; off here, because a server shares its machine at least with its own network thread.
        max_num_queued_reqs: further sequences that may wait.
        max_model_len: longest prompt and answer together, in tokens; None takes the model's own.
        check_hashes: read every file of the bundle and compare its SHA-256 before use.
    """

    spin: bool = False
    max_num_queued_reqs: int = 64
    max_model_len: int | None = None
    check_hashes: bool = False

    def __post_init__(self) -> None:
        SessionConfig.__post_init__(self)
        SchedulerConfig.__post_init__(self)
        check_range("--max-num-queued-reqs", self.max_num_queued_reqs, least=0)
        check_range("--max-model-len", self.max_model_len, least=2)
