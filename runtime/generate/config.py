"""Settings of a text generator, checked where they are made; messages name the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime.generate.scheduler import SchedulerConfig
from maskpro_deploy.runtime.sessions.session import SessionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How a bundle is run.

    Attributes:
        provider: see `SessionConfig`.
        threads: see `SessionConfig`.
        spin: see `SessionConfig`; off here, because a server shares its machine at least with its own network thread.
        max_num_seqs: sequences that run at once.
        max_num_queued_reqs: further sequences that may wait.
        max_model_len: longest prompt and answer together, in tokens; None takes the model's own.
        chunk_tokens: see `SchedulerConfig`.
        max_cache_tokens: see `SchedulerConfig`; None lets `load` take as many as fit an eighth of this machine's memory.
        max_prefill_rows: see `SchedulerConfig`; `load` takes it from the session.
        form: see `SessionConfig`.
        engine: see `SessionConfig`.
        check_hashes: read every file of the bundle and compare its SHA-256 before use.
    """

    provider: str = "auto"
    threads: int | None = None
    spin: bool = False
    max_num_seqs: int = 16
    max_num_queued_reqs: int = 64
    max_model_len: int | None = None
    chunk_tokens: int = 256
    max_cache_tokens: int | None = None
    max_prefill_rows: int | None = None
    form: str | None = None
    engine: str | None = None
    check_hashes: bool = False

    def __post_init__(self) -> None:
        if self.max_num_queued_reqs < 0:
            raise ConfigError(f"--max-num-queued-reqs is {self.max_num_queued_reqs}; allowed: 0 and more.")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"--max-model-len is {self.max_model_len}; allowed: 2 and more.")
        self.session, self.scheduler  # noqa: B018 (their own checks)

    @property
    def session(self) -> SessionConfig:
        """The session's part."""
        return SessionConfig(provider=self.provider, threads=self.threads, spin=self.spin, form=self.form, engine=self.engine)

    @property
    def scheduler(self) -> SchedulerConfig:
        """The scheduler's part."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            chunk_tokens=self.chunk_tokens,
            max_cache_tokens=self.max_cache_tokens,
            max_prefill_rows=self.max_prefill_rows,
        )
