"""Tiny bundles whose chat templates read tools, each in the way of one kind of model."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import write_tiny

from maskpro_deploy.exporters import ExportConfig, export

_HOW = {
    "hermes": '<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>',
    "llama3_json": '{"name": <name>, "parameters": <object>}',
    "mistral": "[TOOL_CALLS]",
    "unknown": "call it somehow",
}
_TEMPLATE = (
    "{% set how = 'HOW' %}{% if tools %}<|start|>system\n{{ tools | tojson }}{{ how }}<|end|>\n{% endif %}"
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}CALLED {{ call.function.name }} {{ call.function.arguments.a }}{% endfor %}"
    "{% if message.tool_call_id %} FOR {{ message.tool_call_id }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tool_template(name: str) -> str:
    """The template of a model that writes calls in this format."""
    return _TEMPLATE.replace("HOW", _HOW[name])


def tool_bundle(folder: Path, name: str) -> Path:
    """A tiny bundle with such a template and room for it; where the marker is a special token, its vocabulary has it."""
    model = write_tiny(folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    (model / "chat_template.jinja").write_text(tool_template(name))
    if name == "mistral":
        tokenizer = model / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace("<|text|>", "[TOOL_CALLS]"))
    export(model, folder / "bundle", ExportConfig())
    return folder / "bundle"
