import json

import pytest
from typer.testing import CliRunner

from heed.main import app
from tests.support import Running, free_port

QUICK = ["--seconds", "0.2", "--callers", "2", "--load", "50"]


def test_every_load_is_shown(tiny_server: Running) -> None:
    done = CliRunner().invoke(app, ["bench", tiny_server.address, "tiny", "--workload", "queries", *QUICK])
    assert done.exit_code == 0
    for words in ("tiny, queries: 3 to 12 tokens", "answers/s", "2 callers", "32 callers", "50 % load"):
        assert words in done.output


def test_figures_are_there_for_programs(tiny_server: Running) -> None:
    done = CliRunner().invoke(app, ["bench", tiny_server.address, "tiny", "--json", *QUICK])
    figures = json.loads(done.stdout)
    assert [each["load"] for each in figures] == ["2 callers", "32 callers", "50 % load"]
    assert all(each["answers_per_second"] > 0 and each["errors"] == {} for each in figures)
    assert all(each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"] for each in figures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--workload", "novels"], "workload 'novels' is none of sentences"), (["--callers", "0"], "callers")],
)
def test_what_cannot_be_done_is_said(tiny_server: Running, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", tiny_server.address, "tiny", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_a_server_that_is_not_there_is_said() -> None:
    done = CliRunner().invoke(app, ["bench", f"127.0.0.1:{free_port()}", "tiny", "--timeout", "1", *QUICK])
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
