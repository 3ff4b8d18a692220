"""A folder that is written beside its place and takes it at once, whole, or is gone without a trace."""

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


class Aside:
    """One folder on its way."""

    def __init__(self, out: Path, force: bool) -> None:
        self._out = out
        self._force = force
        self._made: list[Path] = []  # parent folders that were not there, the innermost first
        # Not the process's number: containers that share a volume have the same ones. And not `mkdtemp`, whose folders
        # nobody else may read.
        self._name = secrets.token_hex(8)
        self._is_ours = False
        self.folder = out.parent / f".{out.name}.partial-{self._name}"
        self.in_place = False

    def make(self) -> None:
        self._made = [parent for parent in self._out.parents if not parent.exists()]
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._is_ours = True  # first, so that a signal handler takes away all that was made
        try:
            self.folder.mkdir()
        except OSError:
            self._is_ours = False
            raise

    def put_in_place(self) -> None:
        """What was there before is what lies aside then.

        Raises:
            FileExistsError: something is there by now, and it was not said that it may be replaced.
        """
        self.in_place = True  # first, so that a signal handler never takes away what callers see already
        try:
            if not self._out.exists():
                self.folder.rename(self._out)  # which fails if files came to be there since the line above
            elif not self._force:  # an export takes minutes, and another one of the same name may have been faster
                raise FileExistsError("somebody else wrote it meanwhile; --force replaces it")
            elif not _swap(self.folder, self._out):
                self._replace()
        except BaseException:
            self.in_place = False
            raise

    def _replace(self) -> None:
        """In two steps, where the system has none that swaps."""
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
        """Removes what lies aside, and unless it is in place the parent folders that were made for it."""
        if self._is_ours:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.in_place:
            for parent in self._made:
                with suppress(OSError):  # it was not made yet, or somebody else uses it by now
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


_latest: Aside | None = None  # of this process


def abandon() -> bool:
    """Removes what this process is writing; for signal handlers. False if it is too late: it is in place already."""
    if _latest is None:
        return True
    if not _latest.in_place:
        _latest.discard()
    return not _latest.in_place


@contextmanager
def written_aside(out: Path, force: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all goes well, and is gone if anything does not.

    Args:
        force: replace `out` if it is there at the end.

    Raises:
        WriteError: for any OSError inside, or `out` is there and was not to be replaced; nothing was written.
    """
    global _latest  # noqa: PLW0603 - signal handlers are given nothing
    _latest = aside = Aside(out, force)
    try:
        aside.make()
        yield aside.folder
        aside.put_in_place()
    except OSError as error:
        raise WriteError(f"{out} was not written: {_reason(error, aside)}") from error
    finally:
        aside.discard()


def _reason(error: OSError, aside: Aside) -> str:
    if error.errno == errno.ENOSPC or (aside.folder.exists() and shutil.disk_usage(aside.folder).free < FULL):
        return "the disk is full"
    text = error.strerror or str(error)
    ours = error.filename is None or str(error.filename).startswith(str(aside.folder))
    return text if ours else f"{text}: {error.filename}"
