"""What never becomes READY: damaged files. `test_mistakes.py` has the bundles that only their numbers tell.

Digests, and then the parts that lie though their digests are right.
"""

import json
import math
import os
import pickle
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bench.subjects import Right
from heed.bundle import BundleError, read_manifest
from heed.bundle.contract import CONTRACT
from heed.bundle.digests import DIGESTS, REPORT, check_digests, write_digests
from heed.bundle.manifest import MANIFEST, write_manifest
from heed.server.errors import StartError
from heed.server.repository.verification import load_verified
from heed.server.settings import Settings
from tests.mutations.mistakes import Mistake, value_weight_scaled_by_1001_thousandths
from tests.support import Running, is_serving, start_server, stop

GRAPHS = ["model.fp32.onnx", "attentions.fp32.onnx", "weights.fp32.data"]
FILES = [DIGESTS, MANIFEST, CONTRACT, *GRAPHS, "tokenizer.json"]
NAMES_THE_PLACE = (
    r"(last_hidden_state|sentence_embedding) in case \w+ (is off by|has no usable answer).* 1e-05 is allowed"
)


def settings(folder: Path) -> Settings:
    return Settings(bundle=folder, device="cpu")


def ever_serving(server: Running) -> bool:
    """Whether the health service says SERVING at some time before the process ends."""
    while server.process.poll() is None:
        if is_serving(server.address):
            return True
        time.sleep(0.01)
    return False


def test_a_server_of_a_mistaken_bundle_never_says_serving_and_exits_with_2(
    right: Callable[[str], Right], tmp_path: Path
) -> None:
    mistake = Mistake("sentences", "weights", value_weight_scaled_by_1001_thousandths)
    mistaken = mistake.make(right("sentences"), tmp_path / "mistaken")
    server = start_server(mistaken, tmp_path / "log", "--device", "cpu")
    try:
        assert not ever_serving(server)
        assert server.process.wait() == 2
    finally:
        server.process.kill()
        server.process.wait()
    log = server.log.read_text()
    assert re.search(NAMES_THE_PLACE, log)
    assert f"heed verify {mistaken}" in log


def test_a_server_of_a_healthy_bundle_says_serving(gate_bundle: Path, tmp_path: Path) -> None:
    """A control."""
    server = start_server(gate_bundle, tmp_path / "log", "--linger-seconds", "0")
    try:
        assert ever_serving(server)
        assert stop(server) == 0
    finally:
        server.process.kill()
        server.process.wait()


