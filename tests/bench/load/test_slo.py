from __future__ import annotations

import pytest

from maskpro_deploy.bench.load.figures import Slo
from maskpro_deploy.errors import ConfigError


def test_bounds_are_read_and_kept() -> None:
    slo = Slo.parse("ttft:500,tpot:50,e2el:2000")
    assert dict(slo.bounds_ms) == {"ttft": 500.0, "tpot": 50.0, "e2el": 2000.0}
    assert slo.holds_for({"ttft": 500.0, "tpot": 50.0, "e2el": 2000.0})
    assert slo.holds_for({"ttft": 1.0, "tpot": None, "e2el": 1.0})
    for metric in ("ttft", "tpot", "e2el"):
        assert not slo.holds_for({"ttft": 1.0, "tpot": 1.0, "e2el": 1.0, metric: 2000.1})
    assert Slo.parse("ttft:500 tpot:50") == Slo.parse("ttft:500,tpot:50")  # as vLLM's --goodput has it


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft:0", "impossible"),
        ("ttft:-5", "impossible"),
        ("tpot:1e-9", "impossible"),
        ("e2el:inf", "impossible"),
        ("e2el:nan", "impossible"),
        ("ttft:500,e2el:100", "cannot be later"),
        ("speed:5", "--slo speed is not known"),
        ("ttft", "expected each metric once"),
        ("ttft:fast", "expected each metric once"),
        ("ttft:1,ttft:2", "expected each metric once"),
        ("", "expected each metric once"),
    ],
)
def test_impossible_bounds_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Slo.parse(text)
