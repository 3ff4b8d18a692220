"""What is published, and what an installation of it adds to an environment: `heed`, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from heed import Client
from heed.extras import EXTRAS
from tests.support import Running

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FILES = ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
SOURCES = (
    "src",
    "heed",
    "model",
    "export",
    "server",
    "protos",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
)
BUILT = ("__pycache__", "*.so", "*.egg-info")
# Names that this repository has at its top, or had, and that a user may have as well.
USERS_MODULES = ("bench", "bundle", "client", "export", "load", "model", "protos", "server")


def walk_files(folder: Path) -> Iterator[str]:
    """Files below a folder and below the links in it, without what was built."""
    for at, _, names in os.walk(folder, followlinks=True):
        paths = [Path(at, name).relative_to(folder) for name in names]
        yield from (str(path) for path in paths if "__pycache__" not in path.parts and path.suffix != ".so")


def run(*command: str | Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=inherited | env)
    assert done.returncode == code, f"{command}:\n{done.stdout}{done.stderr}"
    return done


def build(kind: str, source: Path, out: Path, compiler: str) -> Path:
    """Builds an `sdist` or a `wheel` with the build system's own hook, as pip does, and without a network."""
    program = f"import os; os.chdir({str(source)!r}); from setuptools import build_meta\n"
    program += f"print(build_meta.build_{kind}({str(out)!r}))"
    return out / run(sys.executable, "-c", program, CC=compiler).stdout.split()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a clone has it: with its links, and without what was built."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns(*BUILT))
        else:
            shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    shutil.copy(__file__, folder / "tests")
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"), "false")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist. Optimising the C code takes three quarters of the time, and nothing here runs it."""
    folder = tmp_path_factory.mktemp("wheel")
    quick = folder / "quick-cc"
    quick.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    quick.chmod(0o755)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder, str(quick))


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel and what it depends on."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def heed(self, *arguments: str, extra: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs the command line; with the packages that an extra brings, if one is named."""
        found = {}
        if extra:
            found["PYTHONPATH"] = str(self.folder / extra)
            link_packages([Requirement(f"heed-serve[{extra}]")], self.folder / extra)
        return run(self.folder / "bin" / "heed", *arguments, code=code, **found)


def link_packages(requirements: Iterable[Requirement], folder: Path) -> None:
    """Makes the packages that satisfy requirements, and what these depend on, importable from a folder.

    They are linked from the environment that runs the tests: nothing has to be fetched.
    """
    for requirement in requirements:
        found = distribution(requirement.name)
        if requirement.name != "heed-serve":
            for file in found.files or ():
                if file.parts[0] != ".." and not (link := folder / file).exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.locate())
        needed = [Requirement(each) for each in found.requires or ()]
        extras = requirement.extras or {""}
        link_packages([each for each in needed if any(is_needed(each, extra) for extra in extras)], folder)


def is_needed(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    venv.create(made.folder)
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        made.python,
        "install",
    ]
    run(*pip, "--quiet", "--no-index", "--no-deps", "--no-compile", wheel)
    requirements = [Requirement(each) for each in PYPROJECT["dependencies"]]
    link_packages(requirements, made.packages)
    return made


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_heed_and_its_metadata_alone(wheel: Path) -> None:
    assert {name.split("/")[0] for name in names_in(wheel)} == {"heed", "heed_serve-0.1.0.dist-info"}


def test_a_wheel_holds_all_modules_and_types_and_no_source_in_c(wheel: Path) -> None:
    packed = {name.removeprefix("heed/") for name in names_in(wheel) if name.startswith("heed/")}
    expected = {name for name in walk_files(ROOT / "heed") if not name.endswith((".c", ".h"))}
    assert {"py.typed", "model/attention.py", "protos/heed_pb2.pyi"} <= expected
    assert {name for name in packed if not name.endswith(".so")} == expected


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")
def test_a_wheel_made_of_the_sdist_holds_the_compiled_kernels(wheel: Path) -> None:
    libraries = [name for name in names_in(wheel) if name.endswith(".so")]
    assert [name.split(".")[0] for name in libraries] == ["heed/server/engine/kernels/library"]


