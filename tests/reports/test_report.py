from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from simulated import BROKEN_SELF_TEST

from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.errors import ConfigError, MissingExtraError
from maskpro_deploy.reports import plots
from maskpro_deploy.reports.benchmarks import build_sweep_page
from maskpro_deploy.reports.blocks import (
    CodeSection,
    ListSection,
    PlotSection,
    Report,
    Section,
    TableSection,
    render,
    write,
)
from maskpro_deploy.system import extras

EVIL = "<script>alert('1')</script>\"&"
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Balanced(HTMLParser):
    """Checks that tags close in order, and collects what a page refers to and shows."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.shown = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def evil_sections() -> list[Section]:
    return [
        ListSection(title=EVIL, points=[EVIL], warning=True),
        TableSection(title=EVIL, header=[EVIL, "n"], rows=[[EVIL, "1"]], note=EVIL),
        TableSection(title=EVIL, rows=[[EVIL, EVIL]]),
        CodeSection(title=EVIL, code=EVIL, note=EVIL),
        PlotSection(title=EVIL, plot=plots.draw_distribution({EVIL: [1.0]}, x_label=EVIL, description=EVIL), caption=EVIL),
    ]


def test_everything_a_caller_gives_is_escaped() -> None:
    page = parsed(render(Report(title=EVIL, headline=EVIL, subtitle=EVIL, sections=evil_sections())))
    assert "script" not in page.tags
    assert page.shown.count(EVIL) >= 15


def test_a_page_needs_nothing_but_itself(latency_result: BenchResult) -> None:
    html = render(build_sweep_page(latency_result))
    found = parsed(html)
    assert all(reference.startswith("#") for reference in found.references)
    assert not found.tags & {"script", "link", "iframe", "img"}
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_a_benchmark_page_has_figures_verdicts_plots_and_environment(
    latency_result: BenchResult, throughput_result: BenchResult
) -> None:
    for result in (latency_result, throughput_result):
        found = parsed(render(build_sweep_page(result)))
        for text in ("Measured", "Verdicts", "How to read this", "Environment", "How to reproduce", "cpu model", "sparse"):
            assert text in found.shown
        assert "svg" in found.tags


def test_an_invalid_run_says_so_first_and_shows_no_comparison(latency_result: BenchResult) -> None:
    broken = dataclasses.replace(latency_result, self_test=BROKEN_SELF_TEST)
    html = render(build_sweep_page(broken))
    assert 'class="headline bad"' in html
    assert "the speed of" not in html
    assert html.index("Why this run is invalid") < html.index("Measured")


def test_a_run_without_samples_still_makes_a_page(latency_result: BenchResult) -> None:
    cases = []
    for case in latency_result.cases:
        empty = dataclasses.replace(case.measurement, samples={"sparse": [], "dense": []}, invalid="sparse failed: broken")
        cases.append(dataclasses.replace(case, measurement=empty))
    found = parsed(render(build_sweep_page(dataclasses.replace(latency_result, cases=tuple(cases)))))
    assert "sparse failed: broken" in found.shown
    assert "svg" not in found.tags


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    table = TableSection(title="t", header=("model", "ms", "mixed"), rows=[("dense", "1.5", "2"), ("sparse", "-", "two")])
    assert table.numeric == [False, True, False]
    html = render(Report(title="t", headline="h", sections=[table]))
    assert '<td class="number">1.5</td>' in html
    assert "<td>dense</td>" in html


def test_a_table_of_uneven_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="different lengths"):
        TableSection(title="t", header=("a", "b"), rows=[("1",)])


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    write(Report(title="t", headline="h \ud800", sections=[]), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[report\]"):
        render(Report(title="t", headline="h", sections=[]))
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[report\]"):
        plots.draw_distribution({"a": [1.0]}, x_label="x", description="d")
