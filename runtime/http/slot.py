"""The place of an engine that may still be loading."""

from __future__ import annotations

import time

from maskpro_deploy.runtime.generate.generator import Engine, Load
from maskpro_deploy.runtime.generate.refusals import OverloadedError
from maskpro_deploy.runtime.http.metrics import Metrics


class EngineSlot:
    """An engine, or the fact that it is still loading; with the name and the metrics that clients see meanwhile."""

    def __init__(self, model_name: str, engine: Engine | None = None) -> None:
        self.model_name = model_name
        self.metrics = Metrics(model_name, self._load)
        self._engine: Engine | None = None
        self.created = int(time.time())
        if engine is not None:
            self.fill(engine)

    def fill(self, engine: Engine) -> None:
        """The engine is there."""
        engine.observer = self.metrics
        self._engine = engine

    def get(self) -> Engine:
        """The engine.

        Raises:
            OverloadedError: it is still loading.
        """
        if self._engine is None:
            raise OverloadedError("the model is loading.", "loading")
        return self._engine

    @property
    def status(self) -> str:
        """The engine's status, or "loading"."""  # fmt: skip
        return self._engine.status if self._engine is not None else "loading"

    def _load(self) -> Load:
        return self._engine.load if self._engine is not None else Load()
