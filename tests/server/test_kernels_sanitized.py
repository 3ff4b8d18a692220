"""The kernels in C, compiled into a small program with the compiler's sanitizers: `tests/server/kernels/`.

The program calls each operator through a stand-in for onnxruntime, on tensors of odd sizes, each allocated with its
exact size, and compares the answers with loops in double. The kernels for AMX run on any CPU too: their instructions
are emulated there (`emulated_amx.h`).
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from heed.server.engine.kernels import InstructionSet

HERE = Path(__file__).with_name("kernels")
KERNELS = Path(__file__).parents[2] / "server" / "engine" / "kernels"
SOURCES = [*sorted(KERNELS.rglob("*.c")), HERE / "check_kernels.c", HERE / "fake_onnxruntime.c"]
# -O0: the sums of a register tile stay arrays in memory, where the sanitizers see them, and gcc takes a tenth of the
# time that it takes to optimize unrolled loops full of checks.
FLAGS = ["-std=gnu11", "-O0", "-g", "-fno-wrapv", "-Wall", "-Wextra", "-Werror", f"-I{HERE}", f"-I{KERNELS}"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]
EMULATED = '-DHEED_EMULATED_AMX="emulated_amx.h"'
LINEAR = {"Linear", "Product", "Linear16", "Int8Linear"}
BETWEEN = {"Gelu", "AddNorm", "Attention"}
# What is computed with each instruction set; of the others nothing.
OPERATORS = {
    InstructionSet.NONE: set[str](),
    InstructionSet.AVX2: LINEAR | BETWEEN,
    InstructionSet.AVX512: BETWEEN,
    InstructionSet.AMX: LINEAR | BETWEEN,
}

only_on_x86 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the kernels are for x86-64 on Linux"
)
pytestmark = [only_on_x86, pytest.mark.timeout(900)]


def compiled(folder: Path, flags: list[str]) -> Path:
    """The program; skips the test where there is no gcc, or it lacks these sanitizers."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize=")]
    if subprocess.run(["gcc", *sanitizers, probe, "-o", folder / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"gcc has no library for {' '.join(sanitizers)}")
    objects = [folder / f"{number}.o" for number in range(len(SOURCES))]

    def compile_one(source: Path, to: Path) -> None:
        run(["gcc", *FLAGS, *flags, "-c", source, "-o", to])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, SOURCES, objects))
    run(["gcc", *flags, *objects, "-o", folder / "check", "-pthread", "-lm"])
    return folder / "check"


def run(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert not done.stderr, done.stderr[-5000:]
    return done.stdout


def answers(program: Path, limit: InstructionSet | None = None, threads: int = 1) -> tuple[str, list[str]]:
    """The instruction set that ran, and a line for each case: what it was, and a hash of its answers."""
    environment = {} if limit is None else {"HEED_MAX_ISA": str(limit)}
    first, *lines = run([program, str(threads)], **environment).splitlines()
    return first, lines


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Compiled once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "checked-kernels"
    with FileLock(f"{folder}.lock"):
        if (folder / "check").exists():
            return folder / "check"
        folder.mkdir(exist_ok=True)
        return compiled(folder, [*ADDRESS, EMULATED])


@pytest.mark.parametrize("limit", list(InstructionSet))
def test_every_path_of_this_machine_is_exact_and_stays_inside_its_memory(checked: Path, limit: InstructionSet) -> None:
    name, lines = answers(checked, limit)
    ran = InstructionSet(name)
    sets = list(InstructionSet)
    assert sets.index(ran) <= sets.index(limit)
    assert {line.split()[0] for line in lines} == OPERATORS[ran]
    if limit in (InstructionSet.NONE, InstructionSet.AMX):  # every CPU has the one, and the other is emulated
        assert ran == limit


def test_answers_have_the_same_bits_with_more_threads(checked: Path) -> None:
    assert answers(checked, InstructionSet.AVX2, threads=3) == answers(checked, InstructionSet.AVX2)


def test_an_instruction_set_that_there_is_not_is_refused(checked: Path) -> None:
    environment = os.environ | {"HEED_MAX_ISA": "avx1024"}
    done = subprocess.run([checked], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "HEED_MAX_ISA must be none, avx2, avx512 or amx" in done.stderr


@pytest.mark.parametrize("header", sorted(KERNELS.rglob("*.h")), ids=lambda path: str(path.relative_to(KERNELS)))
def test_a_header_includes_what_it_needs_and_no_circle(header: Path) -> None:
    includes = {
        path: [
            (path.parent / line.split('"')[1]).resolve()
            for line in path.read_text().splitlines()
            if line.startswith('#include "')
        ]
        for path in KERNELS.rglob("*.h")
    }

    def reached(path: Path, above: tuple[Path, ...] = ()) -> None:
        assert path not in above, f"{path.name} includes itself"
        for included in includes[path]:
            reached(included, (*above, path))

    reached(header)


@pytest.mark.long
def test_threads_share_runs_and_weights_without_a_race(tmp_path: Path) -> None:
    program = compiled(tmp_path, [*THREAD, EMULATED])
    for limit in (InstructionSet.AVX2, InstructionSet.AMX):
        answers(program, limit, threads=4)
