"""The bundles in a model repository, NAME/VERSION/. A single bundle is a repository of one model."""

import re
from dataclasses import dataclass
from pathlib import Path

from heed.bundle import BundleError, Manifest, read_manifest
from heed.bundle.errors import CHECKPOINT, explain_missing, explain_os_error
from heed.bundle.manifest import MANIFEST
from heed.server.errors import StartError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
VERSION = re.compile(r"[1-9][0-9]*")

FileStates = tuple[tuple[str, int, int, int], ...]  # name, number, size and time of change


@dataclass(frozen=True)
class BundleFolder:
    """The folder of one version of a model."""

    name: str
    version: int
    path: Path

    def files(self) -> FileStates:
        """Changes when the bundle does, through links as well. What has a leading dot is no part of it.

        Raises:
            BundleError: they cannot be looked at.
        """
        try:
            names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
            stats = [(name, (self.path / name).stat()) for name in names]
        except OSError as error:
            raise BundleError(explain_os_error(error)) from None
        # Weights of one architecture are of one size, and copies keep the time of their contents.
        return tuple((name, stat.st_ino, stat.st_size, stat.st_ctime_ns) for name, stat in stats)

    def renamed(self, own: Manifest) -> Manifest:
        """The bundle's manifest, but with the name and the version of its folder, which is what an operator sees."""
        return own.model_copy(update={"name": self.name, "version": self.version})


def _folders(folder: Path) -> list[Path]:
    """Those that somebody may mean to be served: not `.git`, not `lost+found`."""
    return sorted(
        path for path in folder.iterdir() if path.name[0] != "." and path.name != "lost+found" and path.is_dir()
    )


def _numbered(model: Path) -> list[Path]:
    return [path for path in _folders(model) if VERSION.fullmatch(path.name)] if NAME.fullmatch(model.name) else []


def find_bundle_folders(folder: Path) -> list[BundleFolder]:
    """Every version in the repository, the newest of each model first.

    Raises:
        BundleError: the folder is a bundle that cannot be read.
        StartError: the folder cannot be read.
    """
    try:
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            return [BundleFolder(manifest.name, manifest.version, folder)]
        folders = [
            BundleFolder(model.name, int(version.name), version)
            for model in _folders(folder)
            for version in _numbered(model)
        ]
    except OSError as error:
        raise StartError(explain_os_error(error)) from None
    return sorted(folders, key=lambda found: (found.name, -found.version))


def why_nothing_is_there(folder: Path) -> str:
    """What a folder without a bundle is instead, and what to do about it."""
    if not folder.exists():
        return f"{folder} does not exist; `heed export SOURCE {folder}` makes a bundle there"
    if not folder.is_dir():
        return f"{folder} is a file; a bundle is a folder with a {MANIFEST}, and a repository has folders of them"
    if any((folder / name).exists() for name in CHECKPOINT):
        return f"{explain_missing(folder, MANIFEST)}, and `heed serve BUNDLE` serves that"
    if bundles := [found.parent for found in sorted(folder.glob(f"*/{MANIFEST}"))]:
        if any(VERSION.fullmatch(bundle.name) for bundle in bundles):
            return f"{folder} has the versions of one model; serve one, `heed serve {bundles[-1]}`, or {folder.parent}"
        return (
            f"{folder} has bundles that are no versions: {', '.join(bundle.name for bundle in bundles)}; serve one, "
            f"`heed serve {bundles[0]}`, or make it a repository: {folder}/{bundles[0].name}/1/{MANIFEST}"
        )
    if repositories := [found.parents[2] for found in sorted(folder.glob(f"*/*/*/{MANIFEST}"))]:
        return f"{folder} holds a repository: `heed serve {repositories[0]}`"
    return (
        f"{folder} has no {MANIFEST}; `heed export SOURCE BUNDLE` makes a bundle. "
        "A repository has folders NAME/VERSION/ with one each"
    )


def passed_over(folder: Path) -> list[str]:
    """The folders in a repository that are not served for where they lie or what they are called, and why."""
    if (folder / MANIFEST).exists():
        return []
    found = []
    for model in _folders(folder):
        if not NAME.fullmatch(model.name):
            found.append(f"{model} is passed over: a model's name has letters, digits, dots, hyphens and underscores")
        elif (model / MANIFEST).exists():
            found.append(
                f"{model} is passed over: it is a bundle, where a folder NAME/VERSION/ is one; move it to {model}/1"
            )
        else:
            others = [path for path in _folders(model) if not VERSION.fullmatch(path.name)]
            found += [f"{path} is passed over: a version is a whole number from 1 on" for path in others]
            if not others and not _numbered(model):
                found.append(f"{model} is passed over: it has no versions, folders {model.name}/1/ and so on")
    return found
