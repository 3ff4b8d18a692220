import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heed.bundle import BundleError
from heed.bundle.digests import (
    DIGESTS,
    REPORT,
    bundle_digest,
    check_digests,
    listed_files,
    read_digests,
    write_digests,
)
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import MANIFEST, read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.data").write_text("two\n")
    (tmp_path / "a.onnx").write_bytes(bytes(range(256)))
    (tmp_path / "été.npz").write_text("")
    write_digests(tmp_path)
    return tmp_path


def test_the_lines_are_what_sha256sum_writes(folder: Path) -> None:
    lines = (folder / DIGESTS).read_bytes().decode().splitlines()
    assert lines == [
        hashlib.sha256(bytes(range(256))).hexdigest() + "  a.onnx",
        hashlib.sha256(b"two\n").hexdigest() + "  b.data",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  été.npz",
    ]
    check_digests(folder)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_sha256sum_agrees(folder: Path) -> None:
    def verdict() -> int:
        return subprocess.run(
            ["sha256sum", "--check", "--strict", DIGESTS], check=False, cwd=folder, capture_output=True
        ).returncode

    assert verdict() == 0
    (folder / "b.data").write_text("too\n")
    assert verdict() == 1
    with pytest.raises(BundleError, match=r"b\.data is altered"):
        check_digests(folder)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_digests_that_sha256sum_wrote_are_accepted(folder: Path) -> None:
    names = ["été.npz", "b.data", "a.onnx"]
    written = subprocess.run(["sha256sum", "--", *names], check=True, cwd=folder, capture_output=True).stdout
    (folder / DIGESTS).write_bytes(written)
    check_digests(folder)


def test_each_bit_of_the_digests_matters(folder: Path) -> None:
    file = folder / DIGESTS
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(BundleError):
            check_digests(folder)
    file.write_bytes(whole)
    check_digests(folder)


def test_each_byte_cut_off_the_digests_matters(folder: Path) -> None:
    whole = (folder / DIGESTS).read_bytes()
    for length in range(len(whole)):
        (folder / DIGESTS).write_bytes(whole[:length])
        with pytest.raises(BundleError):
            check_digests(folder)


def test_no_digests_at_all_are_refused(folder: Path) -> None:
    (folder / DIGESTS).unlink()
    with pytest.raises(BundleError, match=f"has no {DIGESTS}"):
        check_digests(folder)
    with pytest.raises(BundleError, match=f"{folder / 'none'}: there is no such folder"):
        check_digests(folder / "none")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "model.safetensors"], "{} is a checkpoint, not yet a bundle: `heed export {} BUNDLE`"),
        (["model.fp32.onnx"], "{} has no %s: it is not the whole bundle, so copy it again"),
        (["README.md"], "{} has no %s; `heed export SOURCE BUNDLE` makes a bundle"),
        ([], "{} has no %s; `heed export SOURCE BUNDLE` makes a bundle"),
    ],
)
@pytest.mark.parametrize(("read", "name"), [(bundle_digest, DIGESTS), (read_manifest, MANIFEST)])
def test_what_is_no_bundle_is_told_as_what_it_is(
    tmp_path: Path, files: list[str], said: str, read: Callable[[Path], object], name: str
) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(BundleError, match=re.escape(said.replace("{}", str(tmp_path)).replace("%s", name))):
        read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file is a file, expected a bundle, which is a folder"):
        read(tmp_path / "file")


def test_names_cannot_lead_out_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("two\n")
    for name in (str(outside), "../b.data"):
        line = f"{hashlib.sha256(b'two' + bytes([10])).hexdigest()}  {name}\n"
        (folder / DIGESTS).write_text(line)
        with pytest.raises(BundleError, match="is damaged"):
            check_digests(folder)


def as_a_volume_of_kubernetes(folder: Path) -> None:
    """All files are links to files of a folder, and that is one, too, so that all change at once."""
    paths = list(folder.iterdir())
    (folder / "..2026_11_28").mkdir()
    (folder / "..data").symlink_to("..2026_11_28")
    for path in paths:
        path.rename(folder / "..data" / path.name)
        path.symlink_to(f"..data/{path.name}")


def as_the_cache_of_a_hub(folder: Path) -> None:
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../blobs/{number}")


def with_what_others_leave(folder: Path) -> None:
    for name in ("lost+found", ".cache", ".git", "notes"):
        (folder / name).mkdir()
    for name in (".gitattributes", ".DS_Store", ".nfs0000000001", "README.md", "b.data.md5"):
        (folder / name).write_text("")


