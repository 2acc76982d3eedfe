"""What `benchmark serve` was asked for, and the settings of the load generator, its clients and servers that follow from it."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.load.figures import Limits, Slo
from maskpro_deploy.bench.load.generator import Amount
from maskpro_deploy.bench.load.openai_client import ClientConfig
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load, OpenLoop, check_lengths
from maskpro_deploy.bench.load.sweep import LoadConfig
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.targets.servers import is_url

API_KEY_ENV = "MASKPRO_API_KEY"
RANDOM, BUILTIN = "random", "builtin"  # kinds of prompts; else the name of a file
_CONCURRENCY = (1, 4)
_REQUESTS = 50
_SESSIONS_OF_BUNDLES = 8  # as a verdict needs
# what every result states of them; the rest is in the facts of loads and servers
_REQUEST = ("endpoint", "prompts", "input_len", "output_len", "stream", "ignore_eos", "temperature")
_STATED = (*_REQUEST, "same_model", "least_difference")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The options of `benchmark serve`, by name, and its targets.

    Raises:
        ConfigError: one is out of its range, or does not go with another.
    """

    targets: tuple[str, ...]
    concurrency: tuple[int, ...] | None
    request_rate: tuple[float, ...] | None
    burstiness: float
    num_prompts: int | None
    duration: float | None
    warmup: int
    timeout: float
    prompts: str
    input_len: int
    output_len: int
    endpoint: str
    model: str | None
    stream: bool
    ignore_eos: bool
    temperature: float
    slo: str | None
    max_failed: float
    max_lag: float | None
    blocks: int
    sessions: int | None
    same_model: bool
    api_key_env: str
    provider: str
    threads: int | None
    max_num_seqs: int
    seed: int
    least_difference: float

    def __post_init__(self) -> None:
        if (self.sessions or 1) > 1 and not self.only_bundles:
            raise ConfigError(f"--sessions {self.sessions}: only two bundles can be served again; omit the option.")
        if self.api_key_env != API_KEY_ENV and not os.environ.get(self.api_key_env):
            raise ConfigError(f"--api-key-env {self.api_key_env}: there is no such variable, or it is empty.")
        if self.request_rate and self.concurrency:
            raise ConfigError("give --request-rate (open loop) or --concurrency (closed loop), not both.")
        check_lengths(self.input_len, self.output_len)
        slo = Slo.parse(self.slo) if self.slo is not None else None
        if slo is not None and not self.stream and set(slo.bounds_ms) - {"e2el"}:
            raise ConfigError("--slo: an answer that comes whole (--no-stream) has no first token; only e2el can be bounded.")
        if slo is not None and self.output_len == 1 and "tpot" in slo.bounds_ms:
            raise ConfigError("--slo tpot: answers of one token (--output-len 1) have no time per further token.")
        self.config  # noqa: B018 (its own checks)

    @property
    def only_bundles(self) -> bool:
        """Whether two bundles are compared, which can be served several times."""
        return len(self.targets) == 2 and not any(map(is_url, self.targets))

    @property
    def config(self) -> LoadConfig:
        """The settings of the load generator."""
        loads: tuple[Load, ...]
        if self.request_rate:
            loads = tuple(OpenLoop(rate=rate, burstiness=self.burstiness) for rate in self.request_rate)
        else:
            loads = tuple(ClosedLoop(concurrency=c) for c in self.concurrency or _CONCURRENCY)
        requests = self.num_prompts if self.num_prompts is not None or self.duration is not None else _REQUESTS
        return LoadConfig(
            loads=loads,
            amount=Amount(requests=requests, duration_s=self.duration, warmup=self.warmup, timeout_s=self.timeout),
            blocks=self.blocks,
            sessions=self.sessions if self.sessions is not None else _SESSIONS_OF_BUNDLES if self.only_bundles else 1,
            slo=Slo.parse(self.slo) if self.slo is not None else None,
            limits=Limits(max_failed=self.max_failed, max_lag_ms=self.max_lag),
            same_model=self.same_model,
            seed=self.seed,
            least_difference=self.least_difference,
        )

    def client(self, url: str, *, started_here: bool = False) -> ClientConfig:
        """How a server is asked; one that was started here has its own model and no key."""
        return ClientConfig(
            base_url=url,
            endpoint=self.endpoint,
            model=None if started_here else self.model,
            stream=self.stream,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            api_key=None if started_here else os.environ.get(self.api_key_env),
        )

    @property
    def serve_options(self) -> list[str]:
        """The options of `serve` for a bundle."""
        threads = ["--threads", str(self.threads)] if self.threads is not None else []
        return ["--provider", self.provider, "--max-num-seqs", str(self.max_num_seqs), *threads]

    @property
    def stated(self) -> dict[str, Any]:
        """What the result states."""
        return {name: getattr(self, name) for name in _STATED}

    def identity(self) -> dict[str, Any]:
        """What the samples depend on, as JSON values: a run goes on from one with the same identity only."""
        value = {f.name: _as_json(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "least_difference"}
        return {**value, "sessions": self.config.sessions}


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(v) for v in value]
    return str(value) if value == math.inf else value
