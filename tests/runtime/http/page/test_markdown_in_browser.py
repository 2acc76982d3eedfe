"""Markdown on the chat page, in a headless Chromium: what it becomes, and that no text is ever read as HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]

RENDER = """async (text) => {
  const { Markdown } = await import("/ui/markdown.js");
  const target = document.createElement("div");
  const shown = new Markdown(target);
  for (const part of Array.isArray(text) ? text : [text]) shown.update(part);
  return new XMLSerializer().serializeToString(target).replaceAll(' xmlns="http://www.w3.org/1999/xhtml"', "").slice(5, -6);
}"""


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br />two</p><p>three</p>"),
        ("**bold** *it* `a*b*` ~~no~~", "<p><strong>bold</strong> <em>it</em> <code>a*b*</code> <s>no</s></p>"),
        ("2 * 3 * 4 snake_case_name", "<p>2 * 3 * 4 snake_case_name</p>"),
        ("# A\n### B", "<h3>A</h3><h5>B</h5>"),
        ("- a\n- b\n  - c\n\n1. x\n2. y",
         '<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start="1"><li>x</li><li>y</li></ol>'),
        ("> a\n> b", "<blockquote><p>a<br />b</p></blockquote>"),
        ("[x](https://a.example/b) [y](javascript:alert) ![z](http://a.example/i.png)",
         '<p><a href="https://a.example/b" target="_blank" rel="noopener noreferrer nofollow">x</a> [y](javascript:alert) '
         '<a href="http://a.example/i.png" target="_blank" rel="noopener noreferrer nofollow">z</a></p>'),
        ("<img src=x onerror=alert(1)><b>", "<p>&lt;img src=x onerror=alert(1)&gt;&lt;b&gt;</p>"),
        ("| a | b |\n|---|---|\n| 1 | **2** |",
         '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
         "<tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"),
        (r"\*a\*", "<p>*a*</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_elements_and_text_stays_text(open_page: Open, url: str, text: str, html: str) -> None:
    page, _ = open_page(url)
    assert page.evaluate(RENDER, text) == html


def test_markdown_that_grows_looks_as_if_it_came_at_once(open_page: Open, url: str) -> None:
    text = (
        "Some *text*:\n\n- one\n- two\n  more\n\n```py\nif a < b:\n\n    print('x')\n```\n> quoted\n\n"
        "| a | b |\n|--|--|\n| 1 | 2 |\n\n1. x\n\n   y\n2. z\n***\nend"
    )
    page, _ = open_page(url)
    whole = page.evaluate(RENDER, text)
    assert page.evaluate(RENDER, [text[:end] for end in range(1, len(text) + 1)]) == whole
    assert "<pre" in whole
    assert "if a &lt; b:\n\n    print('x')</code>" in whole
    assert "<li>x<p>y</p></li><li>z</li></ol><hr /><p>end</p>" in whole


def test_long_and_hostile_markdown_takes_no_time(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    signs = ("> " * 3000, "*" * 20_000, "`a``" * 5000, "[" * 10_000, "**a " * 5000, "_a*b" * 5000, "- " * 5000)
    timed = f"async (text) => {{ const t = performance.now(); await ({RENDER})(text); return performance.now() - t; }}"
    for text in (*signs, "|" * 9000 + "\n|-|"):
        assert page.evaluate(timed, text) < 2000, text[:10]
