"""From the name of a form to its operators: class `Form` of the file of that name in this room."""

from __future__ import annotations

from importlib import import_module

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.exporters.graph.cache_forms.base import KVForm


def make_form(name: str, length: int, *, alone: bool = False) -> KVForm:
    """The operators of a form, for one graph (see `KVForm`)."""
    form: KVForm = import_module(f"{__package__}.{CACHE_FORMS[name].name}").Form(length, alone=alone)
    return form
