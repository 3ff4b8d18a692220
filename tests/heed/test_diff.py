"""`heed diff`: how far two bundles' answers are comparison."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from heed.bundle import read_manifest
from heed.bundle.digests import write_digests
from heed.bundle.manifest import write_manifest
from heed.bundle.sequence_packing import Arrays
from heed.cli.commands.diff import histogram
from heed.cli.differences import (
    ComparedRequest,
    Incompatible,
    comparable,
    compare,
    cosine_distances,
    count_by_decade,
    iter_texts,
    quantiles,
    requests_of_texts,
)
from heed.server.engine.model import Model
from heed.server.errors import InvalidArgument
from tests.heed.support import heed
from tests.server.support import manifest_of


@pytest.fixture(scope="module")
def moved_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, all of whose shared weights are a ten-thousandth larger."""
    bundle = copytree(tiny_bundle, tmp_path_factory.mktemp("moved") / "tiny")
    weights = np.fromfile(bundle / "weights.fp32.data", np.float32)
    (weights * np.float32(1.0001)).tofile(bundle / "weights.fp32.data")
    write_digests(bundle)
    return bundle


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.write_text("the quick fox\n\n  a [dog]  \ni saw\n")
    return path


def test_a_bundle_is_not_apart_from_itself(tiny_bundle: Path) -> None:
    done = heed("diff", tiny_bundle, tiny_bundle, "--fail-above", "0")
    assert done.code == 0
    assert "they say the same of themselves" in done.out
    assert "last_hidden_state is the same, bit for bit" in done.out
    assert "furthest apart" not in done.out


