"""All architectures that have a template here. To add a family: its file, and its name in the line below."""

from __future__ import annotations

from maskpro_deploy.exporters.architectures import gemma, gpt2, llama, opt, phi3, qwen, smollm3
from maskpro_deploy.exporters.architectures.template import Template

# model_type of config.json -> its template
TEMPLATES: dict[str, Template] = {
    model_type: template
    for family in (llama, qwen, smollm3, gemma, phi3, gpt2, opt)
    for model_type, template in family.TEMPLATES.items()
}
