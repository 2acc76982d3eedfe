"""What was measured is kept: read again, added to, refused where it does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.evaluate.log import LOG_FILE, AnswerLog, ResultLog, WindowLog
from maskpro_deploy.evaluate.scores import WindowScore

HEADER = {"kind": "perplexity", "window": 8, "reference": None}
SCORE = WindowScore(tokens=7, nll=1.25, kl=0.5, agreed=3)


@given(st.integers(0, 200))
def test_a_crash_loses_the_last_line_at_most(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = WindowLog(folder, HEADER)
    log.declare("a", {"sha256": "x"})
    for window in range(4):
        log.put("a", window, SCORE)
    log.close()
    whole = (folder / LOG_FILE).read_bytes()
    kept = whole[: max(len(whole) - cut, whole.index(b"\n") + 1)]
    (folder / LOG_FILE).write_bytes(kept)
    again = WindowLog(folder, HEADER)
    found = [again.get("a", w) for w in range(4)]
    lines = kept.count(b"\n") - 2
    assert found == [SCORE if w < lines else None for w in range(4)]
    assert (again.scores("a", 4) is None) == (lines < 4)
    again.declare("a", {"sha256": "x"})
    for window in range(4):
        if again.get("a", window) is None:
            again.put("a", window, SCORE)
    again.close()
    with WindowLog(folder, HEADER) as log:
        assert log.scores("a", 4) == [SCORE] * 4


def test_results_of_another_protocol_are_refused(tmp_path: Path) -> None:
    ResultLog(tmp_path / "out", HEADER).close()
    with pytest.raises(InputError, match="window is 8 there, 16 here"):
        ResultLog(tmp_path / "out", {**HEADER, "window": 16})
    with pytest.raises(InputError, match="stride is None there, 4 here"):
        ResultLog(tmp_path / "out", {**HEADER, "stride": 4})
    ResultLog(tmp_path / "out", {**HEADER, "window": 16}, force=True).close()
    ResultLog(tmp_path / "out", {**HEADER, "window": 16}).close()


def test_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "out", HEADER)
    log.declare("a", {"sha256": "x"})
    log.put("a", "question", [1.5, True])
    log.finish("a", [{"task": "t"}])
    log.close()
    with AnswerLog(tmp_path / "out", HEADER) as again:
        assert again.get("a", "question") == [1.5, True]
        assert again.get("b", "question") is None
        assert again.results == {"a": [{"task": "t"}]}
        with pytest.raises(InputError, match="another a: sha256 x there, y here"):
            again.declare("a", {"sha256": "y"})


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first = ResultLog(tmp_path / "out", HEADER)
    with pytest.raises(InputError, match="another run writes"):
        ResultLog(tmp_path / "out", HEADER)
    first.close()
    ResultLog(tmp_path / "out", HEADER).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds no evaluation"):
        ResultLog(tmp_path, HEADER)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is not a folder"):
        ResultLog(tmp_path / "thesis.tex", HEADER, force=True)


@pytest.mark.parametrize("content", [b"{}\n", b"[]\n", b'{"schema": "other"}\n'])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG_FILE).write_bytes(content)
    with pytest.raises(InputError, match="not the log of an evaluation"):
        ResultLog(tmp_path, HEADER)
    assert (tmp_path / LOG_FILE).read_bytes() == content


@pytest.mark.parametrize("line", [b"{broken", b"3", b"{}", b'{"model": "a"}', b'{"model": "a", "window": 1, "nll": 2}'])
def test_a_damaged_file_is_refused(tmp_path: Path, line: bytes) -> None:
    ResultLog(tmp_path / "out", HEADER).close()
    path = tmp_path / "out" / LOG_FILE
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(FormatError, match="is damaged"):
        ResultLog(tmp_path / "out", HEADER)