def test_errors_are_those_of_the_answers(tiny_bundle: Path, moved_bundle: Path, texts: Path) -> None:
    done = heed("diff", tiny_bundle, moved_bundle, "--texts", texts, "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert (told["requests"], told["refused"], told["exceeded"]) == (3, [], False)
    errors, tokens, worst = [], [], {}
    for text in ["the quick fox", "a [dog]", "i saw"]:
        asked: Arrays = {"text": np.array([text], object)}
        old, new = (Model(bundle, "cpu").answer(asked) for bundle in (tiny_bundle, moved_bundle))
        errors.append(float(np.abs(old["sentence_embedding"] - new["sentence_embedding"]).max()))
        hidden = old["last_hidden_state"][0].astype(float), new["last_hidden_state"][0].astype(float)
        tokens += list(np.abs(hidden[0] - hidden[1]).max(-1) / max(1.0, np.abs(hidden[0]).max()))
        worst[text] = max(tokens[-len(hidden[0]) :])
    embedding, hidden_state = told["outputs"]["sentence_embedding"], told["outputs"]["last_hidden_state"]
    assert embedding["vectors"] == 3
    assert embedding["error"]["max"] == pytest.approx(max(errors), rel=1e-4)
    assert embedding["error"]["median"] == pytest.approx(sorted(errors)[1], rel=1e-4)
    assert hidden_state["vectors"] == len(tokens)
    assert hidden_state["error"]["max"] == pytest.approx(max(tokens), rel=1e-4)
    assert 0 < hidden_state["cosine_distance"]["max"] < 1e-4
    assert [row["row"] for row in hidden_state["worst"]] == sorted(worst, key=lambda text: -worst[text])


def test_the_table_names_the_texts_that_are_furthest_apart(tiny_bundle: Path, moved_bundle: Path, texts: Path) -> None:
    done = heed("diff", tiny_bundle, moved_bundle, "--texts", texts)
    assert done.code == 0
    assert "apart on 3 requests that both take" in done.out
    header, first, second = done.out[done.out.index("output ") :].splitlines()[:3]
    assert header.split()[:6] == ["output", "vectors", "median", "95", "%", "99"]
    assert first.startswith("last_hidden_state ")
    assert second.startswith("  1 - cosine ")
    furthest = done.out[done.out.index("furthest apart") :]
    assert "a [dog]" in furthest
    assert "the quick fox" in furthest


def test_padding_is_not_counted(tiny_bundle: Path, moved_bundle: Path) -> None:
    """The contract's rows have a lot of it, and there both bundles answer zeros."""
    told = json.loads(heed("diff", tiny_bundle, moved_bundle, "--json").out)
    hidden = told["outputs"]["last_hidden_state"]
    model = Model(tiny_bundle, "cpu")
    from heed.bundle.contract import read_contract

    expected = sum(
        int(s.real.sum()) for c in read_contract(tiny_bundle) for s in model.preprocessor.preprocess(c.inputs).rows
    )
    assert hidden["vectors"] == expected
    assert told["requests"] == len(read_contract(tiny_bundle))  # those of both contracts, each once


@pytest.mark.parametrize(("limit", "code"), [("1e-9", 1), ("0.5", 0)])
def test_the_exit_code_follows_the_limit(
    tiny_bundle: Path, moved_bundle: Path, texts: Path, limit: str, code: int
) -> None:
    done = heed("diff", tiny_bundle, moved_bundle, "--texts", texts, "--fail-above", limit)
    assert done.code == code
    assert ("last_hidden_state: " in done.out and "is more than 1e-09" in done.out) == bool(code)
    done = heed("diff", tiny_bundle, moved_bundle, "--texts", texts, "--fail-above", limit, "--json")
    assert done.code == code
    assert json.loads(done.out)["exceeded"] == bool(code)
    assert bool(json.loads(done.out)["above"]) == bool(code)
    only = heed("diff", tiny_bundle, moved_bundle, "--texts", texts, "--fail-above", f"sentence_embedding={limit}")
    assert only.code == code
    assert "last_hidden_state: " not in only.out


def test_a_limit_that_is_no_number_is_told(tiny_bundle: Path) -> None:
    done = heed("diff", tiny_bundle, tiny_bundle, "--fail-above", "logits=much")
    assert done.code == 2
    assert "--fail-above logits=much: 'much' is no number; give X for all outputs, or OUTPUT=X for one" in done.said


def test_what_the_bundles_say_of_themselves_comes_first(tiny_bundle: Path, tiny_cls_bundle: Path) -> None:
    told = json.loads(heed("diff", tiny_bundle, tiny_cls_bundle, "--json").out)
    differences = {each["what"]: (each["old"], each["new"]) for each in told["differences"]}
    assert differences["name"] == ("tiny", "tiny-cls")
    assert "source model.safetensors" in differences
    assert "tokenizer" not in differences
    done = heed("diff", tiny_bundle, tiny_cls_bundle)
    assert done.out.index("differs") < done.out.index("apart on")


def with_another_tokenizer(bundle: Path, out: Path) -> Path:
    copytree(bundle, out)
    path = out / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    write_digests(out)
    return out


def test_with_another_tokenizer_only_texts_are_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    other = with_another_tokenizer(tiny_bundle, tmp_path / "other")
    told = json.loads(heed("diff", tiny_bundle, other, "--json").out)
    assert "tokenizer" in {each["what"] for each in told["differences"]}
    assert told["left_out"].keys() == {"last_hidden_state"}
    assert told["outputs"].keys() == {"sentence_embedding", "unnormalized_embedding"}
    assert not any(row["row"].startswith("case ") for row in told["outputs"]["sentence_embedding"]["worst"])


def test_texts_that_one_does_not_take_are_left_out_and_said(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text("the fox\n" + "fox " * 60)
    done = heed("diff", tiny_bundle, tiny_bundle, "--texts", path)
    assert done.code == 0
    assert "apart on 1 request that both take" in done.out
    assert "1 request left out" in done.said
    assert (
        "at most 40 are allowed"
        in json.loads(heed("diff", tiny_bundle, tiny_bundle, "--texts", path, "--json").out)["refused"][0]
    )


def test_another_width_is_told(tiny_bundle: Path, minilm_bundle: Path) -> None:
    done = heed("diff", tiny_bundle, minilm_bundle)
    assert done.code == 2
    assert "no output is the same in both" in done.said
    assert "sentence_embedding is [B, 32] in the old one, [B, 384] in the new one" in done.said


def test_a_model_without_texts_is_told(tiny_bundle: Path, tiny_roberta_bundle: Path, texts: Path) -> None:
    done = heed("diff", tiny_bundle, tiny_roberta_bundle, "--texts", texts)
    assert done.code == 2
    assert f"{tiny_roberta_bundle} takes no texts, only input_ids" in done.said


def test_a_file_that_is_not_there_is_told_with_its_option(tiny_bundle: Path, tmp_path: Path) -> None:
    done = heed("diff", tiny_bundle, tiny_bundle, "--texts", tmp_path / "none")
    assert done.code == 2
    assert done.said == f"error: --texts {tmp_path}/none: there is no such file"


def test_a_file_without_texts_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n  \n")
    done = heed("diff", tiny_bundle, tiny_bundle, "--texts", tmp_path / "empty")
    assert done.code == 2
    assert "holds no text" in done.said
    (tmp_path / "latin").write_bytes(b"a\ncaf\xe9\n")
    done = heed("diff", tiny_bundle, tiny_bundle, "--texts", tmp_path / "latin")
    assert done.code == 2
    assert done.said == f"error: {tmp_path}/latin is not UTF-8: invalid continuation byte at byte 5"


def test_a_damaged_bundle_is_not_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    damaged = copytree(tiny_bundle, tmp_path / "tiny")
    (damaged / "tokenizer.json").write_text("{}")
    done = heed("diff", tiny_bundle, damaged)
    assert done.code == 2
    assert "tokenizer.json is altered" in done.said


# Without a graph


@dataclass
class StandIn:
    """What `compare` needs of a model."""

    answers: Callable[[Arrays], Arrays]
    manifest: Any
    folder: Path = field(default_factory=Path)

    def answer(self, inputs: Arrays, outputs: list[str]) -> Arrays:
        return {name: array for name, array in self.answers(inputs).items() if name in outputs}


def labeller(shift: float, labels: list[str] | None = None) -> Any:
    """Says of each token whether its id is above `shift`."""
    labels = labels or ["low", "high"]
    manifest = manifest_of("input_ids", outputs=["last_hidden_state", "logits", "labels"], labels=labels)

    def answers(inputs: Arrays) -> Arrays:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids.max() > 90:
            raise InvalidArgument("too large")
        high = (ids > shift).astype(np.float32)
        logits = np.stack([1 - high, high], -1) * mask[..., None]
        named = np.where(mask == 1, np.where(high == 1, labels[1], labels[0]), "")
        return {"logits": logits, "labels": named, "last_hidden_state": logits}

    return StandIn(answers, manifest)


def ids(*rows: list[int]) -> ComparedRequest:
    array = np.array(rows)
    inputs = {"input_ids": array, "attention_mask": (array > 0).astype(np.int64)}
    return ComparedRequest(inputs, [f"row {row}" for row in range(len(rows))])


def test_labels_that_changed_are_counted_and_named() -> None:
    comparison = compare(labeller(5), labeller(7), [ids([1, 6, 9], [6, 0, 0]), ids([8])], threads=2)
    assert comparison.labels == 5  # padding has none
    assert [(each.name, each.old, each.new) for each in comparison.changed] == [
        ("row 0", "high", "low"),
        ("row 1", "high", "low"),
    ]
    assert comparison.errors("logits").tolist() == [0, 1, 0, 1, 0]
    assert [row.name for row in comparison.worst("logits", 2)] == ["row 0", "row 1"]
    assert comparison.largest == 1


def test_requests_that_one_refuses_are_left_out() -> None:
    comparison = compare(labeller(5), labeller(7), [ids([1]), ids([95])], threads=1)
    assert (comparison.requests, comparison.refused) == (1, ["row 0: too large"])


def test_two_that_take_nothing_in_common_are_incompatible() -> None:
    with pytest.raises(Incompatible, match=r"no request is taken by both: .*too large"):
        compare(labeller(5), labeller(7), [ids([95])], threads=1)


def test_logits_of_other_labels_are_not_compared() -> None:
    names, left_out = comparable(labeller(5), labeller(5, ["low", "higher"]))
    assert names == ["last_hidden_state", "labels"]
    assert left_out["logits"] == (
        "the labels differ, so that columns mean something else: only the old one has high; only the new one has higher"
    )


def test_logits_are_compared_by_the_names_of_labels() -> None:
    """The same answers, with the columns and the names of the labels in another order."""
    turned = labeller(5)
    whole = turned.answers
    turned.answers = lambda inputs: whole(inputs) | {"logits": whole(inputs)["logits"][..., ::-1]}
    turned.manifest = labeller(5, ["high", "low"]).manifest
    comparison = compare(labeller(5), turned, [ids([1, 6, 9])], threads=1)
    assert comparison.errors("logits").tolist() == [0, 0, 0]
    assert comparison.changed == []


def test_only_the_outputs_that_are_asked_for_are_compared() -> None:
    comparison = compare(labeller(5), labeller(7), [ids([1, 6, 9])], threads=1, outputs=["labels"])
    assert comparison.rows == {}
    assert len(comparison.changed) == 1
    with pytest.raises(Incompatible, match="logit cannot be compared, only last_hidden_state, logits, labels"):
        compare(labeller(5), labeller(7), [ids([1])], threads=1, outputs=["logit"])


@pytest.mark.parametrize(
    ("limits", "above"),
    [
        ({}, {}),
        ({"": 0.5}, {"last_hidden_state": 1.0, "logits": 1.0}),
        ({"": 0.5, "logits": 1.0}, {"last_hidden_state": 1.0}),
        ({"labels": 0.25}, {"labels": 1 / 3}),
        ({"labels": 0.34, "logits": 1.0}, {}),
    ],
)
def test_each_output_and_the_labels_may_have_a_limit(limits: dict[str, float], above: dict[str, float]) -> None:
    comparison = compare(labeller(5), labeller(7), [ids([1, 6, 9])], threads=1)
    assert comparison.above(limits) == above
    with pytest.raises(Incompatible, match=r"--fail-above logit: only .*, labels were compared"):
        comparison.above({"logit": 1.0})


def test_what_is_no_number_is_as_far_apart_as_can_be() -> None:
    broken = labeller(5)
    whole = broken.answers
    broken.answers = lambda inputs: whole(inputs) | {"last_hidden_state": np.full((1, 1, 2), np.nan)}
    comparison = compare(labeller(5), broken, [ids([1])], threads=1)
    assert comparison.largest == np.inf
    assert comparison.errors("logits").tolist() == [0]


def test_cosines_are_those_of_each_vector() -> None:
    old = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    new = np.array([[5.0, 0.0], [4.0, 3.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(cosine_distances(old, new), [0, 1 - 24 / 25, 0, 2], atol=1e-12)


def test_quantiles_are_values_that_were_measured() -> None:
    found = quantiles(np.arange(1.0, 101.0))
    assert list(found.values()) == [51, 96, 100, 100]


def test_powers_of_ten_are_counted() -> None:
    assert count_by_decade(np.array([0.0, 1e-12, 1e-3, 5e-3, 0.01, 1.0, 70.0, np.inf]), -4, 0) == [2, 2, 1, 0, 3]


def test_a_histogram_shows_whatever_is_there() -> None:
    drawn = histogram(np.array([1e-3] * 1000 + [0.1]))
    assert drawn == "·····█·▁·"


def test_each_line_is_a_text_and_empty_ones_are_none() -> None:
    assert list(iter_texts("one\n\n two  \r\n\t\nthree")) == ["one", "two", "three"]
    (asked,) = requests_of_texts(["one"])
    assert (asked.names, asked.inputs["text"].tolist()) == (["one"], ["one"])


def test_precisions_are_told(tiny_bundle: Path) -> None:
    done = heed("diff", tiny_bundle, tiny_bundle, "--new-precision", "int8")
    assert done.code == 2
    assert "has no int8 graph" in done.said


def test_limits_and_outputs_that_differ_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    manifest = read_manifest(bundle)
    fewer = [spec for spec in manifest.outputs if spec.name != "offsets"]
    limits = manifest.limits.model_copy(update={"text_length": 20})
    write_manifest(bundle, manifest.model_copy(update={"outputs": fewer, "limits": limits}))
    write_digests(bundle)
    told = json.loads(heed("diff", tiny_bundle, bundle, "--json").out)
    assert told["differences"] == [
        {"what": "gives offsets", "old": "INT64 [B, L, 2]", "new": "-"},
        {"what": "limit of text_length", "old": "40", "new": "20"},
    ]
