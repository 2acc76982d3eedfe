"""Products on a GPU: everything but the CUDA call itself runs here, on torch's CPU products and on a stand-in for cuSPARSELt."""

from __future__ import annotations

import pytest
from gpu_torch import GpuTorch, Packed, Refusing, Same, WallClock, Wrong, make_int8_ways
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.products import measure
from maskpro_deploy.bench.products.measure import (
    ModelProducts,
    explain_nothing_sparse,
    find_break_evens,
    measure_cells,
    measure_product,
    plan_cells,
    sum_whole_model,
)
from maskpro_deploy.bench.products.timing import judge_samples, race_arms
from maskpro_deploy.bench.products.ways import BACKENDS, DTYPES, cusparselt, draw_operands, find_working_ways, linear
from maskpro_deploy.bench.stats import find_break_even
from maskpro_deploy.system.extras import missing

with_torch = pytest.mark.skipif(bool(missing("learn")), reason="torch is not installed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_a_race_gives_every_arm_the_same_samples_in_mirrored_order():
    order = []
    arms = {name: lambda name=name: order.append(name) for name in ("dense", "a", "b")}
    samples = race_arms(arms, WallClock(), 3)
    assert {name: [len(block) for block in blocks] for name, blocks in samples.items()} == {name: [2, 2, 2] for name in arms}
    assert order[:6] == ["dense", "a", "b", "b", "a", "dense"]
    assert order[6:12] == ["b", "a", "dense", "dense", "a", "b"]


def test_a_slower_arm_is_found_slower():
    class Simulated:
        def time(self, work):
            value = work()
            return lambda: value

    noise = iter([1.0, 1.01, 0.99, 1.005] * 1000)
    arms = {"dense": lambda: next(noise), "fast": lambda: 0.5 * next(noise), "slow": lambda: 1.5 * next(noise)}
    found = judge_samples(race_arms(arms, Simulated(), 12))
    assert {name: r["verdict"] for name, r in found["against_dense"].items()} == {"fast": stats.FASTER, "slow": stats.SLOWER}
    assert found["against_dense"]["fast"]["speedup"] == pytest.approx(2.0, rel=0.05)


@given(st.dictionaries(st.integers(1, 4096), st.sampled_from([stats.FASTER, stats.SLOWER, stats.NO_DIFFERENCE])))
def test_from_the_break_even_on_every_size_is_faster_and_the_one_below_is_not(verdicts):
    found = find_break_even(verdicts)
    if found is None:
        assert not verdicts or verdicts[max(verdicts)] != stats.FASTER
    else:
        assert all(v == stats.FASTER for m, v in verdicts.items() if m >= found)
        below = [m for m in verdicts if m < found]
        assert not below or verdicts[max(below)] != stats.FASTER


def test_break_evens_are_told_by_dtype_shape_and_backend():
    def cell(dtype, m, verdict):
        return {"dtype": dtype, "m": m, "n": 8, "k": 16, "against_dense": {"cutlass": {"verdict": verdict}}}

    cells = [cell("float16", 1, stats.SLOWER), cell("float16", 64, stats.FASTER), cell("bfloat16", 64, stats.SLOWER)]
    found = {(b["dtype"], b["backend"]): (b["from_m"], b["measured_m"]) for b in find_break_evens(cells)}
    assert found == {("float16", "cutlass"): (64, [1, 64]), ("bfloat16", "cutlass"): (None, [64])}


@given(st.sampled_from([("dense", "a"), ("a", "b")]))
def test_without_a_dense_arm_nothing_is_compared(names):
    samples = {name: [[1.0, 1.0]] * 12 for name in names}
    assert set(judge_samples(samples)["against_dense"]) == ({"a"} if "dense" in names else set())


# -- ways -----------------------------------------------------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_has_two_of_every_four_and_the_type_asked_for(torch, dtype):
    weight, x = draw_operands(torch, getattr(torch, dtype), (3, 32, 64), "cpu")
    assert weight.dtype == x.dtype == getattr(torch, dtype)
    assert weight.shape == (32, 64)
    assert x.shape == (3, 64)
    assert int((weight.view(-1, 4) != 0).sum(dim=1).max()) == 2


@with_torch
@pytest.mark.parametrize(("m", "dense_rows", "sparse_rows"), [(1, 32, 16), (16, 32, 16), (17, 17, 32), (64, 64, 64)])
def test_8_bit_products_are_padded_as_little_as_the_library_takes(torch, m, dense_rows, sparse_rows):
    library = GpuTorch(torch, {(torch.int32, True)})
    weight, x = draw_operands(torch, torch.int8, (m, 32, 64), "cpu")
    for name, rows in (("dense", dense_rows), ("cusparselt", sparse_rows), ("cusparselt-tuned", sparse_rows)):
        product = make_int8_ways(library)[name](weight, x)
        assert (product.rows, product.output) == (rows, "int32")
        assert torch.equal(product.run(), x.int() @ weight.int().t())
    assert library.multiplied[-1] == dense_rows  # padded within the call, not before
    assert library.algorithms[0] == {}
    assert library.algorithms[-1] == {"alg_id": sparse_rows, "split_k": 2, "split_k_mode": 1}


@with_torch
def test_8_bit_sums_come_in_the_form_that_the_library_has(torch):
    weight, x = draw_operands(torch, torch.int8, (16, 32, 64), "cpu")
    expected = (x.int() @ weight.int().t()).float()
    for turned, output in ((False, "int32, column by column"), (True, "bfloat16")):
        dtype = torch.bfloat16 if turned else torch.int32
        product = make_int8_ways(GpuTorch(torch, {(dtype, turned)}))["cusparselt"](weight, x)
        assert product.output == output
        assert float((product.run().float() - expected).abs().max()) <= 0.005 * float(expected.abs().max())
    with pytest.raises(RuntimeError, match=r"not supported for torch\.int32"):
        make_int8_ways(GpuTorch(torch, set()))["cusparselt"](weight, x)


@with_torch
def test_what_does_not_work_here_is_refused_with_its_reason_and_the_rest_is_left(torch):
    ways, refused = find_working_ways(torch, "cpu")
    assert {dtype: list(arms) for dtype, arms in ways.items()} == {d: ["dense"] for d in DTYPES}
    assert set(refused) == {"cusparselt", "cusparselt-tuned", "cutlass", "int8 cusparselt", "int8 cusparselt-tuned"}
    assert all("CUDA" in why for why in refused.values())
    reason = explain_nothing_sparse(ways, refused)
    assert "torch's int8 cusparselt: " in reason
    assert explain_nothing_sparse({**ways, "int8": make_int8_ways(torch)}, refused) is None


@with_torch
def test_torch_has_the_names_that_are_used_on_a_gpu_only(torch):
    for name in BACKENDS.values():
        assert callable(getattr(torch.sparse, name).from_dense)
    assert torch.cuda.is_bf16_supported(including_emulation=False) in (True, False)
    for name in ("mem_get_info", "max_memory_allocated", "reset_peak_memory_stats", "synchronize", "Event"):
        assert hasattr(torch.cuda, name)
    packed, x = (torch.zeros(*shape, dtype=torch.int8, device="meta") for shape in ((32, 40), (16, 64)))
    for turned in (True, False):
        out = torch._cslt_sparse_mm(packed, x.t(), out_dtype=torch.int32, transpose_result=turned)
        assert out.shape == ((16, 32) if turned else (32, 16))


# -- measuring ------------------------------------------------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_product_is_checked_and_timed_on_every_arm_that_takes_it(torch, dtype):
    ways = {name: linear(torch, kind.from_dense) for name, kind in (("dense", Same), ("same", Same), ("no", Refusing))}
    found = measure_product(torch, getattr(torch, dtype), (8, 32, 64), ways, WallClock())
    assert set(found["median_ms"]) == set(found["launch_ms"]) == {"dense", "same"}
    assert set(found["against_dense"]) == {"same"}
    assert found["refused"] == {"no": "not this shape"}
    assert (found["wrong"], found["rows"], found["output"]) == ("", {}, {"dense": dtype, "same": dtype})


@with_torch
def test_8_bit_products_are_measured_and_say_how_they_were_padded(torch):
    library = GpuTorch(torch, {(torch.int32, True)})
    found = measure_product(torch, torch.int8, (1, 32, 64), make_int8_ways(library), WallClock())
    assert set(found["median_ms"]) == set(make_int8_ways(library))
    assert found["rows"] == {"dense": 32, "cusparselt": 16, "cusparselt-tuned": 16}
    assert set(found["output"].values()) == {"int32"}
    assert found["wrong"] == ""


@with_torch
def test_16_bit_products_are_tuned_too(torch):
    library = GpuTorch(torch, {(None, True)})
    ways = {"dense": linear(torch), "cusparselt-tuned": cusparselt(library, Packed, tuned=True)}
    found = measure_product(torch, torch.float16, (8, 32, 64), ways, WallClock())
    assert set(found["against_dense"]) == {"cusparselt-tuned"}
    assert found["rows"] == {"cusparselt-tuned": 16}
    assert (found["output"]["cusparselt-tuned"], found["wrong"]) == ("float16", "")


@with_torch
def test_a_wrong_product_is_found_and_not_timed(torch):
    ways = {"dense": linear(torch), "wrong": linear(torch, Wrong.from_dense)}
    found = measure_product(torch, torch.float32, (8, 32, 64), ways, WallClock())
    assert "wrong 8 x 64 x 32: off by 0.1" in found["wrong"]
    assert set(found["median_ms"]) == {"dense"}
    only = measure_product(torch, torch.float32, (8, 32, 64), {"wrong": ways["wrong"]}, WallClock())
    assert "median_ms" not in only


class Lost(WallClock):
    """A clock whose device is lost while some product runs."""

    device = "cpu"

    def __init__(self, at):
        self._at, self._timed = at, 0

    def time(self, work):
        self._timed += 1
        if self._timed == self._at:
            raise RuntimeError("CUDA error: out of memory\nand more")
        return super().time(work)


@with_torch
def test_a_product_that_fails_is_named_and_the_others_are_measured(torch, monkeypatch):
    ways = {"float16": {"dense": linear(torch), "same": linear(torch)}, "int8": make_int8_ways(torch)}
    keys = plan_cells(ways, [(32, 64)], (16,))
    assert keys == [("float16", 16, 32, 64), ("int8", 16, 32, 64)]
    cells = list(measure_cells(torch, keys, ways, Lost(1)))
    assert [c["failed"] for c in cells] == ["float16 16 x 64 x 32: CUDA error: out of memory", ""]
    assert cells[0]["median_ms"] == {}
    assert set(cells[1]["median_ms"]) == {"dense"}
    assert "CUDA" in cells[1]["refused"]["cusparselt"]  # this torch has no cuSPARSELt
    assert sum_whole_model([{**c, "count": 1} for c in cells], 1)[0]["dtype"] == "int8"
    monkeypatch.setattr(measure, "_still_works", lambda torch, device: False)  # nothing runs after the error
    assert len(list(measure_cells(torch, keys, ways, Lost(1)))) == 1


@with_torch
def test_products_of_a_model_are_kept_one_by_one_and_not_measured_again(torch):
    library = GpuTorch(torch, {(torch.int32, True)})
    ways = {"float16": {"dense": linear(torch), "same": linear(torch)}, "int8": make_int8_ways(library)}
    products, states = {(64, 32): 3, (32, 64): 1}, []

    def measured(**options):
        model = ModelProducts(products=products, tokens=(1, 16), **options)
        return model.measure(torch, ways, WallClock(), {"device": "a GPU", "refused": {}})

    cut = measured(budget_s=-1.0, save=lambda found: states.append(len(found["cells"])))
    assert states == [1]
    assert (len(cut["cells"]), cut["planned"], cut["whole_model"]) == (1, 8, [])
    whole = measured(budget_s=60.0, earlier=cut["cells"], save=lambda found: states.append(len(found["cells"])))
    assert states == [1, *range(2, 9)]
    assert whole["cells"][0] == cut["cells"][0]
    assert [(t["dtype"], t["m"]) for t in whole["whole_model"]] == [("float16", 1), ("int8", 1), ("float16", 16), ("int8", 16)]
    int8 = next(t for t in whole["whole_model"] if t["dtype"] == "int8")
    each = {(c["k"], c["n"]): c["median_ms"] for c in whole["cells"] if (c["dtype"], c["m"]) == ("int8", 1)}
    assert int8["ms"]["cusparselt"] == pytest.approx(3 * each[64, 32]["cusparselt"] + each[32, 64]["cusparselt"])
