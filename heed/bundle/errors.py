import os
from pathlib import Path


class BundleError(ValueError):
    """A bundle that must not be used; the message says what is wrong with it."""


def explain_os_error(error: OSError) -> str:
    """What the system says of a file; where it is not for this user to read, who that is and what to do."""
    path = Path(os.fsdecode(error.filename))
    if not isinstance(error, PermissionError):
        return f"{path} cannot be read: {error.strerror}"
    return (
        f"{path} cannot be read: it is not for {_user(os.geteuid())}, and belongs to {_owner(path)}; "
        f"make it readable (chmod -R a+rX {_above(path)}), or serve as its owner"
    )


def _user(number: int) -> str:
    import pwd  # POSIX only

    try:
        return f"user {pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:  # a random one, in a container
        return f"user {number}"


def _owner(path: Path) -> str:
    """Of the path, or of the nearest folder above it that can be looked at."""
    for each in (path, *path.parents):
        try:
            return _user(each.stat().st_uid)
        except OSError:
            continue
    return "somebody"


def _above(path: Path) -> Path:
    return path if path.is_dir() else path.parent
