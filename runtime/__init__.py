"""Running bundles: sessions, batching, sampling, and the OpenAI-compatible server.

    bundle ──▶ OrtSession ──▶ Scheduler ──▶ Engine ──▶ HTTP server
               (one graph)    (who runs)    (thread)   (server.py)

Nothing here needs torch or transformers. The server's own modules need the `serve` extra and are imported by name.
"""

from maskpro_deploy.runtime.engine import (
    Completion,
    ContextLengthError,
    Engine,
    EngineDeadError,
    OverloadedError,
    RuntimeConfig,
    load,
)
from maskpro_deploy.runtime.sampling import SamplingParams, Score
from maskpro_deploy.runtime.session import OrtSession, Session, SessionConfig, open_session

__all__ = [
    "Completion",
    "ContextLengthError",
    "Engine",
    "EngineDeadError",
    "OrtSession",
    "OverloadedError",
    "RuntimeConfig",
    "SamplingParams",
    "Score",
    "Session",
    "SessionConfig",
    "load",
    "open_session",
]
