"""What a manifest may say, and what does not fit together."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from heed.bundle import BundleError, read_manifest
from heed.bundle.manifest import MANIFEST, Graph, Image, Manifest, TensorSpec, write_manifest
from tests.server.support import manifest_of


def graph(longest: int | None, file: str = "a.onnx") -> Graph:
    return Graph(precision="fp32", file=file, outputs=["last_hidden_state"], longest=longest)


def test_graphs_for_short_sequences_come_first() -> None:
    graphs = [graph(None, "any.onnx"), graph(20, "short.onnx"), graph(30, "middle.onnx")]
    found = manifest_of("input_ids", graphs=graphs).graphs_of("fp32")
    assert [one.file for one in found] == ["short.onnx", "middle.onnx", "any.onnx"]


def test_a_kind_of_graph_that_is_not_there_is_told() -> None:
    with pytest.raises(BundleError, match="made has no fp32 graph of attentions, only fp32 answers"):
        manifest_of("input_ids").graphs_of("fp32", "attentions")
    with pytest.raises(BundleError, match="made has no int8 graph of answers"):
        manifest_of("input_ids").graphs_of("int8")


@pytest.mark.parametrize(
    ("inputs", "fields", "message"),
    [
        (["input_ids"], {"graphs": [graph(39)]}, "no fp32 graph for sequences of 40 columns"),
        (["input_ids"], {"outputs": ["logits", "labels"], "labels": []}, "labels are among the outputs"),
        (["input_ids"], {"outputs": ["labels"]}, "labels are among the outputs"),
        (["input_ids"], {"outputs": ["attentions"], "graphs": [graph(None)]}, "no graph computes them"),
        (["pixel_values"], {}, "the size of an image is not given"),
    ],
)
def test_what_does_not_fit_together_is_refused(inputs: list[str], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        manifest_of(*inputs, **fields)


def test_precisions_are_listed_once_the_most_exact_first() -> None:
    graphs = [graph(None, f"{number}.onnx") for number in range(4)]
    for number, precision in enumerate(["int8", "fp32", "fp16", "int8"]):
        graphs[number] = graphs[number].model_copy(update={"precision": precision, "proven": number != 3})
    manifest = manifest_of("input_ids", graphs=graphs)
    assert manifest.precisions == ["fp32", "fp16", "int8"]
    assert [manifest.is_proven(precision) for precision in manifest.precisions] == [True, True, False]


def test_a_graph_up_to_the_longest_row_is_enough() -> None:
    assert manifest_of("input_ids", graphs=[graph(40)]).graphs_of("fp32") == [graph(40)]


def test_an_image_has_a_token_for_each_patch_and_the_class_token() -> None:
    assert Image(channels=3, height=4, width=6, patch=2).tokens == 7


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    manifest = manifest_of(
        "pixel_values",
        outputs=["logits", "scores", "labels", "attentions"],
        score_activation="sigmoid",
        image=Image(channels=3, height=4, width=6, patch=2),
        labels=["早", 'a "b"'],
        aligned=True,
        first_tokens_global=2,
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    ("names", "given", "read", "activation"),
    [
        (["a", "b"], ["logits", "labels"], ["logits", "labels", "scores"], "softmax"),
        (["fit"], ["logits"], ["logits", "scores", "labels"], "sigmoid"),
        (["fit"], ["logits", "scores"], ["logits", "scores", "labels"], "sigmoid"),
    ],
)
def test_a_bundle_that_is_older_than_scores_or_a_single_label_has_them(
    tmp_path: Path, names: list[str], given: list[str], read: list[str], activation: str
) -> None:
    write_manifest(tmp_path, manifest_of("input_ids", outputs=given, labels=names))
    manifest = read_manifest(tmp_path)
    assert [spec.name for spec in manifest.outputs] == read
    logits = manifest.output_specs["logits"]
    assert manifest.output_specs["scores"].shape == logits.shape
    assert (manifest.output_specs["labels"].datatype, manifest.output_specs["labels"].shape) == (
        "BYTES", logits.shape[:-1],
    )  # fmt: skip
    assert manifest.label_activation == activation


@pytest.mark.parametrize("file", ["report.html", "SHA256SUMS.sig", "../model.onnx", ".model.onnx", "a/model.onnx"])
def test_a_graph_that_no_digest_covers_is_refused(file: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        graph(None, file)


@pytest.mark.parametrize(
    ("shape", "letters"), [([-1], "[B]"), ([-1, -1, 384], "[B, L, 384]"), ([-1, 6, 12, -1, -1], "[B, 6, 12, L, L]")]
)
def test_a_shape_is_written_in_letters(shape: list[int], letters: str) -> None:
    assert TensorSpec(name="x", datatype="FP32", shape=shape).letters == letters


def test_a_bundle_of_before_knows_no_prompts(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest_of("input_ids"))
    content = json.loads((tmp_path / MANIFEST).read_text())
    for name in ("prompts", "default_prompt_name", "unit_length"):
        del content[name]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    manifest = read_manifest(tmp_path)
    assert (manifest.prompts, manifest.default_prompt_name, manifest.unit_length) == ({}, None, None)


def test_the_default_prompt_is_one_of_the_prompts() -> None:
    assert manifest_of("input_ids", prompts={"query": "q: "}, default_prompt_name="query").prompts == {"query": "q: "}
    with pytest.raises(ValidationError, match="the default prompt 'passage' is none of the prompts"):
        manifest_of("input_ids", prompts={"query": "q: "}, default_prompt_name="passage")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"format": 2},
            r"the bundle has format 2, made by heed 9\.1; this is heed [\d.]+, which reads format 1: use a",
        ),
        (
            {"extra": 1, "limits": {"length": 9, "more": 2}},
            r"limits.more, extra are unknown, made by heed 9\.1; this is heed [\d.]+, .* newer heed, or exp",
        ),
        ({"task": "poetry"}, "task: Input should be"),
    ],
)
def test_what_another_version_wrote_is_told_with_both_versions(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    written = manifest_of("input_ids").model_dump()
    written["provenance"]["tools"]["heed-serve"] = "9.1"
    (tmp_path / MANIFEST).write_text(json.dumps(written | change))
    with pytest.raises(BundleError, match=said):
        read_manifest(tmp_path)


def test_a_bundle_that_says_less_is_read(tmp_path: Path) -> None:
    """As one of format 1 that is older than some of its fields."""
    written = manifest_of("input_ids").model_dump()
    required = {name for name, field in Manifest.model_fields.items() if field.is_required()}
    (tmp_path / MANIFEST).write_text(json.dumps({name: written[name] for name in required}))
    assert read_manifest(tmp_path).name == "made"
