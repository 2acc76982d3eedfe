"""The chat template: a program that came with the model and turns messages into its prompt. It runs in jinja's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import InputError
from maskpro_deploy.system.extras import require


class ChatTemplate:
    """A template, compiled when it is first used.

    Args:
        source: its text.
        variables: what it always sees, such as `bos_token`.
    """

    def __init__(self, source: str, variables: Mapping[str, object]) -> None:
        self._source = source
        self._variables = {"add_generation_prompt": True, **variables}
        self._template: Any = None

    def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]) -> str:
        """The prompt.

        Raises:
            InputError: the template refuses these messages.
        """
        require("serve", "rendering a chat template")
        import jinja2

        try:
            if self._template is None:
                self._template = _sandbox().from_string(self._source)
            text: str = self._template.render(messages=list(messages), **{**self._variables, **variables})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as e:
            raise InputError(f"the chat template cannot render these messages: {e}") from e
        return text


def read_template(bundle: Path, config: Mapping[str, object]) -> str | None:
    """The source of a bundle's template, from its own file or from tokenizer_config.json; None without one."""
    path = bundle / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _sandbox() -> Any:
    """The sandbox with the few functions that templates expect."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # jinja's own filter escapes for HTML, which would change the text that the model reads
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment
