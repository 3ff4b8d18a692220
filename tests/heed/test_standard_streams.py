"""What becomes of stdout and stderr, and signals while a command is imported, as seen from other processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Running, free_port, wait_until_serving

HEED = [sys.executable, "-m", "heed"]


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HEED": " ".join(HEED)} | variables
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_a_command_whose_output_is_lost_says_so_and_never_that_a_check_failed(tiny_bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = shell(f"$HEED inspect {tiny_bundle} > /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: stdout cannot be written: No space left on device\n")


def test_a_reader_that_leaves_is_no_error(tiny_bundle: Path) -> None:
    done = shell(f"set -o pipefail; $HEED inspect {tiny_bundle} | head -1")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_encoding_without_the_characters_changes_no_exit_code(tiny_bundle: Path) -> None:
    done = shell(f"$HEED inspect {tiny_bundle}", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unforeseen_error_is_not_a_check_that_failed() -> None:
    program = "import heed.cli.main as m; m.app = lambda: 1 / 0; from heed.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr


SWALLOWED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "pydantic":
            try: os.kill(os.getpid(), signal.SIGTERM)
            except BaseException: pass  # as extension modules do
sys.meta_path.insert(0, Finder())
sys.argv = ["heed", "serve", "nothing"]
from heed.__main__ import main
main()
"""


def test_sigterm_while_a_server_is_imported_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("redirected", ["| head -1", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_server_serves_whatever_becomes_of_its_output(tiny_bundle: Path, tmp_path: Path, redirected: str) -> None:
    port, code = free_port(), tmp_path / "code"
    flags = f"--port {port} --metrics-port -1 --linger-seconds 0"
    command = (
        f"{{ {' '.join(HEED)} serve {tiny_bundle} {flags} & echo $! > {tmp_path}/pid; wait $!; echo $? > {code}; }}"
    )
    process = subprocess.Popen(["bash", "-c", f"{command} {redirected}"], text=True)
    server = Running(f"127.0.0.1:{port}", process, tmp_path / "pid")
    try:
        wait_until_serving(server)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code.read_text() == "0\n"
