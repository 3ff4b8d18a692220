import os
from pathlib import Path


class BundleError(ValueError):
    """A bundle that must not be used; the message says what is wrong with it."""


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
