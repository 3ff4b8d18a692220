"""From a checkpoint folder to a bundle folder: the same each time, whole, or not there at all."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import escape
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from onnx import ModelProto
from safetensors.torch import load_file, save_file

import heed.export.atomic_folder
import heed.exporting
from heed.bundle import read_manifest
from heed.bundle.contract import Finding, Report, read_contract
from heed.bundle.digests import DIGESTS, REPORT, check_digests, write_digests
from heed.bundle.manifest import MANIFEST
from heed.export.passes.drop_metadata import drop_metadata
from heed.export.torch_to_onnx import capture_graph, capture_with_attentions
from heed.exporting import ExportError, export_bundle
from heed.model import CheckpointError, Encoder, load_checkpoint
from tests.support import add_pooling, save_bert

REPOSITORY = Path(__file__).resolve().parents[2]
RIGHT = Report([Finding("one_token", "last_hidden_state", 1e-7, 1e-5)])
WRONG = Report([Finding("one_token", "last_hidden_state", 3e-3, 1e-5)])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer that takes texts of up to 12 tokens, with mean pooling."""
    folder = tmp_path_factory.mktemp("export-source")
    add_pooling(save_bert(folder, num_hidden_layers=1, max_position_embeddings=16), "mean")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    return folder


@pytest.fixture(scope="session")
def exported_with_progress(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float | str]]:
    """Written where it lies, not copied there: its place must not be in it. And what the export told meanwhile."""
    folder = tmp_path_factory.mktemp("exported") / "one"
    told: list[float | str] = []
    export_bundle(source, folder, step=told.append, progress=told.append)
    return folder, told


@pytest.fixture(scope="session")
def exported(exported_with_progress: tuple[Path, list[float | str]]) -> Path:
    return exported_with_progress[0]


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graphs, and a proof that holds, for tests in which only the fate of the folder matters."""
    monkeypatch.setattr(heed.exporting, "write_graphs", lambda *_: None)
    set_proof(monkeypatch, lambda _: RIGHT)


def set_proof(monkeypatch: pytest.MonkeyPatch, prove: Callable[[Path], Report]) -> None:
    """Replaces the comparison with the reference."""
    monkeypatch.setattr(heed.exporting, "prove", lambda folder, _: prove(folder))
    monkeypatch.setattr(heed.exporting, "explain", lambda *_: "it begins somewhere")


def everything_in(folder: Path) -> list[str]:
    """Hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_long_steps_say_how_far_they_are(exported_with_progress: tuple[Path, list[float | str]]) -> None:
    steps: dict[str, list[float]] = {}
    for told in exported_with_progress[1]:
        if isinstance(told, str):
            steps[told] = shares = []
        else:
            shares.append(told)
    told_of = {name: shares for name, shares in steps.items() if shares}
    assert list(told_of) == ["computing the reference's answers in float64", "comparing the graphs with the reference"]
    for shares in told_of.values():
        assert len(shares) > 20
        assert shares == sorted(shares)
        assert shares[0] < 0.1
        assert shares[-1] == pytest.approx(1)


# The same each time


def test_another_process_in_another_place_writes_the_same_bundle(source: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "moved")
    command = [sys.executable, "-m", "heed", "export", "moved", "deep/two", "--name", "one"]
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths, "TZ": "Asia/Tokyo"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=250)
    check_digests(tmp_path / "deep/two")
    assert (tmp_path / "deep/two" / DIGESTS).read_text() == (exported / DIGESTS).read_text()


def test_another_weight_or_name_makes_another_bundle(
    source: Path, exported: Path, tmp_path: Path, no_graph: None
) -> None:
    """A control: so the digests would tell."""
    export_bundle(source, tmp_path / "other")
    assert (tmp_path / "other" / MANIFEST).read_bytes() != (exported / MANIFEST).read_bytes()
    shutil.copytree(source, tmp_path / "source")
    add_pooling(tmp_path / "source", "cls")
    export_bundle(tmp_path / "source", tmp_path / "one")
    for name in (MANIFEST, "contract.npz"):
        assert (tmp_path / "one" / name).read_bytes() != (exported / name).read_bytes()


# No path of the machine that made it

TELLTALES = [
    str(REPOSITORY).encode(),
    sys.prefix.encode(),
    b".py",
    b"site-packages",
    b"/tmp",
    b'File "',
    b"stack_trace",
]


def test_a_bundle_holds_no_path_of_this_machine(source: Path, exported: Path) -> None:
    for file in exported.iterdir():
        if file.suffix == ".npz":
            continue  # floats: any three bytes are somewhere among them
        content = file.read_bytes()
        for telltale in [*TELLTALES, str(source).encode(), str(exported).encode()]:
            assert telltale not in content, file.name


