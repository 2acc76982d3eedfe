"""The list of templates: every one is compared with transformers, and described."""

from __future__ import annotations

from architectures import DECODERS

from maskpro_deploy.exporters.architectures.registry import TEMPLATES


def test_every_template_is_among_the_tested_decoders() -> None:
    assert set(TEMPLATES) == {model_type for model_type, _ in DECODERS.values()}


def test_every_template_says_which_models_it_builds() -> None:
    described = [template.models for template in TEMPLATES.values()]
    assert all(described)
    assert len(set(described)) == len(described)