def test_without_a_compiler_a_wheel_lacks_the_kernels_alone(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    def contents(path: Path) -> set[str]:
        return {name for name in names_in(path) if not name.endswith(".so")}

    plain = build("wheel", checkout, tmp_path, "false")
    assert names_in(plain) == contents(plain) == contents(wheel)


def test_an_sdist_holds_heed_with_its_sources_in_c_and_the_protocols(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {member.name for member in members if not (member.isfile() or member.isdir())} == set()  # no links
    files = {member.name.partition("/")[2] for member in members if member.isfile()}

    tops = {name.split("/")[0] for name in files}
    assert tops == {"src", "protos", "PKG-INFO", "setup.cfg", *FILES}
    assert {name.split("/")[1] for name in files if name.startswith("src/")} == {"heed", "heed_serve.egg-info"}

    code = {name.removeprefix("src/heed/") for name in files if name.startswith("src/heed/")}
    assert {name for name in code if name.endswith((".c", ".h"))}
    assert code == set(walk_files(ROOT / "heed"))
    assert {name for name in files if name.startswith("protos/")} == {
        f"protos/{path.name}" for path in (ROOT / "protos").glob("*.proto")
    }


def test_without_an_extra_an_environment_has_grpc_protobuf_and_numpy(environment: Environment) -> None:
    found = {path.name for path in environment.packages.iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"__pycache__"} == {"heed", "google", "grpc", "numpy", "numpy.libs", "typing_extensions.py"}
    missing = ["pydantic", "rich", "typer", "yaml", "tokenizers", "onnxruntime", "torch", "pip"]
    program = f"from importlib.util import find_spec; print([name for name in {missing} if find_spec(name)])"
    assert run(environment.python, "-c", program).stdout == "[]\n"


PROGRAM = f"""
import asyncio, json, sys
import {", ".join(USERS_MODULES)}
from heed import AsyncClient, Client

async def embed(texts):
    async with AsyncClient(sys.argv[1], "tiny") as connected:
        return await connected.embed(texts)

texts = ["the quick fox", "a dog saw foxes"]
with Client(sys.argv[1], "tiny") as connected:
    vectors = connected.embed(texts)
print(json.dumps({{
    "owners": [module.OWNER for module in ({", ".join(USERS_MODULES)})],
    "vectors": vectors.tolist(),
    "awaited": asyncio.run(embed(texts)).tolist(),
}}))
"""


def test_a_client_runs_beside_a_users_own_modules_of_any_name(
    environment: Environment, tiny_server: Running, tmp_path: Path
) -> None:
    for name in USERS_MODULES:
        (tmp_path / f"{name}.py").write_text("OWNER = 'the user'\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    told = json.loads(run(environment.python, tmp_path / "program.py", tiny_server.address).stdout)
    assert told["owners"] == ["the user"] * len(USERS_MODULES)
    with Client(tiny_server.address, "tiny") as client:
        expected = client.embed(["the quick fox", "a dog saw foxes"]).tolist()
    assert told["vectors"] == told["awaited"] == expected


def test_the_extra_cli_calls_a_server(environment: Environment, tiny_server: Running) -> None:
    done = environment.heed("call", tiny_server.address, "tiny", "--text", "the fox", "--json", extra="cli")
    assert done.stderr == ""
    assert json.loads(done.stdout)


ADVICE = r"\w+ is not installed; it comes with the extra {0}\b[^:]*: pip install 'heed-serve\[(\w+,)?{0}\]'"


@pytest.mark.parametrize(
    ("installed", "arguments", "wanted"),
    [
        (None, ["--version"], "cli"),
        ("cli", ["serve", "bundle"], "server"),
        ("server", ["serve", "bundle"], "cpu"),
        ("cpu", ["export", str(ROOT), "bundle"], "export"),
    ],
)
def test_a_command_whose_packages_are_missing_names_the_extra_in_one_line(
    environment: Environment, installed: str | None, arguments: list[str], wanted: str
) -> None:
    done = environment.heed(*arguments, extra=installed, code=2)
    assert done.stdout == ""
    assert re.fullmatch(rf"error: {ADVICE.format(wanted)}\n", done.stderr)


@pytest.mark.parametrize("name", ["export_bundle", "load_checkpoint"])
def test_a_name_whose_packages_are_missing_says_which_extra_brings_them(environment: Environment, name: str) -> None:
    done = run(environment.python, "-c", f"from heed import {name}", code=1)
    assert re.fullmatch(rf"ModuleNotFoundError: {ADVICE.format('export')}", done.stderr.splitlines()[-1])


def test_heed_lists_what_it_imports_when_it_is_used(environment: Environment) -> None:
    program = "import heed, sys; print({*heed.__all__} <= {*dir(heed)}, 'grpc' in sys.modules)"
    assert run(environment.python, "-c", program).stdout == "True False\n"


def test_an_unknown_name_of_heed_is_an_attribute_error() -> None:
    import heed

    with pytest.raises(AttributeError, match="module 'heed' has no attribute 'clients'"):
        _ = heed.clients


TYPED_PROGRAM = """
from typing import assert_type
import numpy as np
from heed import AsyncClient, Client

async def embed(texts: list[str]) -> np.ndarray:
    async with AsyncClient("localhost:8001", "tiny") as client:
        return await client.embed(texts)

with Client("localhost:8001", "tiny") as client:
    assert_type(client, Client)
    assert_type(client.embed(["a"]), np.ndarray)
    client.embed(7)
"""


@pytest.mark.long
def test_mypy_checks_a_users_program_against_the_installed_wheel(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPED_PROGRAM)
    program = f"import os; os.chdir({str(tmp_path)!r}); from mypy.main import main\n"
    program += f"main(args=['--strict', '--python-executable', {str(environment.python)!r}, 'program.py'])"
    errors = [line for line in run(sys.executable, "-c", program, code=1).stdout.splitlines() if "error:" in line]
    assert [line.split(": error: ")[0] for line in errors] == ["program.py:13"]
    assert "[arg-type]" in errors[0]


def test_an_installation_for_development_exposes_heed_alone(checkout: Path, tmp_path: Path) -> None:
    """By a line of path, which type checkers and editors follow; they do not follow an import hook."""
    wheel = build("editable", checkout, tmp_path, "false")
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if "dist-info" not in name]
        [added] = archive.read(path).decode().splitlines()
    assert {entry.name for entry in Path(added).iterdir() if entry.suffix != ".egg-info"} == {"heed"}
    assert (Path(added) / "heed").resolve() == (checkout / "heed").resolve()


def test_what_runs_these_tests_has_heed_and_none_of_its_folders(tmp_path: Path) -> None:
    names = {path.stem for path in ROOT.iterdir() if not path.name.startswith(".")} | {*USERS_MODULES} - {"heed"}
    program = "import sys; from importlib.util import find_spec; origins = [find_spec(name) for name in sys.argv[1:]]\n"
    program += "print(*(found.name for found in origins if found and found.origin and found.origin.startswith"
    program += f"({str(ROOT)!r}) and '.venv' not in found.origin))"
    script = tmp_path / "program.py"
    script.write_text(program)
    assert run(sys.executable, script, *sorted(names)).stdout.split() == ["heed"]


@cache
def owners_of_packages() -> dict[str, set[str]]:
    """Which distributions bring a package, by its import name."""
    return {name: set(map(canonicalize_name, owners)) for name, owners in packages_distributions().items()}


def import_names(requirement: Requirement) -> set[str]:
    """The packages that a distribution itself brings."""
    name = canonicalize_name(requirement.name)
    return {package for package, owners in owners_of_packages().items() if name in owners}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_of_extras_is_that_of_the_distribution(extra: str) -> None:
    requirements = [Requirement(each) for each in PYPROJECT["optional-dependencies"][extra]]
    stricter = {Requirement(each).name for each in PYPROJECT["dependencies"]}  # the client's, with a bound of its own
    brought = [import_names(each) for each in requirements if each.name not in {"heed-serve", *stricter}]
    assert set(EXTRAS[extra]) <= set().union(*brought)
    fonts = [{"manimgx_fonts"}, {"weblate_fonts"}]  # read as files, and never imported
    assert [names for names in brought if names not in fonts and not names & set(EXTRAS[extra])] == []


def test_an_import_names_one_extra_alone() -> None:
    packages = [package for extra in EXTRAS.values() for package in extra]
    assert len(packages) == len(set(packages))
