"""The API does what its description says, whatever is sent: schemathesis against the app in process.

`MASKPRO_FUZZ_EXAMPLES` is how many requests each route gets (by default few, for tens of seconds at most).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.openapi.operations import OPERATIONS, Operation
from maskpro_deploy.runtime.http.server import create_app

EXAMPLES = int(os.environ.get("MASKPRO_FUZZ_EXAMPLES", "12"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


MODES = schemathesis.GenerationMode
# what fits the description, and what does not, where anything can be sent
CASES = [(o, mode) for o in OPERATIONS for mode in MODES if mode is MODES.POSITIVE or o.request is not None]


@pytest.fixture(scope="module")
def described(generator: TextGenerator) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(generator, ServeConfig(max_tokens_limit=8)))


@pytest.mark.parametrize(("route", "mode"), CASES, ids=[f"{o.method} {o.path} {mode.value}" for o, mode in CASES])
def test_every_answer_is_as_described(described: Any, route: Operation, mode: schemathesis.GenerationMode) -> None:
    operation = described[route.path][route.method.upper()]

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
