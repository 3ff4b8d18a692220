import os
from pathlib import Path


class BundleError(ValueError):
    """A bundle that must not be used; the message says what is wrong with it."""


CHECKPOINT = ("config.json", "modules.json")  # what transformers and sentence-transformers save


def explain_missing(folder: Path, name: str) -> str:
    """Why there is no file `name` of a bundle in `folder`, and what to do."""
    if not folder.exists():
        return f"{folder}: there is no such folder; `heed export SOURCE {folder}` makes a bundle there"
    if not folder.is_dir():
        return f"{folder} is a file, expected a bundle, which is a folder"
    if any((folder / each).exists() for each in CHECKPOINT):
        return f"{folder} is a checkpoint, not yet a bundle: `heed export {folder} BUNDLE` proves it and makes one"
    if any(folder.glob("*.onnx")):
        return f"{folder} has no {name}: it is not the whole bundle, so copy it again"
    return f"{folder} has no {name}; `heed export SOURCE BUNDLE` makes a bundle"


def explain_os_error(error: OSError) -> str:
    """What the system says of a file; where it is not for this user to read, who that is and what to do."""
    path = Path(os.fsdecode(error.filename))
    if not isinstance(error, PermissionError):
        return f"{path} cannot be read: {error.strerror}"
    place = _reachable(path)
    return (
        f"{path} cannot be read: it is not for {_user(os.geteuid())}, and belongs to {_user(place.stat().st_uid)}; "
        f"make it readable (chmod -R a+rX {place if place.is_dir() else place.parent}), or serve as its owner"
    )


def _user(number: int) -> str:
    import pwd  # POSIX only

    try:
        return f"user {pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:  # a random one, in a container
        return f"user {number}"


def _reachable(path: Path) -> Path:
    """The path, or the folder above it that is closed."""
    for each in (path, *path.parents):
        try:
            each.stat()
        except OSError:
            continue
        return each
    return Path(path.anchor)
