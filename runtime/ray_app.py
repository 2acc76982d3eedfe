"""Several replicas of the server, on one machine or many, with Ray Serve.

Ray Serve does what a cluster needs: it places replicas, spreads requests over them, replaces dead ones, and scales. Each
replica is the same app around a generator of its own:

    from ray import serve
    from maskpro_deploy.runtime.ray_app import application

    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(application(Path("bundle"), replicas=2), route_prefix="/")

The bundle has to be at the same path on every machine. `/metrics` answers for one replica at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskpro_deploy.errors import check_range
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime.generate.generator import DEAD, TextGenerator
from maskpro_deploy.runtime.generate.loading import load
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.server import create_app
from maskpro_deploy.system.extras import require

_generator: TextGenerator | None = None  # the one generator of this replica's process


class _Replica:
    """What Ray asks of a replica in addition to its app."""

    def check_health(self) -> None:
        """Called from time to time by Ray; an error makes it replace the replica."""
        if _generator is not None and _generator.status == DEAD:
            raise RuntimeError("text generation broke down")

    def __del__(self) -> None:
        """Ray has drained the replica and lets it go."""
        if _generator is not None:
            _generator.close()


def application(
    bundle: Path, config: ServeConfig | None = None, *, replicas: int = 1, cpus: float = 1.0, gpus: float = 0.0
) -> Any:
    """A bundle, a folder written by `maskpro-deploy export`, as a Ray Serve application.

    Each replica has key, names and limits of `config` (host and port are Ray's business and not taken from it), and Ray reserves
    `cpus` and `gpus` for it.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: `bundle` is not a bundle.
        FormatError: its generation_config.json is damaged.
    """
    require("ray", "running several replicas")
    from ray import serve

    config = config or ServeConfig()
    check_range("replicas", replicas, least=1)
    Manifest.load(bundle, engines=False)
    defaults = config.read_defaults(bundle)
    folder = bundle.resolve()

    def build() -> Any:
        """Runs in each replica: generators cannot travel between processes."""
        global _generator
        _generator = load(folder, config.runtime)
        return create_app(_generator, config, defaults)

    deployment = serve.deployment(
        serve.ingress(build)(_Replica),
        name="maskpro-deploy",
        num_replicas=replicas,
        # Ray must not hold back what the generator could batch; the generator's own limit answers 503
        max_ongoing_requests=2 * (config.runtime.max_num_seqs + config.runtime.max_num_queued_reqs),
        graceful_shutdown_timeout_s=config.shutdown_timeout_s,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind()
