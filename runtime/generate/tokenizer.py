"""Text to tokens and back, and messages to the model's prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import InputError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.chat_template import ChatTemplate, read_template, token_text
from maskpro_deploy.system.files import read_json

UNDECODED = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies spell a single byte


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: printable Latin-1 as itself, the others from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_alphabet()


class TextTokenizer:
    """The tokenizer of a bundle: its tokenizer.json without truncation and padding, and its chat template if there is one.

    Some models have another template for chats with tools.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None = None, tool_template: ChatTemplate | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._tool_template = tool_template or template

    @classmethod
    def load(cls, bundle: Path, shape: ModelShape, template: str | None = None) -> TextTokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template; `template` is the source of another in its place.

        Raises:
            InputError: the bundle has no tokenizer.json.
            FormatError: a file is damaged.
        """
        tokenizer = load_tokenizer(bundle)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config_path = bundle / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        source = template or read_template(bundle, config)
        if source is None:
            return cls(tokenizer)
        tokens = {"bos_token": shape.bos_token_id, "eos_token": next(iter(shape.eos_token_ids), None)}
        texts = {k: token_text(config.get(k), tokenizer, t) for k, t in tokens.items()}
        with_tools = None if template else read_template(bundle, config, "tool_use")
        return cls(tokenizer, ChatTemplate(source, texts), ChatTemplate(with_tools, texts) if with_tools else None)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text; an InputError if it holds half of a surrogate pair, which is not a character."""
        return self.encode_all([text], add_special_tokens=add_special_tokens)[0]

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True, most: int | None = None) -> list[list[int]]:
        """Tokens of several texts, while other threads go on: the batch form gives up the interpreter's lock.

        Args:
            texts: the texts.
            add_special_tokens: whether the tokenizer adds its own, such as one at the start.
            most: tokens that a text may have; one that must have more, by its length, is not encoded.

        Raises:
            InputError: a text holds half of a surrogate pair, or must have more tokens.
        """
        for text in texts if most is not None else ():
            if (least := len(text) // self._longest) > (most or 0):
                raise InputError(f"the text has {len(text)} characters, so {least} tokens or more; the context holds {most}.")
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as e:
            raise InputError(f"the text cannot be turned into tokens: {e}") from e
        return [list(encoding.ids) for encoding in encodings]

    @property
    def size(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token_id(self, name: str) -> int | None:
        """The token of a name, such as "<|end|>"; None if there is none."""
        return self._tokenizer.token_to_id(name)

    def to_json(self) -> str:
        """What tokenizer.json says."""
        return self._tokenizer.to_str()

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token's name: no token stands for more."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of tokens; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def piece(self, token: int) -> str:
        r"""Text of one token alone, special tokens by name; of a part of a character its bytes, as `bytes:\xe2\x82`."""
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

    @property
    def has_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._template is not None

    @property
    def tool_template(self) -> str | None:
        """The source of the chat template that reads `tools`; None if none does."""
        template = self._tool_template
        return template.source if template is not None and template.reads("tools") else None

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        variables: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """Messages ("role" and "content") as the model's own prompt.

        `add_generation_prompt` is true unless in `variables`; `tools` are the functions that the model may call.

        Raises:
            InputError: the model has no chat template, or the template refuses these messages.
        """
        if self._template is None:
            raise InputError("this model has no chat template: use /v1/completions with a prompt in the model's own form.")
        if tools and self._tool_template is not None:
            return self._tool_template.render(messages, {**(variables or {}), "tools": list(tools)})
        return self._template.render(messages, variables or {})
