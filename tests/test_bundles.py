"""Kept bundles: what must be exported anew is, and a damaged one is never used."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from heed.bundle.digests import check_digests
from heed.bundle.manifest import Precision
from heed.export import graph_writer
from heed.model import Checkpoint, Encoder
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, TokensConfig
from heed.model.softmax import hardmax
from tests import bundles
from tests.bundles import ROOT, drop_least_used, export_bundle, export_graph, imported_files

INT8: tuple[Precision, ...] = ("int8",)


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the bundles that are exported, in an empty place for kept ones; each is a file of 1,000 bytes."""
    made: list[str] = []

    def export(source: object, out: Path, name: str, **options: Any) -> None:
        made.append(name)
        out.mkdir()
        (out / "model").write_bytes(bytes(1000))

    monkeypatch.setattr("heed.exporting.export_bundle", export)
    monkeypatch.setattr(bundles, "KEPT", tmp_path / "kept")
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source/1_Pooling").mkdir(parents=True)
    (tmp_path / "source/config.json").write_text("{}")
    (tmp_path / "source/1_Pooling/config.json").write_text("{}")
    return tmp_path / "source"


def encoder(layers: int = 1, **attention: Any) -> Encoder:
    torch.manual_seed(0)
    layer = LayerConfig(AttentionConfig(2, **attention), FeedForwardConfig(8))
    return Encoder(EncoderConfig(TokensConfig(9), 4, (layer,) * layers, 6))


def test_the_same_source_is_exported_once(exports: list[str], source: Path, tmp_path: Path) -> None:
    for number in range(3):
        out = export_bundle(source, tmp_path / str(number), "one")
        assert (out / "model").read_bytes() == bytes(1000)
    assert exports == ["one"]
    export_bundle(encoder(), tmp_path / "x", "two")
    export_bundle(Checkpoint(encoder()), tmp_path / "y", "two")
    assert exports == ["one", "two"]


def test_the_same_graph_is_captured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[Path] = []

    def capture(encoder: Encoder, path: Path) -> None:
        captured.append(path)
        path.write_bytes(bytes(1000))

    monkeypatch.setattr("heed.export.torch_to_onnx.export_graph", capture)
    monkeypatch.setattr(bundles, "KEPT", tmp_path / "kept")
    for number, model in enumerate([encoder(), encoder(), encoder(layers=2)]):
        path = tmp_path / str(number) / "graph.onnx"
        path.parent.mkdir()
        export_graph(model, path)
        assert path.read_bytes() == bytes(1000)
    assert len(captured) == 2


def test_a_copy_that_a_test_changes_changes_no_other(exports: list[str], source: Path, tmp_path: Path) -> None:
    (export_bundle(source, tmp_path / "x", "one") / "model").write_bytes(b"")
    assert (export_bundle(source, tmp_path / "y", "one") / "model").read_bytes() == bytes(1000)
    assert exports == ["one"]


def flip_a_bit(kept: Path) -> None:
    (kept / "model").write_bytes(bytes(999) + b"\1")


def lose_a_file(kept: Path) -> None:
    (kept / "model").unlink()


def add_a_file(kept: Path) -> None:
    (kept / "more").write_text("")


def lose_the_digest(kept: Path) -> None:
    kept.with_suffix(".sha256").unlink()


def empty_the_digest(kept: Path) -> None:
    kept.with_suffix(".sha256").write_text("")


@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_file, add_a_file, lose_the_digest, empty_the_digest])
def test_a_damaged_bundle_is_exported_again(
    exports: list[str], source: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    export_bundle(source, tmp_path / "x", "one")
    (kept,) = (path for path in bundles.KEPT.iterdir() if path.is_dir())
    damage(kept)
    out = export_bundle(source, tmp_path / "y", "one")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"model": bytes(1000)}
    assert exports == ["one", "one"]


def test_an_export_that_fails_keeps_nothing(
    exports: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, out: Path, name: str, **options: Any) -> None:
        out.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("heed.exporting.export_bundle", fail)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(source, tmp_path / "x", "one")
    assert [path for path in bundles.KEPT.iterdir() if path.suffix != ".lock"] == []
    export_bundle(source, tmp_path / "x", "one")
    assert exports == ["one"]


def changed_weight() -> Encoder:
    made = encoder()
    with torch.no_grad():
        next(made.parameters()).view(-1)[0] += 1
    return made


def test_each_thing_that_a_bundle_is_made_of_is_in_its_key(
    exports: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [
        bundles._bundle_key(source, "one", ()),
        bundles._bundle_key(source, "two", ()),
        bundles._bundle_key(source, "one", INT8),
    ]
    (source / "1_Pooling/config.json").write_text("[]")
    keys.append(bundles._bundle_key(source, "one", ()))
    (source / "1_Pooling").rename(source / "2_Pooling")
    keys.append(bundles._bundle_key(source, "one", ()))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    first = Checkpoint(encoder())
    models: list[Checkpoint | Encoder] = [first, replace(first, tokenizer=tokenizer), replace(first, family="bert")]
    models += [encoder(2), encoder(normalize=hardmax), encoder(rotary_base=100.0), changed_weight()]
    keys += [bundles._bundle_key(made, "one", ()) for made in models]
    monkeypatch.setattr(graph_writer, "DENSE_COLUMNS", 3)
    keys.append(bundles._bundle_key(first, "one", ()))
    monkeypatch.setattr(bundles, "_tools", lambda: "torch 99")
    keys.append(bundles._bundle_key(first, "one", ()))
    monkeypatch.setattr(bundles, "_code", lambda: "another")
    keys.append(bundles._bundle_key(first, "one", ()))
    assert len(set(keys)) == len(keys)


def test_code_that_would_be_missing_from_the_key_is_refused() -> None:
    class Own(Encoder):
        pass

    with pytest.raises(AssertionError, match="another class"):
        bundles._bundle_key(Own(encoder().config), "one", ())
    with pytest.raises(AssertionError, match="without a name"):
        bundles._bundle_key(encoder(normalize=lambda scores, *_: scores), "one", ())


def test_all_code_that_an_export_loads_is_in_the_key() -> None:
    program = "import sys, heed.exporting\nprint(*(name for name in sys.modules if name.startswith('heed.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {bundles._file_of(name.split(".")) for name in done.stdout.split()}
    found = imported_files("heed.exporting")
    assert loaded - {ROOT / "heed/extras.py"} <= found  # all that `heed` itself imports: words for an ImportError
    assert {
        ROOT / "heed/model/attention.py",
        ROOT / "heed/export/passes/quantize_to_int8.py",
        ROOT / "heed/bundle/sequence_packing.py",
    } <= found
    assert ROOT / "heed/client/sync.py" not in found


def test_the_bundles_that_were_used_last_are_kept(exports: list[str], source: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        export_bundle(source, tmp_path / name)
    export_bundle(source, tmp_path / "again", "one")
    drop_least_used(limit=2500)
    for name in ("three", "one", "two"):
        export_bundle(source, tmp_path / f"{name} later", name)
    assert exports == ["one", "two", "three", "two"]


def test_a_bundle_that_somebody_is_about_to_use_is_not_dropped(
    exports: list[str], source: Path, tmp_path: Path
) -> None:
    export_bundle(source, tmp_path / "x", "one")
    (kept,) = (path for path in bundles.KEPT.iterdir() if path.is_dir())
    with FileLock(f"{kept}.lock"):
        drop_least_used(limit=0)
    assert kept.is_dir()
    drop_least_used(limit=0)
    assert not kept.exists()


def test_a_kept_bundle_is_whole(tiny_bundle: Path) -> None:
    check_digests(tiny_bundle)
