"""What ranks say to each other, over real connections, and what one that is alone makes of the same calls."""

from __future__ import annotations

import json

import pytest
import torch
from rank_runs import finish_ranks, run_ranks, start_ranks

from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.ranks.group import ALONE
from maskpro_deploy.learn.ranks.sharing import share_arrays, share_saved

_TALK = """
import json, torch
from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.ranks.group import joined_ranks
from maskpro_deploy.learn.ranks.sharing import share_saved
with joined_ranks("cpu", 60) as ranks:
    r = ranks.rank
    tensor = torch.full((3,), 1.0 + r, dtype=torch.bfloat16)
    held = {"a": torch.arange(5, dtype=torch.int32), "b": torch.full((2, 2), 0.5).half(), "none": torch.zeros(0)}
    load = lambda: (held, {"step": 7})
    tensors, counters = share_saved(ranks, load if r == 0 else None)
    try:
        ranks.check_equal({"model": "same", "options": f"of {min(r, 1)}"})
        said = ""
    except InputError as e:
        said = str(e)
    print(json.dumps({
        "share": list(range(7))[ranks.share(7)], "sum": ranks.start_sum(tensor).wait().tolist(),
        "numbers": ranks.sum_numbers([0.1 * (r + 1), float(r)]), "told": ranks.tell({"from": r}),
        "gathered": ranks.gather("x" * r), "copy": ranks.copy(torch.tensor([float(r)])).tolist(),
        "saved": [tensors["a"].tolist(), tensors["b"].tolist(), str(tensors["b"].dtype), len(tensors["none"]), counters],
        "refused": said,
    }))
"""


@pytest.mark.parametrize("count", [2, 3])
def test_every_rank_hears_the_same(count: int) -> None:
    said = [json.loads(text) for text in run_ranks(count, ["-c", _TALK])]
    shares = [facts.pop("share") for facts in said]
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert all(facts == said[0] for facts in said)
    first = said[0]
    assert first["sum"] == [float(sum(range(1, count + 1)))] * 3
    assert first["numbers"] == [sum(0.1 * (r + 1) for r in range(count)), float(sum(range(count)))]
    assert first["told"] == {"from": 0}
    assert first["gathered"] == ["x" * r for r in range(count)]
    assert first["copy"] == [0.0]
    assert first["saved"] == [[0, 1, 2, 3, 4], [[0.5, 0.5], [0.5, 0.5]], "torch.float16", 0, {"step": 7}]
    assert first["refused"].startswith("rank 1 has another options than rank 0: of 1, not of 0.")


def test_a_rank_that_ends_early_is_one_line_for_the_others() -> None:
    code = """
import sys
from maskpro_deploy.errors import MachineError
from maskpro_deploy.learn.ranks.group import joined_ranks
try:
    with joined_ranks("cpu", 60) as ranks:
        if ranks.rank == 1:
            import os
            os._exit(7)
        ranks.sum_numbers([1.0])
except MachineError as e:
    print(e)
    sys.exit(e.exit_code)
"""
    (first, output, _), (second, _, _) = finish_ranks(start_ranks(2, ["-c", code]))
    assert (first, second) == (3, 7)
    assert output.startswith("rank 0 lost the others")
    assert "--resume" in output


def test_alone_nothing_is_sent() -> None:
    tensor = torch.arange(3.0)
    assert ALONE.start_sum(tensor).wait() is tensor
    assert ALONE.copy(tensor) is tensor
    assert ALONE.sum_numbers([1.5, 2.0]) == [1.5, 2.0]
    assert ALONE.tell("a") == "a"
    assert ALONE.gather("a") == ["a"]
    assert ALONE.leads
    assert list(range(5))[ALONE.share(5)] == [0, 1, 2, 3, 4]
    ALONE.check_equal({"anything": 1})
    assert share_saved(ALONE, lambda: ({}, {"step": 1})) == ({}, {"step": 1})
    assert share_arrays(ALONE, {"a": tensor.numpy()})["a"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(InputError, match="another a than rank 0"):
        _Two().check_equal({"a": 1})


class _Two(type(ALONE)):  # type: ignore[misc]
    """Another rank that says something else."""

    def gather(self, value: dict[str, int]) -> list[dict[str, int]]:
        return [value, {"a": 2}]
