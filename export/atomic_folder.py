"""A folder that is written beside its destination and published by a rename: whole, or not at all."""

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = 2**20  # bytes; numpy and others do not say that it is the disk when it has fewer left

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class WriteError(OSError):
    """Why a folder could not be written; the message names it."""


class _PartialFolder:
    """The folder that is being written."""

    def __init__(self, out: Path, force: bool) -> None:
        self._out = out
        self._force = force
        self._created_parents: list[Path] = []  # the innermost first
        # Not the process id: containers that share a volume have the same ones. And not `mkdtemp`, whose folders nobody
        # else may read.
        self._name = secrets.token_hex(8)
        self._created = False
        self.folder = out.parent / f".{out.name}.partial-{self._name}"
        self.published = False

    def create(self) -> None:
        self._created_parents = [parent for parent in self._out.parents if not parent.exists()]
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._created = True  # first, so that a signal handler removes all that was created
        try:
            self.folder.mkdir()
        except OSError:
            self._created = False
            raise

    def publish(self) -> None:
        """Renames the folder to its destination. `folder` is what was there before, if anything was.

        Raises:
            FileExistsError: something is there by now, and it must not be replaced.
        """
        self.published = True  # first, so that a signal handler never removes what callers see already
        try:
            if not self._out.exists():
                self.folder.rename(self._out)  # which fails if files were written there since the line above
            elif not self._force:  # an export takes minutes, and another one of the same name may have been faster
                raise FileExistsError("somebody else wrote it meanwhile; --force replaces it")
            elif not _swap(self.folder, self._out):
                self._replace()
        except BaseException:
            self.published = False
            raise

    def _replace(self) -> None:
        """Replaces the destination in two renames, where the system cannot swap folders."""
        old = self._out.parent / f".{self._out.name}.old-{self._name}"
        try:
            self._out.rename(old)
            self.folder.rename(self._out)
        except BaseException:
            if old.exists() and not self._out.exists():
                old.rename(self._out)
            raise
        old.rename(self.folder)

    def discard(self) -> None:
        """Removes the partial folder, and unless it was published the parent folders that were created for it."""
        if self._created:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.published:
            for parent in self._created_parents:
                with suppress(OSError):  # it was not created yet, or somebody else uses it by now
                    parent.rmdir()


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step. False if this system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


_latest: _PartialFolder | None = None  # of this process


def discard_partial_folder() -> bool:
    """Removes the folder that this process is writing; for signal handlers. False if it is published already."""
    if _latest is None:
        return True
    if not _latest.published:
        _latest.discard()
    return not _latest.published


@contextmanager
def atomic_folder(out: Path, force: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that is renamed to `out` at the end, or removed if anything is raised.

    Args:
        force: replace `out` if it exists at the end.

    Raises:
        WriteError: for any OSError inside, or because `out` exists and must not be replaced; nothing was written.
    """
    global _latest  # noqa: PLW0603 - signal handlers are given nothing
    _latest = partial = _PartialFolder(out, force)
    try:
        partial.create()
        yield partial.folder
        partial.publish()
    except OSError as error:
        raise WriteError(f"{out} was not written: {_reason(error, partial)}") from error
    finally:
        partial.discard()


def _reason(error: OSError, partial: _PartialFolder) -> str:
    if error.errno == errno.ENOSPC or (partial.folder.exists() and shutil.disk_usage(partial.folder).free < FULL):
        return "the disk is full"
    text = error.strerror or str(error)
    ours = error.filename is None or str(error.filename).startswith(str(partial.folder))
    return text if ours else f"{text}: {error.filename}"
