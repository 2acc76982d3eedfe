"""Settings of the server, checked where they are made; messages name the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime.generate.config import RuntimeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a bundle is served.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        runtime: how the bundle is run.
        api_key: clients have to send it as a bearer token; None serves everybody.
        served_model_name: what clients call the model; None takes the bundle's own name.
        shutdown_timeout_s: how long running requests may go on after a signal to stop.
        max_body_bytes: longest request.
        allowed_origins: web pages that may call the server from a browser; "*" for all.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    api_key: str | None = field(default=None, repr=False)
    served_model_name: str | None = None
    shutdown_timeout_s: float = 30.0
    max_body_bytes: int = 32 << 20
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; allowed: 0 to 65535.")
        if not 0 <= self.shutdown_timeout_s < float("inf"):
            raise ConfigError(f"--shutdown-timeout is {self.shutdown_timeout_s}; allowed: 0 seconds and more.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("--api-key is empty.\nGive a key, or omit the option (and unset MASKPRO_API_KEY).")
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-bytes is {self.max_body_bytes}; allowed: 1 and more.")
