"""`heed serve`: where settings come from, and what is said of those that are wrong."""

import re
import socket
from pathlib import Path
from shutil import copytree

import pytest

from heed.server.engine.host import usable_cpus
from heed.server.environment import host_port
from heed.server.settings import Settings
from tests.heed.support import heed
from tests.support import free_port


@pytest.fixture
def config(tmp_path: Path, tiny_bundle: Path) -> Path:
    path = tmp_path / "heed.yaml"
    path.write_text(f"bundle: {tiny_bundle}\nport: 0\nmetrics-port: -1\nthreads: 1\n")
    return path


def test_flags_go_before_variables_those_before_the_file_and_that_before_the_defaults(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, other = free_port(), free_port()
    done = heed("serve", "--config", config, "--check", "--port", port)
    assert done.code == 0, done.err
    assert f"listens 127.0.0.1:{port} " in done.shown
    assert re.search(r", 1 thread\b", done.shown)  # the file's
    assert "metrics none" in done.shown
    monkeypatch.setenv("HEED_CONFIG", str(config))
    monkeypatch.setenv("HEED_PORT", str(port))
    monkeypatch.setenv("HEED_THREADS", "2")
    done = heed("serve", "--check", "--port", other)
    assert f"listens 127.0.0.1:{other} " in done.shown
    assert ", 2 threads" in done.shown


def test_a_check_says_what_would_be_served_and_why_not(tiny_bundle: Path, tmp_path: Path) -> None:
    copytree(tiny_bundle, tmp_path / "models" / "words" / "1")
    bad = copytree(tiny_bundle, tmp_path / "models" / "words" / "2")
    (bad / "tokenizer.json").write_text("{}")
    done = heed("serve", tmp_path / "models", "--check", "--port", 0, "--metrics-port", -1)
    assert done.code == 2
    assert done.shown.startswith("would serve model words version 1, fp32, sha256:")
    assert "not served words version 2" in done.shown
    assert "tokenizer.json is altered" in done.shown


def test_more_threads_than_cpus_are_warned_of(tiny_bundle: Path) -> None:
    done = heed("serve", tiny_bundle, "--check", "--port", 0, "--metrics-port", -1, "--threads", 400)
    assert done.code == 0
    assert f"--threads 400 is more than the {usable_cpus()} that this process may use" in done.said
    done = heed("serve", tiny_bundle, "--check", "--port", 0, "--metrics-port", -1, "--threads", usable_cpus())
    assert "--threads" not in done.said


def test_a_port_in_use_is_told(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = heed("serve", tiny_bundle, "--check", "--port", port, "--metrics-port", -1)
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use (--port chooses another)" in done.said


@pytest.mark.parametrize("host", ["::", "[::1]", "localhost"])
def test_hosts_are_taken_as_people_write_them(tiny_bundle: Path, host: str) -> None:
    done = heed("serve", tiny_bundle, "--check", "--host", host, "--port", 0, "--metrics-port", 0)
    assert done.code == 0, done.err
    written = "localhost" if host == "localhost" else f"[{host.strip('[]')}]"
    assert re.search(rf"listens {re.escape(written)}:\d+ .*metrics {re.escape(written)}:\d+", done.shown)


@pytest.mark.parametrize(
    ("host", "why"),
    [("2001:db8::1", "this machine has no such address (--host)"), ("no.such.host.invalid", "(--host)")],
)
def test_a_host_that_is_not_this_machines_is_told(tiny_bundle: Path, host: str, why: str) -> None:
    done = heed("serve", tiny_bundle, "--check", "--host", host, "--port", 8001, "--metrics-port", -1)
    assert done.code == 2
    assert f"cannot listen on {host_port(host, 8001)}: " in done.said
    assert why in done.said


def test_metrics_have_a_host_of_their_own(tiny_bundle: Path) -> None:
    done = heed("serve", tiny_bundle, "--check", "--port", 0, "--metrics-host", "127.0.0.2", "--metrics-port", 0)
    assert re.search(r"listens 127\.0\.0\.1:\d+ .*metrics 127\.0\.0\.2:\d+", done.shown)


def test_unknown_variables_are_refused_all_at_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_PRECISON", "int8")
    monkeypatch.setenv("HEED_TLS_KEI", "key.pem")
    done = heed("serve", tiny_bundle, "--check", "--port", 0, "--metrics-port", -1)
    assert done.code == 2
    assert "HEED_PRECISON is no setting, did you mean HEED_PRECISION?" in done.said
    assert "HEED_TLS_KEI is no setting, did you mean HEED_TLS_KEY?" in done.said


def test_a_callers_token_is_no_servers(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_TOKEN", "tokens.txt")
    done = heed("serve", tiny_bundle, "--check", "--port", 0, "--metrics-port", -1)
    assert done.code == 0
    assert "HEED_TOKEN is for callers: a server's tokens are those of HEED_TOKENS" in done.said


def test_variables_of_kubernetes_and_empty_ones_are_no_settings(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEED_PORT", "tcp://10.43.0.5:8001")
    monkeypatch.setenv("HEED_SERVICE_HOST", "10.43.0.5")
    monkeypatch.setenv("HEED_THREADS", "")
    monkeypatch.setenv("HEED_METRICS_PORT", "-1")
    port = free_port()
    done = heed("serve", tiny_bundle, "--check", "--port", port)
    assert f"listens 127.0.0.1:{port} (gRPC, plain text) metrics none" in done.shown


def test_a_variable_that_is_wrong_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_THREADS", "many")
    done = heed("serve", tiny_bundle, "--check")
    assert done.code == 2
    assert "HEED_THREADS many: Input should be a valid integer" in done.said


def test_the_help_shows_brackets_and_defaults_as_they_are_meant() -> None:
    done = heed("serve", "--help")
    assert "the extra otel has what that needs" in " ".join(re.sub("[│]", " ", done.out).split())
    assert "[default: 8001]" in done.out
    assert "[default: (" not in done.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot: 8001", "prot is no setting; did you mean port?"),
        ("colour: red", "colour is no setting"),
        ("port: many", "port: many: Input should be a valid integer"),
        ("threads: -1", "threads: -1: Input should be greater than or equal to 0"),
        ("port", "must have lines like `port: 8001`, got str"),
        ("port: [", "is not YAML"),
        ("port: 1", "which bundle or repository to serve? `heed serve FOLDER`"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "heed.yaml").write_text(text)
    done = heed("serve", "--config", tmp_path / "heed.yaml")
    assert done.code == 2
    assert reason in done.said


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = heed("serve", "--config", tmp_path / "none.yaml")
    assert done.code == 2
    assert "none.yaml cannot be read: No such file or directory" in done.said


def test_help_shows_every_setting_in_a_group() -> None:
    shown = heed("serve", "--help").shown
    for name, spec in Settings.model_fields.items():
        if not spec.is_required():
            assert f"--{name.replace('_', '-')} " in shown
            assert isinstance(spec.json_schema_extra, dict)
            assert f"─ {spec.json_schema_extra['group']} ─" in shown
            assert f"HEED_{name.upper()}" in shown
