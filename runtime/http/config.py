"""Settings of the server, checked where they are made; messages name the command line's flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from maskpro_deploy.errors import ConfigError, check_range
from maskpro_deploy.runtime.generate.scheduler import RuntimeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a bundle is served."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8000  # 0 takes a free one
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)  # how the bundle is run
    api_key: str | None = field(default=None, repr=False)  # clients have to send it as a bearer token; None serves everybody
    served_model_name: str | None = None  # what clients call the model; None takes the bundle's own name
    shutdown_timeout_s: float = 30.0  # how long running requests may go on after a signal to stop
    max_body_bytes: int | None = None  # longest request; None follows the context, see `limits`
    allowed_origins: tuple[str, ...] = ()  # web pages that may call the server from a browser; "*" for all

    def __post_init__(self) -> None:
        check_range("--port", self.port, least=0, most=65535)
        check_range("--shutdown-timeout", self.shutdown_timeout_s, least=0, below=math.inf)
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("--api-key is empty.\nGive a key, or omit the option (and unset MASKPRO_API_KEY).")
        check_range("--max-body-bytes", self.max_body_bytes, least=1)
