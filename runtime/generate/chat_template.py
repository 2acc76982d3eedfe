"""Messages to the model's prompt: the chat template.

It is a program that came with the model, or that whoever serves it gives; it runs in jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from maskpro_deploy.errors import InputError
from maskpro_deploy.system.extras import require


def token_text(entry: object, tokenizer: Tokenizer, token: int | None) -> str:
    """Text of a special token: as tokenizer_config.json has it, else by its number; "" if there is none."""  # fmt: skip
    if isinstance(entry, dict):
        entry = entry.get("content")
    if isinstance(entry, str):
        return entry
    return (tokenizer.id_to_token(token) or "") if token is not None else ""


class ChatTemplate:
    """A template, compiled when it is first used; it always sees `variables`, such as `bos_token`."""

    def __init__(self, source: str, variables: Mapping[str, object]) -> None:
        self.source = source
        self._variables = {"add_generation_prompt": True, **variables}
        self._template: Any = None

    def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]) -> str:
        """The prompt; an InputError if the template refuses these messages."""
        require("serve", "rendering a chat template")
        import jinja2

        try:
            if self._template is None:
                self._template = _sandbox().from_string(self.source)
            text: str = self._template.render(messages=list(messages), **{**self._variables, **variables})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as e:
            raise InputError(f"the chat template cannot render these messages: {e}") from e
        return text

    def reads(self, name: str) -> bool:
        """Whether the prompt can depend on a variable of this name."""
        return name in self._read

    @cached_property
    def _read(self) -> set[str]:
        import jinja2.meta

        try:
            return jinja2.meta.find_undeclared_variables(_sandbox().parse(self.source))
        except jinja2.TemplateError:
            return set()


def read_template(bundle: Path, config: Mapping[str, object], name: str = "default") -> str | None:
    """The source of a bundle's template, from its own file or from tokenizer_config.json; None without one of this name."""
    path = bundle / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get(name)
    return template if isinstance(template, str) else None


def read_template_file(path: Path) -> str:
    """The source of a template that a user gives; an InputError where it cannot be read, is empty or is no template."""
    require("serve", "reading a chat template")
    import jinja2

    try:
        source = path.read_text(encoding="utf-8")
        _sandbox().parse(source)
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: the chat template cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}.") from e
    except jinja2.TemplateSyntaxError as e:
        raise InputError(f"{path}, line {e.lineno}: not a chat template in Jinja's language: {e.message}") from e
    if not source.strip():
        raise InputError(f"{path}: the chat template is empty.")
    return source


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
