"""Warnings that come too often: a few are written, the others counted, and the count is told."""

from __future__ import annotations

import logging

import pytest

from maskpro_deploy.system.throttle import Throttle, throttled


def logger_with(throttle: Throttle, name: str) -> logging.Logger:
    made = logging.getLogger(name)
    made.filters = [throttle]
    return made


def test_a_few_pass_in_a_period_and_the_next_one_tells_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = logger_with(Throttle(most=3, period_s=60, clock=lambda: now[0]), "throttle.counted")
    for i in range(1000):
        log.warning("lost %d", i)
    assert caplog.messages == ["lost 0", "lost 1", "lost 2"]
    now[0] = 59.9
    log.warning("lost %d", 1000)
    now[0] = 60.0
    log.warning("lost %d", 1001)
    log.warning("lost %d", 1002)
    assert caplog.messages[3:] == ["lost 1001 (998 more like it were left out before)", "lost 1002"]


def test_kinds_are_told_apart_and_plain_information_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    log = logger_with(Throttle(most=1), "throttle.kinds")
    caplog.set_level(logging.INFO)
    for error in (KeyError(), OSError(), KeyError()):
        log.warning("broken", exc_info=error)
    log.warning("other")
    for _ in range(3):
        log.info("said")
    assert caplog.messages == ["broken", "broken", "other", "said", "said", "said"]


def test_messages_that_clients_make_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    throttle = Throttle(most=1)
    log = logger_with(throttle, "throttle.pile")
    for i in range(10_000):
        log.warning(f"made of what a client sent: {i}")  # noqa: G004
    assert len(caplog.messages) == 65  # 64 kinds, and all others as one
    assert throttle.take_omitted() == {"other messages": 10_000 - 65}


def test_at_the_end_the_rest_is_told_and_the_logger_is_as_before(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("throttle.scope")
    with throttled("throttle.scope"):
        for _ in range(12):
            log.warning("gone")
    assert caplog.messages == ["gone"] * 5 + ["7 warnings were left out: gone"]
    for _ in range(10):
        log.warning("gone")
    assert caplog.messages.count("gone") == 15
