"""A virtual environment for each peer."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench.peers.catalog import Peer

# What computes is of the same version everywhere: it is the servers that are compared.
SAME = ("onnxruntime", "torch")


class Failure(Exception):
    """Why a peer has no figures, in its own words, and where to read on."""

    def __init__(self, reason: str, log: Path) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


def install(peer: Peer, folder: Path, log: Path) -> Path:
    """The interpreter of the peer's environment, which is made unless it is there.

    Raises:
        Failure: pip could not install it.
    """
    if peer.requirements is None:
        return Path(sys.executable)
    python, constraints, stamp = folder / "bin" / "python", folder / "constraints.txt", folder / "installed.txt"
    wanted = peer.requirements.read_text() + constraints_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], log, "w")
    constraints.write_text(constraints_text())
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input", "install"]
    _run([*pip, "--requirement", str(peer.requirements), "--constraint", str(constraints)], log, "a")
    stamp.write_text(wanted)
    return python


def constraints_text() -> str:
    """For pip, without what a build is called ("+cpu")."""
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in SAME)


def _run(command: list[str], log: Path, mode: str) -> None:
    with log.open(mode) as output:
        if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
            raise Failure(reason_in(log), log)


def reason_in(log: Path) -> str:
    """The last line that names an error, else the last one at all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "ERROR" in line]
    return (errors or lines or ["it said nothing"])[-1]
