"""What one run of the program has to work with: its settings, and the service made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from resilient_ai._models.registry import ModelRegistry
    from resilient_ai.service import AIService
    from resilient_ai.settings import AISettings

__all__ = ["Session", "of"]


def open_service(settings: AISettings) -> AIService:
    """The service that the commands talk to."""
    from resilient_ai.service import AIService  # noqa: PLC0415 - brings the inference engine

    return AIService(settings)


@dataclass(frozen=True)
class Session:
    """The global options, and the seam through which commands get a service."""

    config_file: Path | None = None
    debug: bool = False
    make_service: Callable[[AISettings], AIService] = open_service

    def settings(self, **overrides: Any) -> AISettings:
        """The settings, with the options that were really given on top; None means not given.

        Raises:
            ConfigurationError: a value of some source is wrong.
        """
        from resilient_ai.settings import AISettings  # noqa: PLC0415 - brings pydantic

        given = {name: value for name, value in overrides.items() if value is not None}
        if self.config_file is not None:
            given["config_file"] = self.config_file
        if self.debug:
            given["log_level"] = "debug"
        settings = AISettings(**given)
        logging.getLogger("resilient_ai").setLevel(settings.log_level.upper())
        return settings

    def service(self, **overrides: Any) -> AIService:
        """A service of these settings; use it as a context manager."""
        return self.make_service(self.settings(**overrides))

    def registry(self, model_path: Path | None) -> ModelRegistry[Any]:
        """The models, without a service around them."""
        from resilient_ai._models.registry import ModelRegistry  # noqa: PLC0415 - brings the store

        settings = self.settings(model_path=model_path)
        return ModelRegistry(settings.model_path, mirror=settings.mirror_url, offline=settings.offline)

    @property
    def is_debugging(self) -> bool:
        """Whether errors are shown with their tracebacks."""
        return self.debug or logging.getLogger("resilient_ai").isEnabledFor(logging.DEBUG)


def of(context: typer.Context) -> Session:
    """The session of the run that a command belongs to."""
    session = context.obj
    assert isinstance(session, Session)
    return session
