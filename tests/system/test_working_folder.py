"""Working folders vanish: in the end, and after a kill at the next run; those in use stay."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading

import pytest

from maskpro_deploy.errors import InputError
from maskpro_deploy.system.files import atomic_file, new_folder
from maskpro_deploy.system.working_folder import find_abandoned, remove_abandoned, working_folder

_MAKE = (
    "import os, sys, time\nfrom pathlib import Path\n"
    "from maskpro_deploy.system.files import *\nfrom maskpro_deploy.system.working_folder import *\n"
)
_WAIT = "print('there', flush=True); time.sleep(60)"


def started(code, path):
    """A process that runs `code`, on `path` as P, up to the wait."""
    command = [sys.executable, "-c", f"{_MAKE}P = Path(sys.argv[1])\n{code}", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"there\n"
    return child


def kill(child):
    child.kill()
    child.wait()
    child.stdout.close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_is_there_during_the_work_and_not_after_it(tmp_path):
    with working_folder(tmp_path, "x") as folder:
        assert names(tmp_path) == [folder.name]
        (folder / "deep").mkdir()
    assert names(tmp_path) == []


def test_a_folder_in_use_stays_and_that_of_a_killed_process_goes(tmp_path):
    child = started(f"with working_folder(P, 'x') as f:\n (f / 'half').touch(); {_WAIT}", tmp_path)
    left = names(tmp_path)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == left
    kill(child)
    assert names(tmp_path) == left
    remove_abandoned(tmp_path, "y")
    assert names(tmp_path) == left
    remove_abandoned(tmp_path, "x")
    assert names(tmp_path) == []


def test_a_lock_held_by_this_process_counts_too(tmp_path):
    with working_folder(tmp_path, "x") as folder:
        remove_abandoned(tmp_path)
        assert folder.is_dir()


@pytest.mark.parametrize("name", [".x.tmp", ".x.abcdefg.tmp", ".x.abcdefgh.tmpx", "x.abcdefgh.tmp", ".x.abcdefgh.old"])
def test_nothing_else_is_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / ".x.abcdefgh.tmp").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".y.abcdefgh.tmp").symlink_to(tmp_path / "elsewhere")
    before = names(tmp_path)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == before


def test_without_locks_nothing_is_removed_and_work_goes_on(tmp_path, monkeypatch):
    (tmp_path / ".x.abcdefgh.tmp").mkdir()

    def refused(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with working_folder(tmp_path, "x") as folder:
        remove_abandoned(tmp_path)
        assert names(tmp_path) == sorted([folder.name, ".x.abcdefgh.tmp"])
    assert names(tmp_path) == [".x.abcdefgh.tmp"]


def test_folders_that_are_made_while_others_clean_up_are_never_lost(tmp_path):
    """One thread removes what it may, without a pause; the others' folders live until they end."""
    over = threading.Event()

    def clean():
        while not over.is_set():
            remove_abandoned(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for _ in range(300):
            with working_folder(tmp_path, "x") as folder:
                (folder / "a").touch()
    finally:
        over.set()
        cleaner.join()
    assert names(tmp_path) == []


def test_a_file_written_again_removes_what_a_kill_left(tmp_path):
    target = tmp_path / "x.json"
    kill(started(f"with atomic_file(P) as t:\n t.write_text('half'); {_WAIT}", target))
    assert len(names(tmp_path)) == 1
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["x.json"]


def test_a_folder_made_again_removes_what_a_kill_left(tmp_path):
    out = tmp_path / "out"
    kill(started(f"with new_folder(P) as f:\n (f / 'half').touch(); {_WAIT}", out))
    assert len(names(tmp_path)) == 1
    with new_folder(out) as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["whole"]


def test_a_kill_between_the_two_renames_brings_the_old_folder_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    code = (
        f"def wait(self, target):\n {_WAIT}\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, target: wait(self, target) if self.name == 'new' else rename(self, target)\n"
        "with new_folder(P, force=True) as f:\n (f / 'new').touch()"
    )
    kill(started(code, out))
    assert not out.exists()
    with pytest.raises(InputError, match="--force"), new_folder(out):
        pass
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_what_is_yielded_is_locked(tmp_path):
    (tmp_path / ".x.abcdefgh.tmp").mkdir()
    for folder in find_abandoned(tmp_path):
        remove_abandoned(tmp_path)
        assert folder.is_dir()
    assert names(tmp_path) == []
