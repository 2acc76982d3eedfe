"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.http import memory, server
from maskpro_deploy.runtime.http.memory import LARGE_BYTES, MemoryReturn, find_trim
from maskpro_deploy.runtime.http.server import create_app

pytestmark = pytest.mark.skipif(find_trim() is None, reason="the C library keeps what was freed")
MEGABYTE = 1 << 20


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def test_freed_memory_goes_back_once_for_several_requests() -> None:
    async def run() -> tuple[int, int]:
        blocks = [bytes(100_000) for _ in range(2000)]  # small enough to come from the heap
        del blocks[:-1]  # what is on top of it stays
        before, returned = resident(), MemoryReturn()
        for _ in range(3):
            returned.plan()
        deadline = time.monotonic() + 20
        while resident() > before - 100 * MEGABYTE and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return before, resident()

    before, after = asyncio.run(run())
    assert after < before - 100 * MEGABYTE


def test_only_long_requests_plan_it(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[bool] = []

    class Counted(memory.MemoryReturn):
        def plan(self) -> None:
            planned.append(True)

    monkeypatch.setattr(server, "MemoryReturn", Counted)
    with TestClient(create_app(generator)) as client:
        assert client.post("/tokenize", json={"prompt": "x"}).status_code == 200
        assert planned == []
        long = client.post("/tokenize", json={"prompt": "The sea. " * (LARGE_BYTES // 9)})
        assert (long.status_code, planned) == (200, [True])
        body = long.json()
        assert list(body) == ["count", "max_model_len", "tokens"]
        assert body["count"] == len(body["tokens"]) > 1 << 14
        assert client.post("/detokenize", json={"tokens": body["tokens"][:9]}).json()["prompt"] in "The sea. " * 9