def load_at_once(bundle: Path, threads: int, loads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _, report in pool.map(lambda _: load_verified(bundle, settings(bundle)), range(loads)):
            assert report.holds


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_a_healthy_bundle_raises_no_false_alarm(gate_bundle: Path, threads: int) -> None:
    load_at_once(gate_bundle, threads, loads=5)


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_minilm_raises_no_false_alarm(minilm_bundle: Path, threads: int) -> None:
    load_at_once(minilm_bundle, threads, loads=5)


# Digests


@pytest.fixture
def copy(gate_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return shutil.copytree(gate_bundle, tmp_path / "copy")


def assert_digests_refuse(folder: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        check_digests(folder)
    with pytest.raises(BundleError, match=match):
        load_verified(folder, settings(folder))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_the_files_are_all_there_are(gate_bundle: Path) -> None:
    assert sorted(path.name for path in gate_bundle.iterdir()) == sorted([*FILES, REPORT])
    check_digests(gate_bundle)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(copy: Path, name: str) -> None:
    choose = random.Random(name)
    file = copy / name
    for bit in [0, file.stat().st_size * 8 - 1] + [choose.randrange(file.stat().st_size * 8) for _ in range(5)]:
        flip(file, bit)
        assert_digests_refuse(copy, match=re.escape(str(copy)))
        flip(file, bit)
        check_digests(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bytes_left_out", [1, 100])
def test_a_truncated_file_is_refused(copy: Path, name: str, bytes_left_out: int) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-bytes_left_out])
    assert_digests_refuse(copy, match="is altered|is damaged|is not listed")


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"")
    assert_digests_refuse(copy, match="is altered|is not listed")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert_digests_refuse(copy, match=f"{name} is missing|has no {name}")


@pytest.mark.parametrize("name", ["model.onnx", "weights.int8.data", "other.npz"])
def test_an_additional_file_that_could_be_loaded_is_refused(copy: Path, name: str) -> None:
    (copy / name).touch()
    assert_digests_refuse(copy, match=f"{name} is not listed")


def test_links_and_files_of_others_change_nothing(copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the cache of a hub."""
    blobs = tmp_path / "blobs of été"
    blobs.mkdir()
    for number, path in enumerate(sorted(copy.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    (copy / "lost+found").mkdir()
    (copy / ".gitattributes").touch()
    caplog.set_level("INFO")
    _, report = load_verified(copy, settings(copy))
    assert report.holds
    assert f"{copy}: .gitattributes, lost+found: no part of the bundle, and ignored" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_another_content_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").write_bytes((copy / name).read_bytes() + b"\0")
    (copy / name).unlink()
    (copy / name).symlink_to(tmp_path / "elsewhere")
    assert_digests_refuse(copy, match=f"{name} is altered|{DIGESTS} is damaged")


def test_a_folder_in_a_file_s_place_is_refused(copy: Path) -> None:
    (copy / DIGESTS).unlink()
    (copy / DIGESTS).mkdir()
    assert_digests_refuse(copy, match=f"{DIGESTS} is damaged")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda text: text + text, id="each line twice"),
        pytest.param(lambda text: text.replace("\n", "\r"), id="other line ends"),
        pytest.param(lambda text: text.upper(), id="capitals"),
        pytest.param(lambda text: "\n" + text, id="an empty line"),
        pytest.param(lambda text: text + "# by hand\n", id="a comment"),
        pytest.param(lambda text: text.replace("  b", " *b"), id="binary mode"),
    ],
)
def test_edited_digests_are_refused(copy: Path, edit: Callable[[str], str]) -> None:
    edited = edit((copy / DIGESTS).read_text())
    assert edited != (copy / DIGESTS).read_text()
    (copy / DIGESTS).write_bytes(edited.encode())
    assert_digests_refuse(copy, match=f"{DIGESTS} is damaged|SHA256SUMS lists it")


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["limits"]["text_length"] = 79
    (copy / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    assert_digests_refuse(copy, match=f"{MANIFEST} is altered")


# Parts that lie, with right digests


@pytest.mark.parametrize(
    "file", ["../sentences/model.fp32.onnx", "/tmp/model.onnx", "..", ".hidden.onnx", "a/b.onnx", ""]
)
def test_a_manifest_cannot_lead_out_of_its_folder(copy: Path, file: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["graphs"][0]["file"] = file
    (copy / MANIFEST).write_text(json.dumps(manifest))
    write_digests(copy)
    with pytest.raises(BundleError, match=rf"{MANIFEST}: graphs\.0\.file: "):
        load_verified(copy, settings(copy))


@pytest.mark.parametrize("location", ["../sentences/weights.fp32.data", "/etc/passwd"])
def test_a_graph_s_weights_cannot_come_from_outside_its_folder(copy: Path, gate_bundle: Path, location: str) -> None:
    import onnx

    assert (gate_bundle.parent / "sentences/weights.fp32.data").exists()
    graph = onnx.load(copy / "model.fp32.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(graph, copy / "model.fp32.onnx")
    write_digests(copy)
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx cannot be loaded"):
        load_verified(copy, settings(copy))


def rewrite_contract(folder: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    with np.load(folder / CONTRACT) as arrays:
        edited = edit(dict(arrays))
    np.savez(folder / CONTRACT, **edited)  # type: ignore[arg-type]  # numpy takes one of the names for its own flag
    write_digests(folder)


def without(part: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: {name: array for name, array in arrays.items() if part not in name}


NOTHING = np.array([], "U1")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda arrays: {"at_start": NOTHING}, "has no cases"),
        (lambda arrays: arrays | {"at_start": NOTHING}, "has no case for a start"),
        (lambda arrays: arrays | {"at_start": np.array(["another"])}, "has no case for a start"),
        (without("at_start"), "at_start"),
        (without("/out/sentence_embedding"), "case one_token has no sentence_embedding"),
        (without("/out/"), "case one_token has no last_hidden_state"),
        (lambda arrays: arrays | {"one_token": np.zeros(1)}, "is damaged"),
        (lambda arrays: arrays | {"one_token/aside/x": np.zeros(1)}, "is damaged"),
    ],
)
def test_a_contract_that_proves_too_little_is_refused(
    copy: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    rewrite_contract(copy, edit)
    with pytest.raises(BundleError, match=message):
        load_verified(copy, settings(copy))


@pytest.mark.parametrize(("limit", "tried"), [("length", "80 tokens at most"), ("vocabulary", "ids up to 99")])
def test_a_limit_beyond_what_the_contract_tries_is_refused(copy: Path, limit: str, tried: str) -> None:
    manifest = read_manifest(copy)
    limits = manifest.limits.model_copy(update={limit: getattr(manifest.limits, limit) + 1})
    write_manifest(copy, manifest.model_copy(update={"limits": limits}))
    write_digests(copy)
    with pytest.raises(BundleError, match=tried):
        load_verified(copy, settings(copy))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_contract_of_nan_is_never_kept(copy: Path, value: float) -> None:
    rewrite_contract(
        copy,
        lambda arrays: {
            name: np.full_like(array, value) if "/out/" in name else array for name, array in arrays.items()
        },
    )
    with pytest.raises(StartError, match="NaN or infinity in the reference"):
        load_verified(copy, settings(copy))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("plain", [True, False])
def test_a_contract_is_never_unpickled(copy: Path, tmp_path: Path, plain: bool) -> None:
    trap = Trap(tmp_path / "sprung")
    if plain:
        (copy / CONTRACT).write_bytes(pickle.dumps(trap))
    else:
        np.savez(copy / CONTRACT, at_start=np.array(["case"]), **{"case/in/input_ids": np.array([trap], object)})  # type: ignore[arg-type]
    write_digests(copy)
    with pytest.raises(BundleError, match=f"{CONTRACT} is damaged"):
        load_verified(copy, settings(copy))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # a control


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"nothing of the kind"])
def test_a_contract_that_is_no_archive_is_refused(copy: Path, content: bytes) -> None:
    (copy / CONTRACT).write_bytes(content)
    write_digests(copy)
    with pytest.raises(BundleError, match=f"{CONTRACT} is damaged"):
        load_verified(copy, settings(copy))


def test_a_contract_that_is_a_single_array_is_refused(copy: Path) -> None:
    with (copy / CONTRACT).open("wb") as file:
        np.save(file, np.zeros(3))
    write_digests(copy)
    with pytest.raises(BundleError, match=f"{CONTRACT} is damaged"):
        load_verified(copy, settings(copy))
