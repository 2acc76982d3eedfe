"""Service level objectives: the latencies that users are promised, and goodput, the requests a second that keep all of them.

Goodput as in DistServe (Zhong et al. 2024, arXiv 2401.09670).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError, check_known

METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Upper bounds in ms by metric; empty: none were set."""

    bounds_ms: Mapping[str, float]

    def __post_init__(self) -> None:
        resolution_ms = 1e3 * time.get_clock_info("perf_counter").resolution
        for name, bound in self.bounds_ms.items():
            check_known("--slo", name, METRICS)
            if not bound > max(resolution_ms, 1e-3) or bound == float("inf"):
                raise ConfigError(f"--slo {name}:{bound:g} is impossible: a bound is a number of ms above 0.001.")
        ttft, whole = self.bounds_ms.get("ttft"), self.bounds_ms.get("e2el")
        if ttft is not None and whole is not None and ttft > whole:
            raise ConfigError(f"--slo: the first token ({ttft:g} ms) cannot be later than the whole answer ({whole:g} ms).")

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read "ttft:500,tpot:50,e2el:2000" (ms).

        Raises:
            ConfigError: it is no such list, or asks for what cannot be.
        """
        bounds: dict[str, float] = {}
        for part in text.replace(" ", ",").split(","):
            name, colon, value = part.partition(":")
            try:
                bound = float(value)
            except ValueError:
                colon = ""
            if not colon or name in bounds:
                raise ConfigError(f"--slo {text!r}: expected each metric once with its bound in ms, such as ttft:500,tpot:50.")
            bounds[name] = bound
        return cls(bounds_ms=bounds)

    def kept(self, compute_latencies_ms: Mapping[str, float | None]) -> bool:
        """Whether one request kept all bounds; an answer of one token has no time per output token and keeps that bound."""
        values = ((compute_latencies_ms.get(name), bound) for name, bound in self.bounds_ms.items())
        return all(value is None or value <= bound for value, bound in values)
