"""Text to tokens and back: tokenizer.json, the chat template, and text that grows token by token.

A chat template is a program that came with the model: it runs in jinja's sandbox. Growing text is harder than it looks: a
character may be spread over several tokens, and a stop text over several pieces. `Detokenizer` and
`StopFilter` hold back what is not settled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import read_json

UNDECODED = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies spell a single byte
_MAX_HELD_TOKENS = 64  # garbage bytes could otherwise be held back without end


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: printable Latin-1 as itself, the others from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_alphabet()


class TextTokenizer:
    """The tokenizer of a bundle.

    Args:
        tokenizer: the parsed tokenizer.json.
        bos: text of the begin-of-text token for the template, "" if there is none.
        eos: likewise end-of-text.
        template: source of the chat template, or None.
    """

    def __init__(self, tokenizer: Tokenizer, bos: str = "", eos: str = "", template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._specials = {"bos_token": bos, "eos_token": eos}
        self._template_source = template
        self._template: Any = None

    @classmethod
    def load(cls, bundle: Path, shape: ModelShape) -> TextTokenizer:
        """Read tokenizer.json and what belongs to it.

        Raises:
            InputError: the bundle has no tokenizer.json.
            FormatError: a file is damaged.
        """
        path = bundle / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{bundle} has no tokenizer.json: text cannot be turned into tokens.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            raise FormatError(f"{path} is no tokenizer: {e}") from e
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config_path = bundle / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        eos = shape.eos_token_ids[0] if shape.eos_token_ids else None
        return cls(
            tokenizer,
            bos=_special(config.get("bos_token"), tokenizer, shape.bos_token_id),
            eos=_special(config.get("eos_token"), tokenizer, eos),
            template=_template_source(bundle, config),
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template_source is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text.

        Raises:
            InputError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as e:
            raise InputError(f"the text cannot be turned into tokens: {e}") from e
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def piece(self, token: int) -> str:
        r"""Text of one token by itself, special tokens by name; of a part of a character its bytes, as `bytes:\xe2\x82`."""
        text = self.decode([token], skip_special_tokens=False)
        return "bytes:" + "".join(f"\\x{b:02x}" for b in self.token_bytes(token)) if UNDECODED in text else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, also where they are only a part of a character."""
        text = self.decode([token], skip_special_tokens=False)
        if UNDECODED not in text:
            return text.encode()
        name = self._tokenizer.id_to_token(token) or ""
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        if all(c in _BYTE_OF_CHAR for c in name):
            return bytes(_BYTE_OF_CHAR[c] for c in name)
        return text.encode()

    def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object] | None = None) -> str:
        """Messages as the model's own prompt, ready for its answer.

        Args:
            messages: each with "role" and "content".
            variables: more variables for the template; `add_generation_prompt` is true unless given here.

        Raises:
            InputError: the model has no chat template, or the template refuses these messages.
        """
        if self._template_source is None:
            raise InputError("this model has no chat template: use /v1/completions with a prompt in the model's own form.")
        require("serve", "rendering a chat template")
        import jinja2

        try:
            if self._template is None:
                self._template = _environment().from_string(self._template_source)
            given = {"add_generation_prompt": True, **self._specials, **(variables or {})}
            text: str = self._template.render(messages=list(messages), **given)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as e:
            raise InputError(f"the chat template cannot render these messages: {e}") from e
        return text


def _environment() -> Any:
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


def _special(entry: object, tokenizer: Tokenizer, token: int | None) -> str:
    """Text of a special token: as tokenizer_config.json has it, else by its number."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    if isinstance(entry, str):
        return entry
    return (tokenizer.id_to_token(token) or "") if token is not None else ""


def _template_source(bundle: Path, config: Mapping[str, object]) -> str | None:
    path = bundle / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class Detokenizer:
    """Text of tokens that arrive one by one.

    The pieces together are exactly the text of all tokens: characters are held back until their last byte is there.
    """

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._tokens: list[int] = []
        self._prefix = 0  # decoding starts here: a few known tokens give the rest its context (spaces between words)
        self._read = 0  # tokens before this one have been given out

    def add(self, token: int) -> str:
        """The text that is settled now."""
        self._tokens.append(token)
        return self._settle(force=len(self._tokens) - self._read > _MAX_HELD_TOKENS)

    def flush(self) -> str:
        """What was held back, now that nothing will follow."""
        return self._settle(force=True)

    def _settle(self, *, force: bool) -> str:
        known = self._decode(self._tokens[self._prefix : self._read])
        text = self._decode(self._tokens[self._prefix :])
        if len(text) <= len(known) or (text.endswith(UNDECODED) and not force):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip)


class StopFilter:
    """Lets text through up to the first stop text, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be given out, and whether a stop text has been met."""
        self._held += text
        starts = {stop: self._held.find(stop) for stop in self._stops}
        # the stop that is complete first, and of those the longest: so the result does not depend on how the text was cut
        ends = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        if ends:
            out, self._held = self._held[: min(ends)[1]], ""
            return out, True
        keep = self._open_length()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out, False

    def flush(self) -> str:
        """What was held back, now that nothing will follow."""
        out, self._held = self._held, ""
        return out

    def _open_length(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
