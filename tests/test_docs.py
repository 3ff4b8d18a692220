"""The pages hold: links lead somewhere, and every command and snippet is run by a test or says why it is not.

A block in `sh` or `python` without a mark is run: by the test that RUN_BY names for its page, else here, in a folder
that looks like a checkout with bundles in it. A mark is a comment above the block, `<!-- not run: WHY -->` or
`<!-- run by TEST -->`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.bundles import export_bundle
from tests.pages import PAGES, ROOT, Block, blocks, unmarked
from tests.support import Running, free_port, run_server
from tests.test_rooms import MAY_IMPORT

# Who runs the unmarked blocks of a page in a language, where this file does not.
RUN_BY = {
    ("README.md", "python"): "tests/test_readme.py",
    ("docs/attention.md", "python"): "tests/test_readme.py",
    ("docs/clients.md", "python"): "tests/client/test_docs.py",
    ("docs/deployment.md", "python"): "tests/client/test_docs.py",
    ("docs/checkpoints.md", "python"): "tests/test_own_model.py",
    ("docs/checkpoints.md", "sh"): "tests/test_own_model.py",
}
# `heed` as the blocks find it: a server only checks, on ports of its own, and a measurement is short.
HEED = """#!/bin/sh
command=$1
case $command in
  serve) set -- "$@" --check --port 0 --metrics-port -1 ;;
  bench) set -- "$@" --seconds 0.1 --callers 2 --load 50 ;;
esac
exec {python} -m heed "$@"
"""


def runner_of(block: Block) -> str | None:
    """The test file that runs a block; None if nothing does."""
    if block.mark.startswith("not run: "):
        return None
    if block.mark:
        return block.mark.removeprefix("run by ").split("::")[0]
    return RUN_BY.get((block.page, block.language), "tests/test_docs.py")


@pytest.mark.parametrize("page", PAGES)
def test_a_block_is_run_or_says_why_not(page: str) -> None:
    for block in blocks(page, "sh", "python"):
        assert re.fullmatch(r"(not run: .{10,}|run by tests/\S+\.py(::test_\w+)?|)", block.mark), (
            f"{block}: {block.mark}"
        )
        assert (ROOT / (runner_of(block) or "")).exists(), f"{block}: there is no {runner_of(block)}"
        if block.mark.startswith("run by ") and "::" in block.mark:
            file, test = block.mark.removeprefix("run by ").split("::")
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{block}: there is no {test} in {file}"


def test_who_runs_a_page_names_it() -> None:
    for (page, language), runner in RUN_BY.items():
        assert unmarked(page, language), f"{page} has nothing in {language} for {runner}"
        parts = (ROOT / runner).read_text("utf-8")
        assert Path(page).name in parts, f"{runner} does not read {page}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_blocks_that_say_so(page: str) -> None:
    commands = re.compile(r"^(\$ |heed |python |pip |docker |npm |go |scripts/|openssl |HEED_\w+=)", re.MULTILINE)
    for block in blocks(page, "", "bash", "shell", "console", "py"):
        assert not commands.search(block.text), f"{block} has commands: write sh or python at its fence"


@pytest.fixture(scope="module")
def small_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands call minilm: a small model, for time."""
    return export_bundle(tiny, tmp_path_factory.mktemp("small") / "minilm")


@pytest.fixture(scope="module")
def small_server(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(small_bundle, tmp_path_factory.mktemp("servers") / "small.log") as server:
        yield server


@pytest.fixture
def checkout(tiny: Path, small_bundle: Path, tmp_path: Path) -> Path:
    """What the commands expect in a checkout: bundles, a repository, a checkpoint, some texts."""
    for bundle in ("build/minilm", "build/next", "models/minilm/1"):
        shutil.copytree(small_bundle, tmp_path / bundle)
    shutil.copytree(tiny, tmp_path / "path/to/checkpoint")
    (tmp_path / "queries.txt").write_text("a fox\nthe quick dog saw i\n")
    command = tmp_path / "bin/heed"
    command.parent.mkdir()
    command.write_text(HEED.format(python=sys.executable))
    command.chmod(0o755)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    search = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)}


def run(program: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder) | variables
    return subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, check=False)


def wait_until_healthy(address: str, folder: Path, server: Popen[bytes]) -> None:
    """As the container's health check asks."""
    check = [sys.executable, "-m", "heed.server.transport.healthcheck", address]
    until = time.monotonic() + 60
    while run(check, folder, HEED_TLS_CERTIFICATE=str(folder / "server.pem")).returncode:
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < until, "the server is not healthy"


HERE = sorted({block.page for page in PAGES for block in unmarked(page, "sh") if (page, "sh") not in RUN_BY})


@pytest.mark.parametrize("page", HERE)
def test_the_commands_of_a_page_run(page: str, checkout: Path, small_server: Running) -> None:
    for block in unmarked(page, "sh"):
        text = re.sub(r"(localhost|models\.internal):8001", small_server.address, block.text)
        done = run(["bash", "-euo", "pipefail", "-c", text], checkout)
        assert done.returncode == 0, f"{block}:\n{text}\n{done.stdout}{done.stderr}"


