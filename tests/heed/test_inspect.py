"""`heed inspect`: what a bundle is."""

import json
import re
from pathlib import Path
from shutil import copytree

import pytest

from heed.bundle import read_manifest
from heed.bundle.digests import REPORT, bundle_digest
from heed.bundle.manifest import write_manifest
from heed.cli.commands.inspect import size_text
from heed.server.engine.model import Model
from tests.heed.support import heed
from tests.support import allow_no_error


def test_it_says_what_a_bundle_is(tiny_bundle: Path) -> None:
    done = heed("inspect", tiny_bundle)
    assert done.code == 0
    assert "tiny embedding, bert, version 1" in done.shown
    assert f"{bundle_digest(tiny_bundle)} ✓ every file is as it was made" in done.shown
    assert "attentions FP32 [B, 2, 4, L, L] on request: who looks at whom" in done.shown
    assert "text BYTES [B] UTF-8, instead of the other inputs (optional)" in done.shown
    assert "limits 40 tokens in a row, 40 of a text, ids up to 99" in done.shown
    assert "weights, once for model.fp32.onnx, attentions.fp32.onnx" in done.shown
    assert f"every case: heed verify {tiny_bundle}" in done.shown
    assert "by heed export SOURCE OUT --name tiny" in done.shown
    for path in tiny_bundle.iterdir():
        assert re.search(rf"^ +{re.escape(path.name)} +[\d.]+ k?M?B", done.out, re.MULTILINE), path.name


def test_how_exact_it_is_is_measured_here(tiny_bundle: Path) -> None:
    findings = list(Model(tiny_bundle, "cpu").check_contract(everything=False))
    worst = max(findings, key=lambda found: found.error)
    done = heed("inspect", tiny_bundle)
    assert f"exact, fp32 ✓ {worst.error:.1e} at most, 1e-05 allowed ({len(findings)} comparisons" in done.shown
    told = json.loads(heed("inspect", tiny_bundle, "--json").out)["exactness"]["fp32"]
    assert (told["proven"], told["compared"], told["provider"]) == (True, len(findings), "CPUExecutionProvider")
    assert told["worst"]["error"] == worst.error


def test_as_json_it_is_the_manifest_and_more(tiny_bundle: Path) -> None:
    told = json.loads(heed("inspect", tiny_bundle, "--json").out)
    manifest = read_manifest(tiny_bundle).model_dump()
    assert {name: told[name] for name in manifest} == manifest
    assert told["digest"] == bundle_digest(tiny_bundle)
    assert told["intact"]
    assert not told["signed"]
    assert told["files"] == {path.name: path.stat().st_size for path in sorted(tiny_bundle.iterdir())}
    assert told["bytes"] == sum(told["files"].values())
    assert told["weights"] == {"weights.fp32.data": ["model.fp32.onnx", "attentions.fp32.onnx"]}


def test_quick_computes_nothing(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Model, "check_contract")
    done = heed("inspect", tiny_bundle, "--quick")
    assert done.code == 0
    assert "exact, fp32 proven at the export; not measured here: not asked for" in done.shown


def test_an_altered_bundle_is_shown_and_not_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    (bundle / "tokenizer.json").write_text("{}")
    monkeypatch.delattr(Model, "__init__")
    done = heed("inspect", bundle)
    assert done.code == 1
    assert "✗" in done.out
    assert "tokenizer.json is altered" in done.shown
    assert "not measured here: its files are altered" in done.shown
    told = json.loads(heed("inspect", bundle, "--json").out)
    assert not told["intact"]
    assert "tokenizer.json is altered" in told["damage"]


def test_answers_that_do_not_hold_are_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_no_error(monkeypatch)
    done = heed("inspect", tiny_bundle)
    assert done.code == 1
    assert "exact, fp32 ✗" in done.shown


def test_without_its_report_it_is_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    (bundle / REPORT).unlink()
    done = heed("inspect", bundle, "--quick")
    assert done.code == 0
    assert bundle_digest(tiny_bundle) in done.out
    assert REPORT not in done.out


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    done = heed("inspect", tmp_path)
    assert done.code == 2
    assert f"error: {tmp_path} has no bundle.json" in done.said


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (51930, "51.9 kB"), (90_416_640, "90.4 MB"), (2_500_000_000, "2.5 GB")],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size_text(count) == text


def test_prompts_are_shown_with_the_spaces_at_their_ends(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "bundle")
    prompts = {"query": "find: ", "none": ""}
    manifest = read_manifest(bundle).model_copy(update={"prompts": prompts, "default_prompt_name": "query"})
    write_manifest(bundle, manifest)
    shown = heed("inspect", bundle, "--quick").shown
    assert 'prompts query "find: " (default) none ""' in shown
    assert "prompts" not in heed("inspect", tiny_bundle, "--quick").shown


def test_keys_that_were_ignored_are_shown(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    manifest = read_manifest(bundle)
    provenance = manifest.provenance.model_copy(update={"ignored_keys": ["rope_theta", "cell"]})
    write_manifest(bundle, manifest.model_copy(update={"provenance": provenance}))
    assert "ignored rope_theta, cell of config.json, by --ignore-key" in heed("inspect", bundle, "--quick").shown
    assert "ignored" not in heed("inspect", tiny_bundle, "--quick").shown
