"""Profiles: what is written, what a model allows, and shapes that fit one another."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters import EngineConfig
from maskpro_deploy.exporters.engines.compare import points_for
from maskpro_deploy.exporters.engines.profiles import Bucket, buckets_for, parse_buckets, profiles
from maskpro_deploy.manifest import Graph, Manifest

STATIC = Graph(file="model_static.onnx", form="static", opset=24, dtype="fp16", length=64)


def test_buckets_are_read_in_order():
    found = parse_buckets("prefill:1x128,1x512,4x512 decode:1,4/8/16")
    assert [b.name for b in found] == ["prefill:1x128", "prefill:1x512", "prefill:4x512", "decode:1", "decode:4/8/16"]
    assert (found[1].least, found[1].best, found[1].most) == ((1, 1), (1, 512), (1, 512))
    assert (found[4].least, found[4].best, found[4].most) == ((4, 1), (8, 1), (16, 1))


sizes = st.integers(1, 99)


@given(st.sampled_from(["prefill", "decode", "mixed"]), st.lists(st.tuples(sizes, sizes), min_size=3, max_size=3))
def test_a_bucket_is_read_as_it_is_written(kind, three):
    batches, tokens = sorted(b for b, _ in three), sorted(1 if kind == "decode" else s for _, s in three)
    bucket = Bucket(kind=kind, **dict(zip(("least", "best", "most"), zip(batches, tokens, strict=True), strict=True)))
    assert parse_buckets(bucket.name) == (bucket,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no profile"),
        ("prefill", "'prefill' is not a group"),
        ("train:1x2", "'train:1x2' is not a group"),
        ("prefill:4", "'4' is not a size of prefill"),
        ("decode:4x1", "'4x1' is not a size of decode"),
        ("decode:", "'' is not a size"),
        ("decode:-1", "'-1' is not a size"),
        ("decode:0", "sizes begin at 1"),
        ("prefill:1x0", "sizes begin at 1"),
        ("decode:1/8", "one size, or MIN/OPT/MAX"),
        ("decode:8/4/16", "decode:8/4/16 is out of order"),
        ("prefill:1x8/1x4/2x8", "out of order"),
        ("decode:8,4", "decode:4 would never be taken, decode:8 before it"),
        ("prefill:1x512,1x512", "would never be taken"),
    ],
)
def test_what_is_no_profile_is_named_in_one_line_or_two(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_buckets(text)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 257}, "--max-length 257"),
        ({"max_length": 64, "max_prefill": 65}, "--max-prefill 65"),
        ({"max_length": 64, "profiles": "prefill:1x65"}, "65 new tokens are more than a sequence of 64"),
    ],
)
def test_bounds_beyond_the_model_are_refused(half_bundle, settings, message):
    with pytest.raises(ConfigError, match=message):
        profiles(Manifest.load(half_bundle), EngineConfig(**settings))


def test_a_fixed_cache_has_its_own_length(half_bundle):
    manifest = Manifest.load(half_bundle)
    with pytest.raises(ConfigError, match="has 64 slots"):
        profiles(manifest, EngineConfig(max_length=128), STATIC)
    prefill, decode = profiles(manifest, EngineConfig(max_batch=2), STATIC)
    assert prefill["input_ids"] == ((1, 1), (1, 64), (2, 64))
    assert decode["input_ids"] == ((1, 1), (2, 1), (2, 1))
    assert decode["write_indices"] == ((1,), (2,), (2,))
    assert set(prefill) == {"input_ids", "position_ids", "write_indices"} | {
        f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")
    }
    assert prefill["past_key_values.1.value"] == ((1, 2, 64, 8), (1, 2, 64, 8), (2, 2, 64, 8))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_length": 2},
        {"max_length": 100, "max_prefill": 7, "max_batch": 3},
        {"max_length": 100, "profiles": "prefill:1x16,4x100 decode:1,2/4/8"},
        {"profiles": "mixed:4x32"},
    ],
)
def test_profiles_are_ordered_and_their_shapes_fit_one_another(half_bundle, settings):
    for profile in profiles(Manifest.load(half_bundle), EngineConfig(**settings)):
        for at in range(3):
            (batch, new), (_, total) = profile["input_ids"][at], profile["attention_mask"][at]
            assert profile["past_key_values.1.value"][at] == (batch, 2, total - new, 8)
            if "mixed" not in settings.get("profiles", ""):
                assert total <= settings.get("max_length", 256)
        for least, best, most in profile.values():
            assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))


def test_every_call_up_to_the_longest_sequence_fits_a_profile(half_bundle):
    """A prompt of any length, read whole, and every token of the answer."""
    manifest = Manifest.load(half_bundle)
    for text in ("prefill:8x64 decode:8", "mixed:8x64"):
        built = profiles(manifest, EngineConfig(max_length=64, profiles=text))
        for past, new in [(0, n) for n in range(1, 65)] + [(p, 1) for p in range(1, 64)]:
            assert any(
                p["input_ids"][0][1] <= new <= p["input_ids"][2][1]
                and p["past_key_values.0.key"][0][2] <= past <= p["past_key_values.0.key"][2][2]
                for p in built
            ), (text, past, new)


def test_points_lie_in_their_profiles_and_the_largest_prefill_comes_first(half_bundle):
    manifest = Manifest.load(half_bundle)
    config = EngineConfig(max_length=128, profiles="prefill:1x32,8x64 decode:2,8")
    for graph in (manifest.graph, STATIC):
        config_of = config if graph.length is None else dataclasses.replace(config, max_length=None)
        buckets, length = buckets_for(graph, manifest.model, config_of)
        built = profiles(manifest, config_of, graph)
        points = points_for(graph, manifest.model, buckets, length)
        assert (points[0].kind, points[0].batch, points[0].new) == ("prefill", 8, 64)
        assert len({p.name for p in points}) == len(points)
        for point in points:
            for name, shape in point.shapes.items():
                least, _, most = built[point.profile][name]
                assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), (point.name, name)