def test_the_page_on_serving_shows_the_lines_that_a_start_prints(small_server: Running) -> None:
    (shown,) = (block.text for block in blocks("docs/serving.md") if "READY" in block.text)
    labels = re.findall(r"^ {3}(\w+(?: \w+)?) {2,}\S", shown, re.MULTILINE)
    printed = re.findall(r"^(\w+(?: \w+)?) {2,}\S", small_server.log.read_text(), re.MULTILINE)
    assert labels == printed


def test_the_page_on_security_leads_to_an_answer_over_tls(small_bundle: Path, tmp_path: Path) -> None:
    """Its certificates and its token, a server that is started with them, and the client's snippet."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    page = "docs/security.md"
    (certificates,) = (block for block in blocks(page, "sh") if "openssl req" in block.text)
    (serve,) = (block for block in blocks(page, "sh") if block.text.startswith("heed serve"))
    (snippet,) = blocks(page, "python")
    assert run(["sh", "-e", "-c", certificates.text], tmp_path).returncode == 0
    shutil.copytree(small_bundle, tmp_path / "build/minilm")
    port = free_port()
    flags = f"--port {port} --metrics-port -1 --linger-seconds 0"
    with Popen(["sh", "-c", f"exec {serve.text.strip()} {flags}"], cwd=tmp_path, env=environment(tmp_path)) as server:
        try:
            wait_until_healthy(f"localhost:{port}", tmp_path, server)
            program = snippet.text.replace("localhost:8001", f"localhost:{port}")
            done = run([sys.executable, "-W", "error", "-c", program], tmp_path)
            assert done.returncode == 0, done.stderr
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demo_ends_with_equal_answers(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "examples.demo"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "served = reference" in done.stdout


# Links.


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def dead_links(page: Path, text: str) -> list[str]:
    """The links of a page that lead to no file, or to no heading of a page."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert dead_links(ROOT / page, (ROOT / page).read_text("utf-8")) == []


def test_a_dead_link_is_found() -> None:
    text = "[a](docs/none.md) [b](#no-such) [c](docs/README.md#no-such) [d](LICENSE) [e](https://example.org/#x)"
    assert dead_links(ROOT / "README.md", text) == ["docs/none.md", "#no-such", "docs/README.md#no-such"]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def texts() -> list[tuple[str, str]]:
    """Every tracked file that is text, by its name."""
    found = []
    for path in tracked():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_what_code_and_messages_say_of_pages_is_there() -> None:
    for name, text in texts():
        for page, anchor in re.findall(r"\b((?:docs|bench)/[\w/-]+\.md)(#[\w-]+)?", text):
            if name in ("tests/test_docs.py", "CHANGELOG.md"):  # the changelog names pages that were
                continue
            assert (ROOT / page).exists(), f"{name} speaks of {page}"
            assert not anchor or anchor[1:] in anchors(ROOT / page), f"{name} speaks of {page}{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_that_a_page_names_are_there(page: str) -> None:
    """In backticks: what begins with a folder of this repository; `x.py` stands for any file."""
    tops = "bench|deploy|docs|examples|export|heed|model|protos|scripts|server|tests"
    for code in re.findall(r"`([^`\n]+)`", (ROOT / page).read_text("utf-8")):
        for path in re.findall(rf"(?<![\w./-])((?:{tops})/[\w./-]*\w/?)", code):
            assert (ROOT / path).exists() or path.endswith("/x.py"), f"{page} names {path}"


# What is installed by which name.

FOREIGN = re.compile(r"pip install[^\n]*?(?<![\w./-])heed(?!-serve|\w|\.)(\\?\[|['\"\s`]|$)")


def test_nothing_says_to_install_a_distribution_that_is_not_ours() -> None:
    """`heed` on PyPI is somebody else's; ours is heed-serve."""
    said = {name for name, text in texts() if name != "tests/test_docs.py" and FOREIGN.search(text)}
    assert said == set()


@pytest.mark.parametrize(
    "text", ["pip install heed", "pip install -U 'heed[cpu]'", 'pip install "heed"', "`pip install heed`"]
)
def test_the_foreign_name_is_found(text: str) -> None:
    assert FOREIGN.search(text)


@pytest.mark.parametrize(
    "text", ["pip install heed-serve", "pip install 'heed-serve[cpu,export]'", "pip install '.[cpu]'"]
)
def test_our_name_is_not(text: str) -> None:
    assert not FOREIGN.search(text)


# The map.


def _listed(names: set[str]) -> set[str]:
    """Rooms as the map writes them, by the names that they are imported by."""
    for_all = {f"heed.server.{name}" for name in ("settings", "environment", "errors")}
    rooms = {name for name in names if name.startswith("heed")} - for_all
    real = {name: name.replace(".", "/") for name in rooms - {"heed.extras"}}
    linked = ("heed/server", "heed/model", "heed/export")
    return {
        "any" if path == "heed" else path.removeprefix("heed/") if path.startswith(linked) else path
        for path in real.values()
    }


def test_the_map_has_every_room_and_what_it_may_import() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w/]+)/` \| .*? \| ([^|]*)\|$", text, re.MULTILINE)
    shown = {room: set(re.findall(r"[\w/]+", imports)) for room, imports in rows}
    assert shown == {room: _listed(allowed) for room, allowed in MAY_IMPORT.items()}


def test_the_glossary_is_short() -> None:
    glossary = (ROOT / "docs/architecture.md").read_text("utf-8").split("## Glossary\n")[1]
    assert 10 <= glossary.count("\n|") - 2 <= 20
