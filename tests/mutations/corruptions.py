"""Damaged bundles that never reach the numbers: digests refuse them, or the parts where those are new.

`digests` refuse what was altered after the export. `parts` are what a bundle consists of: a manifest that cannot lead
out of its folder, graphs that onnxruntime loads from that folder alone, a contract in which nothing is unpickled.
"""

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from heed.bundle.contract import CONTRACT
from heed.bundle.digests import DIGESTS, write_digests
from heed.bundle.manifest import MANIFEST, TOKENIZER
from heed.bundle.sequence_packing import Arrays
from heed.export.graph_writer import WEIGHTS

Json = dict[str, Any]
Change = Callable[[Path], None]
PLAIN, WITH_ATTENTIONS = "model.fp32.onnx", "attentions.fp32.onnx"
SPRUNG = "sprung"  # the folder beside a bundle that a pickle would make


@dataclass(frozen=True)
class Corruption:
    """What is done to the copy of a right bundle, and what must refuse it, before any number is looked at."""

    name: str
    change: Change
    by: Literal["digests", "parts"] = "digests"

    def make(self, folder: Path) -> None:
        """Damages the bundle `folder`. Where its parts must refuse it, its digests are made anew."""
        self.change(folder)
        if self.by == "parts":
            write_digests(folder)


# --- Files -----------------------------------------------------------------------------------------------------------


def flip_a_bit(name: str, folder: Path) -> None:
    """Anywhere in the file; the same place in every run."""
    content = bytearray((folder / name).read_bytes())
    bit = random.Random(name).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(content)


def truncate(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: random.Random(name).randrange(len(content))])


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def add(name: str, folder: Path) -> None:
    (folder / name).write_text("more")


def link(name: str, folder: Path) -> None:
    """To another content, outside of the folder."""
    flip_a_bit(name, folder)
    outside = folder.with_name(f"{folder.name}.outside")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def link_to_nothing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/1")


def swap(first: str, second: str, folder: Path) -> None:
    aside = folder / "aside"
    (folder / first).rename(aside)
    (folder / second).rename(folder / first)
    aside.rename(folder / second)


# --- SHA256SUMS ------------------------------------------------------------------------------------------------------


def edit_digests(edit: Callable[[str], str], folder: Path) -> None:
    text = (folder / DIGESTS).read_text()
    edited = edit(text)
    assert edited != text
    (folder / DIGESTS).write_text(edited)


def _without_the_first_line(text: str) -> str:
    return text.partition("\n")[2]


def _of_another_file(text: str) -> str:
    """The first line has the digest of the second."""
    first, second, *others = text.splitlines()
    return "\n".join([second[:64] + first[64:], second, *others, ""])


def _with_a_file_outside(text: str) -> str:
    return text + f"{'0' * 64}  ../outside\n"


# --- bundle.json -----------------------------------------------------------------------------------------------------


