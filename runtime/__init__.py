"""Running bundles: sessions, batching, sampling, and the OpenAI-compatible server.

    bundle ──▶ OrtSession ──▶ Scheduler ──▶ TextGenerator ──▶ HTTP server
               (one graph)    (who runs)    (thread)          (http/server.py)

    sessions      a graph or an engine that reads tokens
    generate      prompts to answers, many at once
    tools         functions that a model may call, and calls found in its text
    http          the server; needs the `serve` extra, so its modules are imported by name
    ray_app       replicas of the server under Ray Serve

Nothing here needs torch or transformers. `Engine` and `EngineDeadError` are earlier names of `TextGenerator` and
`GeneratorDeadError`, and stay: an engine is what TensorRT builds.
"""

from maskpro_deploy.backends.session import GraphSession, Session
from maskpro_deploy.runtime.generate.generator import ContextLengthError, GeneratorDeadError, OverloadedError, TextGenerator
from maskpro_deploy.runtime.generate.loading import load
from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.scheduler import RuntimeConfig
from maskpro_deploy.runtime.generate.sequence import Completion
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.sessions.session import SessionConfig, open_session

OrtSession = GraphSession  # the name it had when it ran graphs in onnxruntime only

Engine = TextGenerator
EngineDeadError = GeneratorDeadError

__all__ = [
    "Completion",
    "ContextLengthError",
    "Engine",
    "EngineDeadError",
    "GeneratorDeadError",
    "OrtSession",
    "OverloadedError",
    "RuntimeConfig",
    "SamplingParams",
    "Score",
    "ServeConfig",
    "Session",
    "SessionConfig",
    "TextGenerator",
    "load",
    "open_session",
]
