"""Which errors pause a night, and what a full disk takes away."""

import errno
import os
from types import SimpleNamespace

import pytest

from flows.night import full_disk
from tasks.data import tokenization
from tasks.errors import NightlyError, UsageError

PROFILE = (512, 64)


@pytest.fixture
def night(tmp_path):
    """What `made_room` looks at of a night that has room."""
    (tmp_path / "checkout" / ".git").mkdir(parents=True)
    return SimpleNamespace(bench=SimpleNamespace(home=tmp_path), root=tmp_path / "checkout")


@pytest.fixture
def held(tmp_path):
    return SimpleNamespace(folder=tmp_path)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        NightlyError("git refused: bad object"),
        caused(
            NightlyError("the ledger could not be written"),
            OSError(errno.EROFS, os.strerror(errno.EROFS)),
        ),
        UsageError("somebody moved a ref"),
    ],
    ids=["broken disk", "file too large", "git", "read-only", "usage"],
)
def test_an_error_that_is_not_of_a_full_disk_is_not_waited_out(night, held, error):
    assert not full_disk.made_room(night, held, error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        NightlyError("git commit-tree failed: fatal: write error: No space left on device"),
        caused(NightlyError("event 'started' could not be written"), OSError(errno.ENOSPC, "full")),
    ],
    ids=["space", "quota", "git", "ledger"],
)
def test_after_a_full_disk_that_has_room_again_the_step_is_done_once_more(night, held, error):
    assert full_disk.made_room(night, held, error)


def test_a_worktree_whose_git_folder_is_a_file_is_no_full_disk(night, held):
    (night.root / ".git").rmdir()
    (night.root / ".git").write_text("gitdir: elsewhere\n")
    assert not full_disk.made_room(night, held, NightlyError("git refused: bad object"))


def test_asking_for_room_leaves_nothing_behind(night, held, tmp_path):
    full_disk.made_room(night, held, OSError(errno.ENOSPC, "full"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkout"]


def rows(folder, *names):
    """Packed rows, each a second later than the one before."""
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"rows")
        os.utime(folder / name, (i, i))


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_profiles_own_rows_are_never_removed(tmp_path):
    rows(tmp_path, "rows_512_64.npy", "rows_512_128.npy")
    assert tokenization.prune_rows(tmp_path, [PROFILE], 0) == [tmp_path / "rows_512_128.npy"]
    assert left(tmp_path) == ["rows_512_64.npy"]


def test_the_latest_rows_of_candidates_stay(tmp_path):
    rows(tmp_path, "rows_512_32.npy", "rows_512_96.npy", "rows_512_128.npy", "rows_512_64.npy")
    tokenization.prune_rows(tmp_path, [PROFILE], 2)
    assert left(tmp_path) == ["rows_512_128.npy", "rows_512_64.npy", "rows_512_96.npy"]


def test_rows_that_a_run_has_just_asked_for_stay(tmp_path):
    rows(tmp_path, "rows_512_32.npy", "rows_512_96.npy")
    tokenization.pack_if_missing(tmp_path, 512, 32)
    assert tokenization.prune_rows(tmp_path, [PROFILE], 0) == [tmp_path / "rows_512_96.npy"]


def test_nothing_but_rows_is_removed(tmp_path):
    rows(tmp_path, "tokens_512_0.bin", "meta.json", "rows_512_32.npy")
    tokenization.prune_rows(tmp_path, [PROFILE], 0)
    assert left(tmp_path) == ["meta.json", "tokens_512_0.bin"]


def test_a_folder_that_is_gone_has_no_rows(tmp_path):
    assert tokenization.prune_rows(tmp_path / "gone", [PROFILE], 0) == []
