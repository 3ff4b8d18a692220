"""`heed verify --against`: a bundle beside `transformers` itself."""

import json
from importlib.metadata import version
from pathlib import Path
from shutil import copytree

import pytest
from safetensors.torch import load_file, save_file

from heed.bundle.contract import read_contract
from tests.heed.support import heed


def test_a_bundle_answers_as_transformers_does(tiny: Path, tiny_bundle: Path) -> None:
    done = heed("verify", tiny_bundle, "--against", tiny)
    assert done.code == 0, done.said
    assert f"tiny beside transformers {version('transformers')}" in done.shown
    assert "equal to the reference in" in done.shown
    told = json.loads(heed("verify", tiny_bundle, "--against", tiny, "--json").out)
    assert told["against"].startswith("transformers ")
    compared = {finding["case"] for finding in told["findings"] if finding["output"] == "last_hidden_state"}
    cases = read_contract(tiny_bundle)
    assert compared == {case.name for case in cases}
    assert any("text" in case.inputs for case in cases)


def test_counted_positions_are_those_of_transformers(tiny_roberta: Path, tiny_roberta_bundle: Path) -> None:
    assert heed("verify", tiny_roberta_bundle, "--against", tiny_roberta).code == 0


def test_another_checkpoint_is_not_what_the_bundle_was_made_of(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    other = copytree(tiny, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] += 0.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    done = heed("verify", tiny_bundle, "--against", other)
    assert done.code == 1
    assert "not equal to the reference" in done.shown


def test_another_tokenizer_is_found_too(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    other = copytree(tiny, tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"[CLS]"', '"[cls]"').replace('"[MASK]"', '"[CLS]"'))
    told = json.loads(heed("verify", tiny_bundle, "--against", other, "--json").out)
    wrong = {finding["case"] for finding in told["findings"] if not finding["holds"]}
    assert wrong == {case.name for case in read_contract(tiny_bundle) if "text" in case.inputs}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "nowhere"], "--against nowhere is no folder; give the checkpoint that the bundle was made of"),
        (["--against", ".", "--endpoint", "localhost:1"], "--against is for what is computed here"),
    ],
)
def test_what_cannot_be_compared_is_told(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = heed("verify", tiny_bundle, *arguments)
    assert done.code == 2
    assert message in done.said
