"""Clients run in processes of their own, as their users have them: their protobuf messages have the same names."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def heard_by(script: str, address: str, python: Sequence[str] = (sys.executable, "-W", "error")) -> Any:
    """What a script was told, as it prints it."""
    command = [*python, "-m", f"tests.clients.scripts.{script}", address]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