def edit_manifest(edit: Callable[[Json], None], folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def _lower_a_limit(manifest: Json) -> None:
    manifest["limits"]["text_length"] -= 1


def _raise_a_limit(limit: str, manifest: Json) -> None:
    manifest["limits"][limit] += 1


def _rename_a_label(manifest: Json) -> None:
    manifest["labels"] = ["other"]


def _count_positions(manifest: Json) -> None:
    manifest["position_rule"]["kind"] = "counted"


def _swap_outputs(manifest: Json) -> None:
    manifest["graphs"][0]["outputs"].reverse()


def _call_it_int8(manifest: Json) -> None:
    for graph in manifest["graphs"]:
        graph["precision"] = "int8"


def _lead_to(file: str, manifest: Json) -> None:
    manifest["graphs"][0]["file"] = file


def _add_an_unknown_key(manifest: Json) -> None:
    manifest["run"] = "something"


# --- Graphs and the contract -----------------------------------------------------------------------------------------


def take_weights_from(location: str, folder: Path) -> None:
    """Lets the graph read its weights elsewhere; they are there, and right."""
    place = location.format(outside=folder.with_name(WEIGHTS))
    (folder / place).resolve().write_bytes((folder / WEIGHTS).read_bytes())
    graph = onnx.load(folder / PLAIN, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(graph, folder / PLAIN)


def edit_contract(edit: Callable[[Arrays], Arrays], folder: Path) -> None:
    with np.load(folder / CONTRACT) as arrays:
        edited = edit(dict(arrays))
    np.savez(folder / CONTRACT, **edited)  # type: ignore[arg-type]  # numpy takes one of the names for its own flag


def _without(part: str, arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if part not in name}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


def is_sprung(folder: Path) -> bool:
    """Whether a pickle in the bundle `folder` was executed."""
    return _sprung(folder).exists()


def _sprung(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{SPRUNG}")


def pickle_in_the_contract_s_place(folder: Path) -> None:
    (folder / CONTRACT).write_bytes(pickle.dumps(Trap(_sprung(folder))))


def pickle_in_an_array_of_the_contract(folder: Path) -> None:
    trap = np.empty(1, object)
    trap[0] = Trap(_sprung(folder))
    edit_contract(lambda arrays: arrays | {"one_token/in/input_ids": trap}, folder)


# --- All of them -----------------------------------------------------------------------------------------------------


def _manifest(name: str, edit: Callable[[Json], None], by: Literal["digests", "parts"]) -> Corruption:
    return Corruption(f"manifest: {name}", partial(edit_manifest, edit), by)


def corruptions(files: list[str]) -> list[Corruption]:
    """All of them, for a bundle of an embedding model with these files."""
    of_each_file = {"a flipped bit in": flip_a_bit, "truncated:": truncate, "missing:": remove}
    return [
        *(
            Corruption(f"{what} {name}", partial(change, name))
            for what, change in of_each_file.items()
            for name in files
        ),
        Corruption("an additional graph", partial(add, "model.onnx")),
        Corruption("additional weights", partial(add, "weights.int8.data")),
        Corruption("an additional contract", partial(add, "other.npz")),
        Corruption("a link to other weights", partial(link, WEIGHTS)),
        Corruption("a link to another tokenizer", partial(link, TOKENIZER)),
        Corruption("a link to another graph", partial(link, PLAIN)),
        Corruption("a link to nothing", partial(link_to_nothing, WEIGHTS)),
        Corruption("two graphs swapped", partial(swap, PLAIN, WITH_ATTENTIONS)),
        Corruption("tokenizer and contract swapped", partial(swap, TOKENIZER, CONTRACT)),
        Corruption("SHA256SUMS: a line left out", partial(edit_digests, _without_the_first_line)),
        Corruption("SHA256SUMS: the digest of another file", partial(edit_digests, _of_another_file)),
        Corruption("SHA256SUMS: a file outside of the folder", partial(edit_digests, _with_a_file_outside)),
        Corruption("SHA256SUMS: capitals", partial(edit_digests, str.upper)),
        Corruption("SHA256SUMS: a comment", partial(edit_digests, lambda text: text + "# by hand\n")),
        _manifest("a lower limit", _lower_a_limit, "digests"),
        _manifest("another label", _rename_a_label, "digests"),
        _manifest("another position rule", _count_positions, "digests"),
        _manifest("outputs of a graph swapped", _swap_outputs, "digests"),
        _manifest("another precision", _call_it_int8, "digests"),
        *(
            _manifest(f"a graph in {file!r}", partial(_lead_to, file), "parts")
            for file in ("../right/model.fp32.onnx", "/tmp/model.onnx", "..", ".hidden.onnx", "a/b.onnx", "")
        ),
        _manifest("outputs of a graph swapped, new digests", _swap_outputs, "parts"),
        _manifest("another precision, new digests", _call_it_int8, "parts"),
        _manifest("longer rows than were tried", partial(_raise_a_limit, "length"), "parts"),
        _manifest("more ids than were tried", partial(_raise_a_limit, "vocabulary"), "parts"),
        _manifest("an unknown key", _add_an_unknown_key, "parts"),
        Corruption("weights in ../", partial(take_weights_from, f"../{WEIGHTS}"), "parts"),
        Corruption("weights in ../../", partial(take_weights_from, f"../../{WEIGHTS}"), "parts"),
        Corruption("weights at an absolute path", partial(take_weights_from, "{outside}"), "parts"),
        Corruption("a pickle in the contract's place", pickle_in_the_contract_s_place, "parts"),
        Corruption("a pickle in an array of the contract", pickle_in_an_array_of_the_contract, "parts"),
        Corruption("no answers in the contract", partial(edit_contract, partial(_without, "/out/")), "parts"),
        Corruption("no case for a start", partial(edit_contract, partial(_without, "at_start")), "parts"),
    ]
