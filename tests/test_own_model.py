"""The section of docs/checkpoints.md about a model of your own, run as it stands: train, export, verify, serve, ask."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support import run_server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/checkpoints.md").read_text()


def test_the_page_leads_from_training_to_an_answer(tmp_path: Path) -> None:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(code)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    *before, serve = commands.splitlines()
    where = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command: str) -> str:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=os.environ | where, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for command in before:
        run(command)
    assert serve == "heed serve build/melody"
    with run_server(tmp_path / "build/melody", tmp_path / "log") as server:
        ask = tmp_path / "ask.py"
        ask.write_text(ask.read_text().replace("localhost:8001", server.address))
        assert run("python ask.py") == "['rises' 'falls']\n"
