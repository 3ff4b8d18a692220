"""A folder is published whole, or there is no trace of it."""

import errno
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import heed.export.atomic_folder
from heed.export.atomic_folder import WriteError, atomic_folder, discard_partial_folder


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(params=["swapped", "in two steps"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in two steps":
        monkeypatch.setattr(heed.export.atomic_folder, "_swap", lambda *_: False)


def write(out: Path, error: BaseException | None = None) -> None:
    with atomic_folder(out, force=True) as folder:
        (folder / "new").write_text("new")
        if error:
            raise error


@pytest.mark.usefixtures("_either_way")
def test_what_is_there_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    write(tmp_path / "out")
    assert everything_in(tmp_path) == ["out", "out/new"]


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), SystemExit()])
def test_what_is_there_stays_after_an_error(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(type(error)):
        write(tmp_path / "out", error)
    assert everything_in(tmp_path) == ["out", "out/old"]


def test_a_replacement_is_never_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapping needs no rename, between two of which there would be nothing."""
    (tmp_path / "out").mkdir()
    if not heed.export.atomic_folder._swap(tmp_path / "out", tmp_path / "out"):
        pytest.skip("nothing swaps folders here")

    def forbidden(*_: object) -> Path:
        raise AssertionError("renamed")

    monkeypatch.setattr(Path, "rename", forbidden)
    write(tmp_path / "out")
    assert everything_in(tmp_path) == ["out", "out/new"]


def test_parent_folders_that_were_made_go_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="why"):
        write(tmp_path / "mine/deep/er/out", ValueError("why"))
    assert everything_in(tmp_path) == ["mine"]


def test_parent_folders_that_somebody_else_uses_by_now_stay(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "deep/er/out"):
            (tmp_path / "deep/theirs").touch()
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert everything_in(tmp_path) == ["deep", "deep/theirs"]


def test_discarding_removes_what_is_not_published_and_nothing_else(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep/out") as folder:
        (folder / "half").touch()
        assert discard_partial_folder()
        assert discard_partial_folder()  # a second signal
        assert everything_in(tmp_path) == []
        folder.mkdir(parents=True)
    assert not discard_partial_folder()  # too late
    assert everything_in(tmp_path) == ["deep", "deep/out"]


# Others who write the same


def test_what_another_process_of_this_number_is_writing_is_left_alone(tmp_path: Path) -> None:
    """In another container, say: on one volume there may be two of a number."""
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()
    (tmp_path / f".out.partial-{os.getpid()}/theirs").touch()
    theirs = everything_in(tmp_path)
    with pytest.raises(ValueError, match="why"):
        write(tmp_path / "out", ValueError("why"))
    assert everything_in(tmp_path) == theirs
    write(tmp_path / "out")
    assert everything_in(tmp_path) == [*theirs, "out", "out/new"]


def test_a_folder_that_was_not_made_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "taken")
    (tmp_path / ".out.partial-taken").mkdir()
    with pytest.raises(WriteError, match="out was not written: File exists"):
        write(tmp_path / "out")
    assert everything_in(tmp_path) == [".out.partial-taken"]


def test_what_came_to_be_there_meanwhile_is_replaced_only_by_force(tmp_path: Path) -> None:
    def export_twice(force: bool) -> None:
        with atomic_folder(tmp_path / "out", force) as folder:
            (folder / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out/theirs").touch()

    with pytest.raises(WriteError, match="out was not written: somebody else wrote it meanwhile; --force replaces it"):
        export_twice(force=False)
    assert everything_in(tmp_path) == ["out", "out/theirs"]
    (tmp_path / "out/theirs").unlink()
    (tmp_path / "out").rmdir()
    export_twice(force=True)
    assert everything_in(tmp_path) == ["out", "out/mine"]


def test_others_may_read_it_as_any_folder(tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode


# What the system refuses


def test_a_full_disk_is_told_whoever_writes_how_they_may(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"out was not written: the disk is full$"):
        write(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert everything_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_indeed_is_told(small_disk: Path) -> None:
    with pytest.raises(WriteError, match="the disk is full"), atomic_folder(small_disk / "deep/out") as folder:
        (folder / "large").write_bytes(bytes(3 << 20))
    assert everything_in(small_disk) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(WriteError, match=r"place/out was not written: Permission denied: '?.*place"):
        write(tmp_path / "place/out")
    assert everything_in(tmp_path) == []


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/out was not written: File exists: .*file$"):
        write(tmp_path / "file/out")
    assert everything_in(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_somebody_else_s_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(WriteError, match="Permission denied"):
        write(tmp_path / "theirs/out")
    assert everything_in(tmp_path) == ["theirs"]