@pytest.mark.parametrize("transport", [as_a_volume_of_kubernetes, as_the_cache_of_a_hub, with_what_others_leave])
def test_a_bundle_stays_valid_wherever_it_lies(tmp_path: Path, transport: Callable[[Path], None]) -> None:
    folder = tmp_path / "bundle of été"
    folder.mkdir()
    (folder / "b.data").write_text("two\n")
    write_digests(folder)
    before = bundle_digest(folder)
    transport(folder)
    known = {path.name for path in folder.iterdir()}
    assert check_digests(folder) == sorted(known - {DIGESTS, "b.data"})
    assert bundle_digest(folder) == before
    files = BundleFiles(folder, listed_files(folder, read_digests(folder)))
    assert bytes(files.read("b.data")) == b"two\n"
    (folder / "b.data").resolve().write_text("too\n")
    with pytest.raises(BundleError, match=r"b\.data is altered"):
        check_digests(folder)


@pytest.mark.parametrize("name", ["other.onnx", "weights.fp16.data", "more.npz", "tokenizer.json", "bundle.json"])
def test_what_is_not_listed_and_could_be_loaded_is_refused(folder: Path, name: str) -> None:
    (folder / name).symlink_to(folder / "b.data")
    with pytest.raises(BundleError, match=f"{name} is not listed in {DIGESTS}, and could be loaded; remove it"):
        check_digests(folder)


def test_a_link_to_nothing_is_told(folder: Path) -> None:
    (folder / "b.data").unlink()
    (folder / "b.data").symlink_to("../blobs/7")
    with pytest.raises(BundleError, match=r"b\.data is a link to \.\./blobs/7, where nothing is: .*cp -L"):
        check_digests(folder)


def test_ends_of_lines_that_git_changed(folder: Path) -> None:
    """Those of the digests are known; a file with others is another file."""
    before = bundle_digest(folder)
    (folder / DIGESTS).write_bytes((folder / DIGESTS).read_bytes().replace(b"\n", b"\r\n"))
    check_digests(folder)
    assert bundle_digest(folder) == before
    (folder / "b.data").write_bytes(b"two\r\n")
    with pytest.raises(BundleError, match=r"b\.data is altered: .* its ends of lines; write `\* -text` into"):
        check_digests(folder)


def test_the_bundle_s_digest_names_its_content_and_not_its_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "other")
    write_digests(elsewhere)
    assert bundle_digest(elsewhere) == bundle_digest(folder)
    assert bundle_digest(folder) == "sha256:" + hashlib.sha256((folder / DIGESTS).read_bytes()).hexdigest()
    (elsewhere / "b.data").write_text("three\n")
    write_digests(elsewhere)
    assert bundle_digest(elsewhere) != bundle_digest(folder)


def test_the_report_is_not_digested(folder: Path) -> None:
    """It may be there or not, and be anything: nothing depends on it."""
    before = bundle_digest(folder)
    (folder / REPORT).write_text("<h1>all is well</h1>")
    check_digests(folder)
    (folder / REPORT).write_text("altered")
    check_digests(folder)
    write_digests(folder)
    assert bundle_digest(folder) == before


def test_digests_that_list_the_report_are_refused(folder: Path) -> None:
    (folder / REPORT).write_text("")
    with (folder / DIGESTS).open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  {REPORT}\n")
    with pytest.raises(BundleError, match="SHA256SUMS is damaged"):
        check_digests(folder)


def test_what_is_held_stays_what_it_was_whatever_happens_to_the_file(folder: Path) -> None:
    files = BundleFiles(folder, listed_files(folder, read_digests(folder)))
    held = files.read("b.data")
    with (folder / "b.data").open("r+b") as file:
        file.write(b"owt")
        file.truncate(1)
    assert bytes(held) == bytes(files.read("b.data")) == b"two\n"
    assert held.readonly
    files.check_others()
    (folder / "a.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"a\.onnx is altered"):
        files.check_others()
    with pytest.raises(BundleError, match=r"a\.onnx is altered"):
        files.read("a.onnx")


@pytest.mark.parametrize("name", ["../b.data", "/etc/passwd", "unlisted.data", "", "."])
def test_nothing_but_files_of_the_bundle_is_read(folder: Path, name: str) -> None:
    (folder / "unlisted.data").write_text("")
    with pytest.raises(BundleError, match="is no file of the bundle"):
        BundleFiles(folder, listed_files(folder, read_digests(folder))).read(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_s_file_is_told_with_the_users_and_the_mend(folder: Path) -> None:
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    code = (
        "import os, pathlib, sys; from heed.bundle.digests import check_digests; "
        "os.setuid(65534); check_digests(pathlib.Path(sys.argv[1]))"
    )

    def said() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True, text=True)
        return done.stderr

    mend = rf"make it readable \(chmod -R a\+rX {folder}\), or serve as its owner"
    for closed, mode, named in ((folder / "b.data", 0o600, r"b\.data"), (folder, 0o700, DIGESTS)):
        before = closed.stat().st_mode
        closed.chmod(mode)
        assert re.search(
            rf"{named} cannot be read: it is not for user .*65534.*, and belongs to user .*0.*; {mend}", said()
        )
        closed.chmod(before)
