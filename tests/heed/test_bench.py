import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heed.cli.commands.bench import figures
from heed.cli.main import app
from heed.load.driver import Load
from tests.heed.support import heed
from tests.support import Running, free_port, run_server

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


def test_where_nothing_is_answered_the_server_says_why(tiny_server: Running) -> None:
    done = heed("bench", tiny_server.address, "tiny", "--output", "foo", *QUICK)
    assert (done.code, done.out) == (2, "")
    assert re.search(r"error: nothing was answered: \d+ INVALID_ARGUMENT: output foo is unknown; tiny gives", done.said)


@pytest.fixture(scope="module")
def short_server(tiny_roberta_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of a model that takes ids, at most 40 of them, with room for 20."""
    log = tmp_path_factory.mktemp("short") / "log"
    with run_server(tiny_roberta_bundle, log, "--max-queue-tokens", "20") as server:
        yield server


def test_errors_beside_answers_are_told_with_the_first_of_their_messages(short_server: Running) -> None:
    done = heed("bench", short_server.address, "tiny-roberta", "--json", *QUICK)
    assert done.code == 0
    loads = json.loads(done.out)
    assert all(each["answers_per_second"] > 0 for each in loads)
    assert any(each["errors"].get("INVALID_ARGUMENT") for each in loads)
    assert done.said.count("the first INVALID_ARGUMENT: ") == 1
    assert "can never fit: the whole queue holds 20" in done.said.partition("the first INVALID_ARGUMENT: ")[2]
    assert "takes at most" not in done.said  # 40 tokens: the model says so, and no request is longer


def test_a_load_without_an_answer_has_no_latency_in_json() -> None:
    said = figures(Load("200 % load", 1.0, errors=Counter(UNAVAILABLE=3)))
    assert said["p99_ms"] is None
    json.dumps(said, allow_nan=False)
