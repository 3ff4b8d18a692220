import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from heed.bundle import BundleError
from heed.bundle.digests import DIGESTS, REPORT, bundle_digest, check_digests, write_digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "été.txt").write_text("")
    write_digests(tmp_path)
    return tmp_path


def test_the_lines_are_what_sha256sum_writes(folder: Path) -> None:
    lines = (folder / DIGESTS).read_bytes().decode().splitlines()
    assert lines == [
        hashlib.sha256(bytes(range(256))).hexdigest() + "  a.bin",
        hashlib.sha256(b"two\n").hexdigest() + "  b.txt",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  été.txt",
    ]
    check_digests(folder)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_sha256sum_agrees(folder: Path) -> None:
    def verdict() -> int:
        return subprocess.run(
            ["sha256sum", "--check", "--strict", DIGESTS], check=False, cwd=folder, capture_output=True
        ).returncode

    assert verdict() == 0
    (folder / "b.txt").write_text("too\n")
    assert verdict() == 1
    with pytest.raises(BundleError, match=r"b\.txt is altered"):
        check_digests(folder)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_digests_that_sha256sum_wrote_are_accepted(folder: Path) -> None:
    names = ["été.txt", "b.txt", "a.bin"]
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


def test_names_cannot_lead_out_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("two\n")
    for name in (str(outside), "../b.txt"):
        line = f"{hashlib.sha256(b'two' + bytes([10])).hexdigest()}  {name}\n"
        (folder / DIGESTS).write_text(line)
        with pytest.raises(BundleError, match="is missing"):
            check_digests(folder)


def test_writing_refuses_what_is_not_a_plain_file(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "b.txt")
    with pytest.raises(BundleError, match="link is not a plain file"):
        write_digests(folder)


def test_the_bundle_s_digest_names_its_content_and_not_its_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "other")
    write_digests(elsewhere)
    assert bundle_digest(elsewhere) == bundle_digest(folder)
    assert bundle_digest(folder) == "sha256:" + hashlib.sha256((folder / DIGESTS).read_bytes()).hexdigest()
    (elsewhere / "b.txt").write_text("three\n")
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
    (folder / REPORT).rename(folder / "other.html")
    with pytest.raises(BundleError, match=r"other\.html is not listed"):
        check_digests(folder)


def test_a_report_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / REPORT).symlink_to(folder / "a.bin")
    with pytest.raises(BundleError, match="not a plain file"):
        check_digests(folder)


def test_digests_that_list_the_report_are_refused(folder: Path) -> None:
    (folder / REPORT).write_text("")
    with (folder / DIGESTS).open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  {REPORT}\n")
    with pytest.raises(BundleError, match=r"report\.html is missing, but SHA256SUMS lists it"):
        check_digests(folder)
