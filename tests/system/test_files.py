"""Files and folders appear whole or not at all; the disk is really full where a test says so (`/dev/full`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskpro_deploy.errors import DiskFullError, FormatError, InputError
from maskpro_deploy.system.files import (
    atomic_file,
    check_free,
    copy_file,
    disk_errors,
    exclusive,
    new_folder,
    read_json,
    sha256_file,
    write_json,
)

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


def write_half(target, error):
    with atomic_file(target) as temporary:
        temporary.write_text("half of the ne")
        raise error


def make_half(out, error, *, force=False):
    with new_folder(out, force=force) as folder:
        (folder / "new").write_text("2")
        raise error


def fill_disk(temporary):
    """Write to a device that is always full."""
    temporary.symlink_to("/dev/full")
    temporary.write_text("new")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


class TestAtomicFile:
    def test_success_replaces_the_old_file(self, tmp_path):
        target = tmp_path / "deep" / "x.txt"
        for text in ("old", "new"):
            with atomic_file(target) as temporary:
                temporary.write_text(text)
        assert target.read_text() == "new"
        assert names(target.parent) == ["x.txt"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_failure_leaves_the_old_file(self, tmp_path, error):
        target = tmp_path / "x.txt"
        target.write_text("old")
        with pytest.raises(error):
            write_half(target, error)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["x.txt"]

    @needs_full
    def test_a_full_disk_leaves_the_old_file_and_says_so(self, tmp_path):
        target = tmp_path / "x.txt"
        target.write_text("old")
        with pytest.raises(DiskFullError, match=r"no space left while writing .*x\.txt"), atomic_file(target) as temporary:
            fill_disk(temporary)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["x.txt"]

    def test_a_file_is_as_readable_as_the_umask_says(self, tmp_path):
        before = os.umask(0o027)
        try:
            with atomic_file(tmp_path / "x") as temporary:
                temporary.touch(mode=0o600)
        finally:
            os.umask(before)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640

    def test_a_killed_process_leaves_the_old_file(self, tmp_path):
        target = tmp_path / "x.txt"
        target.write_text("old")
        code = (
            "import sys, time; from pathlib import Path; from maskpro_deploy.system.files import atomic_file\n"
            "with atomic_file(Path(sys.argv[1])) as t:\n"
            "    t.write_text('half'); print('writing', flush=True); time.sleep(60)"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"writing\n"
        child.kill()
        child.wait()
        child.stdout.close()
        assert target.read_text() == "old"


class TestNewFolder:
    def test_success_makes_the_folder_at_once(self, tmp_path):
        out = tmp_path / "a" / "out"
        with new_folder(out) as folder:
            (folder / "x").write_text("1")
            assert not out.exists()
        assert names(out) == ["x"]
        assert names(out.parent) == ["out"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("force", [False, True])
    def test_failure_leaves_the_old_state(self, tmp_path, error, force):
        out = tmp_path / "out"
        if force:
            out.mkdir()
            (out / "old").write_text("1")
        with pytest.raises(error):
            make_half(out, error, force=force)
        assert names(tmp_path) == (["out"] if force else [])
        assert not force or names(out) == ["old"]

    @needs_full
    def test_a_full_disk_leaves_nothing(self, tmp_path):
        with pytest.raises(DiskFullError), new_folder(tmp_path / "out") as folder:
            fill_disk(folder / "model")
        assert names(tmp_path) == []

    def test_an_occupied_folder_is_kept_unless_forced(self, tmp_path):
        (tmp_path / "old").write_text("1")
        with pytest.raises(InputError, match="--force"), new_folder(tmp_path):
            pass
        assert names(tmp_path) == ["old"]
        with new_folder(tmp_path, force=True) as folder:
            (folder / "new").touch()
        assert names(tmp_path) == ["new"]

    def test_an_empty_folder_may_exist(self, tmp_path):
        (tmp_path / "out").mkdir()
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").touch()
        assert names(tmp_path / "out") == ["x"]

    def test_a_file_in_its_place_is_occupied(self, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(InputError, match="exists already"):
            check_free(tmp_path / "out", force=False)
        with new_folder(tmp_path / "out", force=True) as folder:
            (folder / "x").touch()
        assert (tmp_path / "out").is_dir()

    def test_permissions_follow_the_umask(self, tmp_path):
        before = os.umask(0o022)
        try:
            with new_folder(tmp_path / "out") as folder:
                (folder / "private").touch(mode=0o600)
                (folder / "program").touch(mode=0o700)
        finally:
            os.umask(before)
        modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()}
        assert modes == {"private": 0o644, "program": 0o755}
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


class TestDiskErrors:
    def test_a_place_that_may_not_be_written_is_an_input_error(self):
        with pytest.raises(InputError, match="may write to"), disk_errors(Path("x")):
            raise PermissionError(13, "Permission denied")

    def test_errors_of_libraries_that_hide_the_system_error_in_text(self):
        with pytest.raises(DiskFullError), disk_errors(Path("x")):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("x"), RuntimeError("(os error 5)")])
    def test_other_errors_pass_unchanged(self, error):
        with pytest.raises(type(error)) as caught, disk_errors(Path("x")):
            raise error
        assert caught.value is error


class TestJson:
    def test_round_trip_is_sorted_and_readable(self, tmp_path):
        value = {"b": [1, 2.5, None], "a": {"ä": "ß"}}
        write_json(tmp_path / "x.json", value)
        assert read_json(tmp_path / "x.json") == value
        text = (tmp_path / "x.json").read_text(encoding="utf-8")
        assert text.index('"a"') < text.index('"b"')
        assert "ä" in text

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
    def test_what_is_no_json_is_refused_and_nothing_written(self, tmp_path, bad):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "x.json", {"a": bad})
        assert names(tmp_path) == []

    @pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": }'])
    def test_what_is_no_object_is_a_format_error(self, tmp_path, raw):
        (tmp_path / "x.json").write_bytes(raw)
        with pytest.raises(FormatError, match=r"x\.json"):
            read_json(tmp_path / "x.json")

    def test_a_missing_file_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            read_json(tmp_path / "x.json")

    def test_deep_nesting_is_a_format_error(self, tmp_path):
        (tmp_path / "x.json").write_text('{"a":' + "[" * 100_000)
        with pytest.raises(FormatError):
            read_json(tmp_path / "x.json")

    def test_a_folder_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError):
            read_json(tmp_path)


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_copies_stand_alone(tmp_path):
    (tmp_path / "x").write_text("1")
    (tmp_path / "link").symlink_to("x")
    copy_file(tmp_path / "link", tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep" / "copy").is_symlink()
    assert json.loads((tmp_path / "deep" / "copy").read_text()) == 1


def test_written_files_are_new_ones_so_that_open_readers_keep_the_old(tmp_path):
    target = tmp_path / "x"
    write_json(target, {"a": 1})
    with target.open() as reader:
        write_json(target, {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert time.time() - target.stat().st_mtime < 3600


def test_one_process_at_a_time_holds_a_folders_lock(tmp_path):
    """Several add one to a number that they read first: none is lost, and no lock file stays."""
    (tmp_path / "number").write_text("0")
    code = (
        "import pathlib, sys, time\n"
        "from maskpro_deploy.system.files import exclusive\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    with exclusive(folder):\n"
        "        n = int((folder / 'number').read_text())\n"
        "        time.sleep(0.001)\n"
        "        (folder / 'number').write_text(str(n + 1))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "60"
    assert [p.name for p in tmp_path.iterdir()] == ["number"]


def test_a_lock_is_given_back_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), exclusive(tmp_path):
            raise ValueError("x")
