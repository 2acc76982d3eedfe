"""The progress line: rate, time left, and how often it is printed."""

from __future__ import annotations

import io
import sys
import time

import pytest

from maskpro_deploy.system import progress
from maskpro_deploy.system.progress import SILENT, Meter, Meters, clock, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that a test sets."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_log_gets_a_line_every_ten_seconds_and_the_last_one(now):
    stream = io.StringIO()
    meter = Meter("learning", "tokens", stream)
    for step in range(1, 26):
        now[0] += 1
        meter.update(step * 1000, 25_000, "loss 3.2")
    meter.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("learning: 100 %  25k/25k tokens")
    assert all("loss 3.2" in line for line in lines)
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_rewritten(now):
    stream = Terminal()
    meter = Meter("learning", "tokens", stream)
    for step in range(1, 6):
        now[0] += 1
        meter.update(step, 5)
    meter.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 5


def test_rate_and_time_left_count_only_what_this_run_did(now):
    stream = io.StringIO()
    meter = Meter("learning", "tokens", stream, every_s=0)
    meter.update(5000, 10_000)
    now[0] += 10
    meter.update(6000, 10_000)
    line = stream.getvalue().splitlines()[-1]
    assert "100 tokens/s" in line
    assert "40s left" in line


def test_the_time_before_the_first_unit_is_not_taken_for_work(now):
    stream = io.StringIO()
    meter = Meter("learning", "tokens", stream, every_s=0)
    now[0] += 60  # loading and calibrating
    meter.update(100, 1000)
    now[0] += 10
    meter.update(200, 1000)
    assert "10 tokens/s" in stream.getvalue()
    assert "1m20s left" in stream.getvalue()


def test_nothing_to_do_is_done():
    stream = io.StringIO()
    Meter("x", "s", stream).update(0, 0)
    assert "100 %" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-5, "0s"), (59.4, "59s"), (60, "1m00s"), (75, "1m15s"), (3599.6, "1h00m"), (7384, "2h03m")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1234567, "1.23M"), (25_000, "25k"), (3.2e9, "3.2G")])
def test_short_numbers(value, text):
    assert progress._short(value) == text


def test_silence_says_nothing(capsys):
    SILENT.update(1, 2, "note")
    SILENT.close()
    assert capsys.readouterr() == ("", "")


def test_work_that_tells_nothing_is_shown_by_its_time():
    stream = Terminal()
    meter = Meter("describing", "s", stream, every_s=0.0)
    with waiting(meter, "transformers"):
        time.sleep(1.3)
    meter.close()
    lines = stream.getvalue().split("\r")[1:]
    assert len(lines) >= 4
    assert lines[0].endswith("describing: 0s  transformers")
    assert any(line.endswith("describing: 1s  transformers") for line in lines)
    assert lines[-1].endswith("describing: 100 %  1s  transformers\n")


def test_work_that_fails_ends_its_line_without_saying_that_it_is_done():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), waiting(Meter("describing", "s", stream), "transformers"):
        raise ValueError("no")
    assert stream.getvalue() == "describing: 0s  transformers\n"


def test_the_line_of_a_stage_ends_where_the_next_begins(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    meters = Meters()
    meters("calibrating", "weights").update(1, 2)
    meters("exporting", "bytes").update(1, 4)
    meters.close()
    first, second, rest = stream.getvalue().split("\n")
    assert "calibrating:  50 %" in first
    assert "exporting:  25 %" in second
    assert rest == ""
