"""Running bundles: sessions, batching, sampling, and the OpenAI-compatible server.

    bundle ──▶ GraphSession ──▶ Scheduler ──▶ Engine ──▶ HTTP server
               (one graph)      (who runs)    (thread)   (server.py)

Nothing here needs torch or transformers. The server's own modules need the `serve` extra and are imported by name.
"""

from maskpro_deploy.backends.session import GraphSession, Session
from maskpro_deploy.runtime.generate.completion import Completion
from maskpro_deploy.runtime.generate.config import RuntimeConfig, ServeConfig
from maskpro_deploy.runtime.generate.generator import Engine, load
from maskpro_deploy.runtime.generate.refusals import ContextLengthError, EngineDeadError, OverloadedError
from maskpro_deploy.runtime.generate.sampling import SamplingParams, Score
from maskpro_deploy.runtime.sessions.session import SessionConfig, open_session

OrtSession = GraphSession  # the name it had when it ran graphs in onnxruntime only

__all__ = [
    "Completion",
    "ContextLengthError",
    "Engine",
    "EngineDeadError",
    "GraphSession",
    "OrtSession",
    "OverloadedError",
    "RuntimeConfig",
    "SamplingParams",
    "Score",
    "ServeConfig",
    "Session",
    "SessionConfig",
    "load",
    "open_session",
]
