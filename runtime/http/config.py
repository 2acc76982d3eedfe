"""Settings of the server, checked where they are made; messages name the command line's flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskpro_deploy.errors import ConfigError, check_known, check_range
from maskpro_deploy.runtime.generate.model_defaults import SOURCES, ModelDefaults
from maskpro_deploy.runtime.generate.scheduler import RuntimeConfig
from maskpro_deploy.runtime.http.addresses import ServerAddress
from maskpro_deploy.runtime.http.keys import read_keys
from maskpro_deploy.runtime.http.tls import Tls
from maskpro_deploy.runtime.http.traces import check_endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a bundle is served."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8000  # 0 takes a free one
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)  # how the bundle is run
    api_key: str | None = field(default=None, repr=False)  # clients have to send it as a bearer token; None serves everybody
    api_key_file: Path | None = None  # of several keys with names, see `keys`; in addition to the one
    request_log: str | None = None  # a file that gets a line for every request, "-" for stderr; see `request_log`
    served_model_name: str | None = None  # what clients call the model; None takes the bundle's own name
    model_aliases: tuple[str, ...] = ()  # further names that requests may use; answers have the first
    generation_config: str = "auto"  # whether the bundle's generation_config.json has the defaults of requests: "auto", "none"
    docs: bool = True  # whether /openapi.json and /docs are served
    shutdown_timeout_s: float = 30.0  # how long running requests may go on after a signal to stop
    max_body_bytes: int | None = None  # longest request; None follows the context, see `limits`
    header_timeout_s: float = 10.0  # for the headers of a request to arrive
    body_timeout_s: float = 60.0  # and for its body
    max_connections: int = 1024  # at once; more get 503
    max_tokens_limit: int | None = None  # most tokens of an answer, whatever a client asks for; None for the context's room
    default_max_tokens: int | None = None  # of a chat that does not say how many; None for the context's room
    named_keys: Mapping[str, str] = field(default_factory=dict, init=False, repr=False)  # those of the file
    otlp_traces_endpoint: str | None = None  # where spans of requests are sent, see `traces`; None makes none
    tls: Tls | None = None  # serves https; None serves plain http
    allowed_origins: tuple[str, ...] = ()  # web pages that may call the server from a browser; "*" for all
    ui: bool = True  # whether there is a chat page at `/`
    compare_url: str | None = None  # a second server that the page shows next to this one

    def __post_init__(self) -> None:
        check_range("--port", self.port, least=0, most=65535)
        check_range("--shutdown-timeout", self.shutdown_timeout_s, least=0, below=math.inf)
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("--api-key is empty.\nGive a key, or omit the option (and unset MASKPRO_API_KEY).")
        for flag, value in (("--header-timeout", self.header_timeout_s), ("--body-timeout", self.body_timeout_s)):
            check_range(flag, value, above=0, below=math.inf)
        check_range("--max-connections", self.max_connections, least=1)
        check_range("--max-tokens-limit", self.max_tokens_limit, least=1)
        check_range("--default-max-tokens", self.default_max_tokens, least=1)
        if self.otlp_traces_endpoint is not None:
            object.__setattr__(self, "otlp_traces_endpoint", check_endpoint(self.otlp_traces_endpoint))
        if self.api_key_file is not None:
            object.__setattr__(self, "named_keys", read_keys(self.api_key_file))
        names = [*([] if self.served_model_name is None else [self.served_model_name]), *self.model_aliases]
        if not all(name.strip() for name in names) or len(set(names)) < len(names):
            raise ConfigError("--served-model-name is empty or was given twice.")
        check_known("--generation-config", self.generation_config, SOURCES)
        self._check_page()
        check_range("--max-body-bytes", self.max_body_bytes, least=1)

    def _check_page(self) -> None:
        if self.compare_url is None:
            return
        if not self.ui:
            raise ConfigError("--compare-url is for the chat page, which --no-ui turns off.\nGive one of them.")
        if ServerAddress.read(self.compare_url) is None:
            raise ConfigError(f"--compare-url {self.compare_url} is not a server's address.\nGive one such as http://name:8000.")

    @property
    def all_keys(self) -> Mapping[str, str]:
        """Every key by its owner's name."""
        return {**({"api-key": self.api_key} if self.api_key is not None else {}), **self.named_keys}

    def read_defaults(self, bundle: Path) -> ModelDefaults:
        """What a bundle says of requests that do not, if it is to be read; a FormatError if its file is damaged."""
        return ModelDefaults.read(bundle) if SOURCES[self.generation_config] else ModelDefaults()