def test_the_exporter_s_own_graph_does_hold_them(source: Path, tmp_path: Path) -> None:
    """A control."""
    captured = capture_graph(load_checkpoint(source).encoder, tmp_path / "weights")
    for content, expected in (
        (captured.SerializeToString(), True),
        (drop_metadata(captured).SerializeToString(), False),
    ):
        assert (str(REPOSITORY).encode() in content) is expected
        assert (b".py" in content) is expected


# Whole, or not there at all


def test_what_is_proven_is_the_finished_bundle(
    source: Path, tmp_path: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(folder: Path) -> Report:
        check_digests(folder)
        assert not (tmp_path / "out").exists()
        seen.append(sorted(path.name for path in folder.iterdir()))
        return RIGHT

    set_proof(monkeypatch, look)
    assert export_bundle(source, tmp_path / "out") is RIGHT
    assert seen == [sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != REPORT)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_a_bundle_that_is_not_proven(
    source: Path, tmp_path: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        "last_hidden_state in case one_token is off by 3.0e-03, 1e-05 is allowed; it begins .*; nothing was written"
    )
    set_proof(monkeypatch, lambda _: WRONG)
    with pytest.raises(ExportError, match=message):
        export_bundle(source, tmp_path / "out")
    assert everything_in(tmp_path) == []


def raising(error: BaseException) -> Callable[[Path], Report]:
    def prove_nothing(folder: Path) -> Report:
        assert (folder / DIGESTS).exists()
        raise error

    return prove_nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck"), OSError("no space")])
def test_nothing_is_left_when_the_proof_is_interrupted(
    source: Path, tmp_path: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    set_proof(monkeypatch, raising(error))
    with pytest.raises(type(error)):
        export_bundle(source, tmp_path / "out")
    assert everything_in(tmp_path) == []


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def give_a_tokenizer_of_a_larger_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["the"] = 100
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, r"model\.safetensors is damaged or truncated"),
        (damage_tokenizer, r"tokenizer\.json is not a tokenizer"),
        (give_a_tokenizer_of_a_larger_vocabulary, "gives ids up to 100, the model's vocabulary ends at 99"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_nothing_is_left_of_a_bad_source(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damaged = shutil.copytree(source, tmp_path / "source")
    damage(damaged)
    (tmp_path / "place").mkdir()
    with pytest.raises(CheckpointError, match=message):
        export_bundle(damaged, tmp_path / "place/out")
    assert everything_in(tmp_path / "place") == []


def test_a_graph_that_answers_wrongly_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real proof, on a graph with other weights."""

    def mistaken(encoder: Encoder, data: Path) -> tuple[ModelProto, ModelProto]:
        with torch.no_grad():
            dict(encoder.named_parameters())["embeddings.inputs.tokens.weight"].mul_(1.01)  # the contract is there
        return capture_with_attentions(encoder, data)

    monkeypatch.setattr("heed.export.graph_writer.capture_with_attentions", mistaken)
    with pytest.raises(ExportError, match="does not answer as the reference"):
        export_bundle(source, tmp_path / "out")
    assert everything_in(tmp_path) == []


# What float32 cannot hold


def far_from_zero(source: Path, folder: Path, offset: float) -> Path:
    """A copy whose embeddings lie so far from zero that float32 loses what the first norm brings out again."""
    copy = shutil.copytree(source, folder)
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.position_embeddings.weight"] += offset
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_budgets_that_float32_makes_wide_are_told_in_the_output_and_in_the_report(
    source: Path, tmp_path: Path, no_graph: None
) -> None:
    told = re.compile(
        r"(\w+) may be off by \de-0[34] of scale in case \w+, where PyTorch's own float32 is off by \de-0[45]"
    )
    notes: list[str] = []
    export_bundle(far_from_zero(source, tmp_path / "source", 1e3), tmp_path / "out", note=notes.append)
    wide = {found[1]: note for note in notes if (found := told.fullmatch(note))}
    assert wide.keys() == {"attentions", "last_hidden_state", "sentence_embedding", "unnormalized_embedding"}
    report = (tmp_path / "out" / REPORT).read_text("utf-8")
    assert all(f'<p class="wide">{escape(note)}.</p>' in report for note in wide.values())


def test_a_model_that_float32_cannot_hold_is_refused(source: Path, tmp_path: Path, no_graph: None) -> None:
    """Its graphs are as wrong as PyTorch is: a budget that lets them pass would prove nothing."""
    far = far_from_zero(source, tmp_path / "source", 1e5)
    with pytest.raises(
        ExportError, match=r"may be off by \de-0[12] .*; more than 1e-02 is no answer any more"
    ) as refused:
        export_bundle(far, tmp_path / "out")
    assert "PyTorch computes of them in float32 is as far off" in str(refused.value)
    assert not (tmp_path / "out").exists()


# In the place of another


def test_an_existing_folder_is_not_replaced_unasked(source: Path, tmp_path: Path, no_graph: None) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="out exists; --force replaces it"):
        export_bundle(source, tmp_path / "out")
    assert everything_in(tmp_path) == ["out"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle, by its files."""
    (tmp_path / "out").mkdir()
    for name in ("bundle.json", "old.onnx"):
        (tmp_path / "out" / name).write_text("mine")
    write_digests(tmp_path / "out")
    return tmp_path / "out"


OLD = ["out", "out/SHA256SUMS", "out/bundle.json", "out/old.onnx"]


def test_force_replaces_a_bundle(source: Path, old: Path, no_graph: None) -> None:
    export_bundle(source, old, force=True)
    assert not (old / "old.onnx").exists()
    check_digests(old)
    assert [path.name for path in old.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("proof", [lambda _: WRONG, raising(KeyboardInterrupt())])
def test_what_is_to_be_replaced_stays_if_the_proof_fails(
    source: Path, old: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch, proof: Callable[[Path], Report]
) -> None:
    set_proof(monkeypatch, proof)
    with pytest.raises((ExportError, KeyboardInterrupt)):
        export_bundle(source, old, force=True)
    assert everything_in(old.parent) == OLD


def test_what_is_to_be_replaced_comes_back_if_the_replacement_is_interrupted(
    source: Path, old: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heed.export.atomic_folder, "_swap", lambda *_: False)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(source, old, force=True)
    assert everything_in(old.parent) == OLD


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda out: (out / "bundle.json").unlink(), "is no bundle"),
        (
            lambda out: (out / "thesis.txt").write_text("three years"),
            "holds thesis.txt, which is no file of the bundle",
        ),
        (lambda out: (out / "photos").mkdir(), "holds photos, which is no file of the bundle"),
        (lambda out: (out / "SHA256SUMS").unlink(), "is no whole bundle"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(
    source: Path, old: Path, spoil: Callable[[Path], object], reason: str, force: bool
) -> None:
    spoil(old)
    before = everything_in(old)
    with pytest.raises(ExportError, match=f"out exists and {reason}.*; --force replaces bundles only, so choose"):
        export_bundle(source, old, force=force)
    assert everything_in(old) == before


def test_a_file_is_never_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="out exists and is no folder"):
        export_bundle(source, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(("below", "verb"), [(".", "is"), ("models/mine", "holds")])
def test_the_source_is_never_replaced_whatever_lies_beside_it(source: Path, old: Path, below: str, verb: str) -> None:
    shutil.copytree(source, old / below, dirs_exist_ok=True)
    before = everything_in(old)
    with pytest.raises(ExportError, match=f"out {verb} the source; choose another OUT"):
        export_bundle(old / below, old, force=True)
    assert everything_in(old) == before


def test_what_came_to_be_there_during_the_export_is_not_replaced(
    source: Path, old: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_: Path) -> Report:
        (old / "thesis.txt").write_text("three years")
        return RIGHT

    set_proof(monkeypatch, slow)
    with pytest.raises(ExportError, match=r"holds thesis\.txt"):
        export_bundle(source, old, force=True)
    assert (old / "thesis.txt").read_text() == "three years"
    assert [path.name for path in old.parent.iterdir()] == ["out"]


# What the manifest says


def test_keys_that_were_ignored_are_on_record(source: Path, tmp_path: Path, no_graph: None) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 1e4, "architectures": ["Contriever"]}))
    notes: list[str] = []
    export_bundle(copy, tmp_path / "out", ignore_keys=["rope_theta"], note=notes.append)
    provenance = read_manifest(tmp_path / "out").provenance
    assert provenance.ignored_keys == ["rope_theta"]
    assert provenance.command == "heed export SOURCE OUT --name out --ignore-key rope_theta"
    assert "architectures names Contriever, which is not known here: only the encoder is read" in notes
    with pytest.raises(ExportError, match="a model in memory has none"):
        export_bundle(load_checkpoint(source), tmp_path / "other", ignore_keys=["rope_theta"])


def test_rows_may_be_shorter_than_the_model_could_take(source: Path, tmp_path: Path, no_graph: None) -> None:
    export_bundle(source, tmp_path / "out", max_length=9)
    assert read_manifest(tmp_path / "out").limits.length == 9
    assert max(case.outputs["last_hidden_state"].shape[1] for case in read_contract(tmp_path / "out")) == 9
    with pytest.raises(ExportError, match="has it in its EncoderConfig"):
        export_bundle(load_checkpoint(source), tmp_path / "other", max_length=9)


def test_the_name_is_the_folder_s_unless_one_is_given(
    source: Path, exported: Path, tmp_path: Path, no_graph: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_manifest(exported).name == "one"
    export_bundle(source, tmp_path / "folder", name="another")
    assert read_manifest(tmp_path / "folder").name == "another"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_bundle(source, Path(), force=True)
    assert read_manifest(tmp_path / "here").name == "here"


@pytest.mark.parametrize("name", ["a b", "../a", ".a", "a/b", "é", "a" * 129])
def test_a_name_that_cannot_be_one_is_refused_before_any_work(source: Path, tmp_path: Path, name: str) -> None:
    def never(_: str) -> None:
        raise AssertionError("work began")

    with pytest.raises(ExportError, match="cannot be a model's name"):
        export_bundle(source, tmp_path / "out", name=name, step=never)
    assert everything_in(tmp_path) == []


def specs(bundle: Path, side: str) -> dict[str, tuple[str, list[int], bool]]:
    manifest = json.loads((bundle / MANIFEST).read_text())
    return {spec["name"]: (spec["datatype"], spec["shape"], spec["optional"]) for spec in manifest[side]}


def test_the_manifest_says_what_the_model_takes_and_gives(exported: Path) -> None:
    assert specs(exported, "inputs") == {
        "input_ids": ("INT64", [-1, -1], True),  # text can stand in its place
        "attention_mask": ("INT64", [-1, -1], True),
        "token_type_ids": ("INT64", [-1, -1], True),
        "text": ("BYTES", [-1], True),
        "text_pair": ("BYTES", [-1], True),
    }
    assert specs(exported, "outputs") == {
        "last_hidden_state": ("FP32", [-1, -1, 32], False),
        "sentence_embedding": ("FP32", [-1, 32], False),
        "unnormalized_embedding": ("FP32", [-1, 32], False),
        "tokens": ("BYTES", [-1, -1], False),
        "offsets": ("INT64", [-1, -1, 2], False),
        "attentions": ("FP32", [-1, 1, 4, -1, -1], False),
    }
    manifest = json.loads((exported / MANIFEST).read_text())
    assert manifest["task"] == "embedding"
    assert manifest["limits"] == {"vocabulary": 100, "token_types": 2, "length": 16, "text_length": 12}
    assert manifest["position_rule"] == {"kind": "column", "padding_id": 0}
    plain = ["last_hidden_state", "sentence_embedding", "unnormalized_embedding"]
    assert [(graph["kind"], graph["outputs"]) for graph in manifest["graphs"]] == [
        ("answers", plain),
        ("attentions", [*plain, "attentions"]),
    ]
    assert all((exported / graph["file"]).is_file() for graph in manifest["graphs"])


def test_the_manifest_of_a_model_without_text_and_pooling(tiny_roberta_bundle: Path) -> None:
    assert specs(tiny_roberta_bundle, "inputs") == {
        "input_ids": ("INT64", [-1, -1], False),
        "attention_mask": ("INT64", [-1, -1], True),
        "token_type_ids": ("INT64", [-1, -1], True),
    }
    assert specs(tiny_roberta_bundle, "outputs") == {
        "last_hidden_state": ("FP32", [-1, -1, 32], False),
        "attentions": ("FP32", [-1, 2, 4, -1, -1], False),
    }
    manifest = json.loads((tiny_roberta_bundle / MANIFEST).read_text())
    assert manifest["task"] == "encoder"
    assert manifest["limits"]["length"] == 40  # 42 positions, of which two lie before the first token's
    assert manifest["position_rule"] == {"kind": "counted", "padding_id": 1}
    assert not (tiny_roberta_bundle / "tokenizer.json").exists()


def test_the_manifest_says_where_the_bundle_comes_from(source: Path, exported: Path) -> None:
    provenance = json.loads((exported / MANIFEST).read_text())["provenance"]
    read = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ]
    assert provenance["source"] == {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in read}
    assert provenance["family"] == "bert"
    assert provenance["command"] == "heed export SOURCE OUT --name one"
    assert provenance["tools"] == {
        tool: version(tool) for tool in ("torch", "onnx", "onnxscript", "tokenizers", "numpy", "heed-serve")
    }
    assert (exported / "tokenizer.json").read_bytes() == load_checkpoint(source).tokenizer_json()
