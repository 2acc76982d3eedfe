"""Why a request is not served, other than wrong settings."""

from __future__ import annotations

from maskpro_deploy.errors import InputError, MachineError, MaskProError


class OverloadedError(MachineError):
    """No room for another request now; `reason` is "queue_full", "loading" or "shutting_down"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class GeneratorDeadError(MaskProError):
    """Text generation broke down; it does not recover."""


class ContextLengthError(InputError):
    """Prompt and answer together are longer than the model's context."""
