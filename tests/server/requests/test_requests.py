"""What a request may hold, for models of every kind: what it becomes, and what is said where it cannot be answered.

Letters: B batch, L length, F features.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from heed.bundle import Manifest
from heed.bundle.manifest import Image, Limits, PositionRule
from heed.bundle.sequence_packing import Arrays, pack
from heed.server.engine.model import Model
from heed.server.errors import InvalidArgument
from heed.server.requests.preprocess import Preprocessor, Request, _is_large
from heed.server.requests.tokenizer import Side, TextTokenizer, TokenizedText
from heed.server.requests.validation import RequestSpec
from tests.server.support import manifest_of
from tests.support import VOCABULARY, save_tokenizer

IDS = ("input_ids", "attention_mask", "token_type_ids")
TEXT = (*IDS, "text", "text_pair")
FRAMES = manifest_of("features", "attention_mask")
GRAPHS = manifest_of("features", "attention_mask", "adjacency", aligned=True)
LONG = manifest_of("input_ids", "attention_mask", "global_attention_mask", first_tokens_global=1, aligned=True)
IMAGES = manifest_of("pixel_values", image=Image(channels=3, height=4, width=6, patch=2), length=7)
TEXTS = manifest_of(*TEXT, outputs=["last_hidden_state", "tokens", "offsets", "attentions"])
WORDS = manifest_of(*TEXT, outputs=["logits", "labels", "tokens", "offsets", "attentions"], task="token_classification")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return TextTokenizer(folder / "tokenizer.json", 12)


async def test_texts_that_nobody_waits_for_any_more_are_not_tokenized(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tiny_bundle, "cpu")
    assert model.tokenizer
    begun, gone, encode = Semaphore(0), Event(), model.tokenizer.encode

    def encode_later(*arguments: Any) -> TokenizedText:
        begun.release()
        assert gone.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(model.tokenizer, "encode", encode_later)
    inputs: Arrays = {"text": np.array([b"a fox"] * 1000, object)}
    reading = asyncio.create_task(model.preprocessor.prepare_async(model.preprocessor.validate(inputs), inputs))
    assert await asyncio.to_thread(begun.acquire, timeout=60)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    gone.set()
    assert not await asyncio.to_thread(begun.acquire, timeout=0.3)


@pytest.mark.parametrize(
    ("inputs", "large"),
    [
        ({"text": [b"a fox"]}, False),
        ({"text": [b"a" * 5000]}, True),
        ({"text": [b"a"] * 1000}, True),  # each costs something, however short it is
        ({"text": [b"a"] * 70, "text_pair": [b"a"] * 70}, True),
        ({"input_ids": np.ones((1, 512), np.int64)}, False),
        ({"input_ids": np.ones((1000, 512), np.int64)}, True),
    ],
)
def test_what_is_large_is_read_beside_the_event_loop(inputs: dict[str, Any], large: bool) -> None:
    arrays = {name: np.array(values, object if "text" in name else np.int64) for name, values in inputs.items()}
    assert _is_large(RequestSpec(next(iter(arrays)), [], frozenset()), arrays) is large


def check_request(
    manifest: Manifest,
    tokenizer: TextTokenizer | None,
    inputs: Arrays,
    outputs: Sequence[str] = (),
    truncate: Side | None = None,
) -> Request:
    return Preprocessor(manifest, tokenizer).preprocess(inputs, outputs, truncate)


def features(*shape: int) -> Arrays:
    return {"features": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def ids(*rows: list[int]) -> Arrays:
    return {"input_ids": np.array(rows)}


def limited(**limits: int) -> Manifest:
    """A model with smaller tables than its tokenizer has."""
    sizes = {"vocabulary": 100, "token_types": 2, "length": 40, "text_length": 40}
    return manifest_of(*TEXT, limits=Limits(**(sizes | limits)))


def texts(*values: str, pairs: list[str] | None = None) -> Arrays:
    inputs = {"text": np.array(values, object)}
    return inputs if pairs is None else inputs | {"text_pair": np.array(pairs, object)}


def refused(manifest: Manifest, inputs: Arrays, *outputs: str, encoder: TextTokenizer | None = None) -> str:
    with pytest.raises(InvalidArgument) as error:
        check_request(manifest, encoder, inputs, outputs)
    return str(error.value)


# Vectors


def test_vectors_become_rows_without_padding() -> None:
    inputs = features(2, 3, 2) | {"attention_mask": np.array([[1, 0, 1], [0, 1, 0]])}
    request = check_request(FRAMES, None, inputs)
    assert request.length == 3
    first, second = request.rows
    np.testing.assert_array_equal(first.tokens["features"], inputs["features"][0, [0, 2]])
    np.testing.assert_array_equal(second.tokens["features"], inputs["features"][1, [0, 1]])
    assert second.real.tolist() == [False, True]
    assert first.adjacency is first.is_global is None


def test_vectors_of_another_width_are_refused_with_both_widths() -> None:
    message = refused(FRAMES, features(1, 5, 3))
    assert message == "input features must have shape [any, any, 2] (3 dimensions), got [1, 5, 3]"


def test_too_many_vectors_are_refused() -> None:
    assert refused(FRAMES, features(1, 41, 2)) == "input features has 41 columns, made takes at most 40"


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e20, "1e+20"), (-2e10, "-2e+10")]
)
@pytest.mark.parametrize("masked", [False, True])
def test_floats_must_be_such_as_a_norm_can_square_even_under_the_mask(value: float, text: str, masked: bool) -> None:
    inputs = features(2, 3, 2) | {"attention_mask": np.array([[1, 1, 1], [1, 1, int(not masked)]])}
    inputs["features"][1, 2, 0] = value
    assert refused(FRAMES, inputs) == (f"input features[1, 2, 0] is {text}, expected a number from -1e+10 to 1e+10")


def test_large_and_small_floats_are_taken() -> None:
    inputs = {"features": np.array([[[-1e10, 1e-45]]], np.float32)}
    assert len(check_request(FRAMES, None, inputs).rows) == 1


def test_a_mask_must_be_as_long_as_the_vectors() -> None:
    message = refused(FRAMES, features(2, 3, 2) | {"attention_mask": np.ones((2, 4), np.int64)})
    assert message.startswith("input attention_mask has shape [2, 4], features has [2, 3, 2]")
    assert "[2, 3] is expected" in message


# Graphs


def edges(*pairs: tuple[int, int], size: int = 3) -> np.ndarray:
    matrix = np.zeros((1, size, size), np.bool_)
    for row, column in pairs:
        matrix[0, row, column] = True
    return matrix


def test_edges_come_with_their_nodes() -> None:
    inputs = features(1, 3, 2) | {"adjacency": edges((0, 2), (2, 1)), "attention_mask": np.array([[1, 0, 1]])}
    (row,) = check_request(GRAPHS, None, inputs).rows
    assert row.adjacency is not None
    assert row.adjacency.astype(int).tolist() == [[0, 1], [0, 0]]


def test_an_isolated_node_is_a_node() -> None:
    (row,) = check_request(GRAPHS, None, features(1, 3, 2) | {"adjacency": edges()}).rows
    assert row.real.all()
    assert row.adjacency is not None
    assert not row.adjacency.any()


def test_a_model_over_graphs_needs_edges() -> None:
    assert refused(GRAPHS, features(1, 3, 2)) == "input adjacency is missing; made needs it beside features"


def test_edges_that_may_be_left_out_are_all_there() -> None:
    optional = GRAPHS.inputs[2].model_copy(update={"optional": True})
    manifest = GRAPHS.model_copy(update={"inputs": [*GRAPHS.inputs[:2], optional]})
    (row,) = check_request(manifest, None, features(1, 3, 2)).rows
    assert row.adjacency is not None
    assert row.adjacency.all()


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3), (2, 3, 3)])
def test_edges_must_fit_the_nodes(shape: tuple[int, ...]) -> None:
    message = refused(GRAPHS, features(1, 3, 2) | {"adjacency": np.ones(shape, np.bool_)})
    assert message.startswith(f"input adjacency has shape {list(shape)}, features has [1, 3, 2]")
    assert "[1, 3, 3] is expected" in message


# Global tokens


def test_global_tokens_are_those_that_the_request_names() -> None:
    inputs = ids([5, 6, 7]) | {"global_attention_mask": np.array([[0, 1, 1]])}
    (row,) = check_request(LONG, None, inputs).rows
    assert row.is_global is not None
    assert row.is_global.tolist() == [False, True, True]


def test_without_names_the_models_own_first_tokens_are_global() -> None:
    for first in (0, 1, 2):
        manifest = LONG.model_copy(update={"first_tokens_global": first})
        (row,) = check_request(manifest, None, ids([5, 6, 7])).rows
        assert row.is_global is not None
        assert row.is_global.tolist() == [column < first for column in range(3)]


def test_the_first_tokens_of_a_stripped_row_are_the_first_real_ones() -> None:
    manifest = LONG.model_copy(update={"position_rule": PositionRule(kind="stripped")})
    inputs = ids([5, 6, 7]) | {"attention_mask": np.array([[0, 1, 1]])}
    (row,) = check_request(manifest, None, inputs).rows
    assert row.is_global is not None
    assert row.is_global.tolist() == [True, False]
    assert row.tokens["input_ids"].tolist() == [6, 7]


def test_a_global_mask_holds_zeros_and_ones() -> None:
    inputs = ids([5, 6, 7]) | {"global_attention_mask": np.array([[0, 2, 1]])}
    assert refused(LONG, inputs) == "input global_attention_mask[0, 1] is 2, expected 0 or 1"


# Images


def test_an_image_becomes_patches_behind_a_class_token() -> None:
    pixels = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    request = check_request(IMAGES, None, {"pixel_values": pixels})
    assert request.length == 7
    row = request.rows[1]
    assert row.tokens["features"].shape == (7, 12)
    assert not row.tokens["features"][0].any()
    np.testing.assert_array_equal(row.tokens["features"][2], pixels[1, :, :2, 2:4].ravel())
    assert row.tokens["position_ids"].tolist() == list(range(7))
    assert row.real.all()


def test_an_image_of_another_size_is_refused() -> None:
    message = refused(IMAGES, {"pixel_values": np.zeros((1, 3, 4, 8), np.float32)})
    assert message == "input pixel_values must have shape [any, 3, 4, 6] (4 dimensions), got [1, 3, 4, 8]"


# Texts and pairs


def test_pairs_are_joined_by_the_tokenizers_own_template(encoder: TextTokenizer, tmp_path: Path) -> None:
    request = check_request(TEXTS, encoder, texts("the fox", "a", pairs=["dog", "quick fox."]))
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for row, pair in zip(request.rows, [("the fox", "dog"), ("a", "quick fox.")], strict=True):
        expected = tokenizer.encode(*pair)
        assert row.tokens["input_ids"].tolist() == expected.ids
        assert row.tokens["token_type_ids"].tolist() == expected.type_ids
        assert 1 in expected.type_ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_longer_text_of_a_pair_is_cut_first(encoder: TextTokenizer, tmp_path: Path, side: Side) -> None:
    """Against the library's own truncation."""
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(12, strategy="longest_first", direction=side)
    for first in range(0, 14):
        for second in range(0, 14):
            pair = "a fox " * first, "quick dog " * second
            inputs = texts(pair[0], pairs=[pair[1]])
            (row,) = check_request(TEXTS, encoder, inputs, truncate=side).rows
            assert row.tokens["input_ids"].tolist() == tokenizer.encode(*pair).ids, (first, second)


def test_a_pair_is_too_long_by_its_total(encoder: TextTokenizer) -> None:
    check_request(TEXTS, encoder, texts("fox " * 5, pairs=["dog " * 4]))
    message = refused(TEXTS, texts("fox", "fox " * 5, pairs=["dog", "dog " * 5]), encoder=encoder)
    assert message.startswith("input text[1] with its pair has 13 tokens, at most 12 are allowed")


def test_pairs_are_as_many_as_texts(encoder: TextTokenizer) -> None:
    message = refused(TEXTS, texts("a", "b", pairs=["c"]), encoder=encoder)
    assert message == "input text_pair has 1 texts, text has 2; they differ"


def test_a_text_whose_token_has_no_row_is_refused_and_others_are_not(encoder: TextTokenizer) -> None:
    last = VOCABULARY.index("z")
    smaller = limited(vocabulary=last)
    assert len(check_request(smaller, encoder, texts("a fox", "the saw")).rows) == 2
    message = refused(smaller, texts("a fox", "z"), encoder=encoder)
    assert message == f"input text[1] has the token 'z', whose id {last} is outside the vocabulary of 0 to {last - 1}"


def test_a_pair_whose_type_has_no_row_is_refused_and_single_texts_are_not(encoder: TextTokenizer) -> None:
    one_type = limited(token_types=1)
    (row,) = check_request(one_type, encoder, texts("a fox")).rows
    assert not row.tokens["token_type_ids"].any()
    message = refused(one_type, texts("a fox", pairs=["the saw"]), encoder=encoder)
    assert message == (
        "input text[0] with its pair has tokens of type 1, outside the token types of 0 to 0; "
        "send the text without a pair"
    )
    (pair,) = check_request(limited(token_types=0), encoder, texts("a", pairs=["a"])).rows  # a model without a table
    assert "token_type_ids" not in pair.tokens


def test_a_pair_that_is_not_utf_8_is_named(encoder: TextTokenizer) -> None:
    inputs = texts("a", "b") | {"text_pair": np.array([b"a", b"\xff"], object)}
    assert refused(TEXTS, inputs, encoder=encoder).startswith("input text_pair[1] is not UTF-8")


def test_a_model_without_token_types_gets_none(encoder: TextTokenizer) -> None:
    manifest = manifest_of("input_ids", "attention_mask", "text", "text_pair")
    for inputs in (texts("a", pairs=["b"]), ids([5, 6])):
        (row,) = check_request(manifest, encoder, inputs).rows
        assert set(row.tokens) == {"input_ids", "position_ids"}


# What comes with what


@pytest.mark.parametrize(
    ("manifest", "inputs", "message"),
    [
        (FRAMES, {}, "input features is missing"),
        (TEXTS, {}, "input input_ids is missing (or send text)"),
        (TEXTS, {"text_pair": np.array(["a"], object)}, "input input_ids is missing (or send text)"),
        (TEXTS, texts("a") | ids([1]), "input text came together with input_ids; send either text or tensors"),
        (
            TEXTS,
            ids([1]) | {"text_pair": np.array(["a"], object)},
            "input text_pair came with input_ids; it goes with text",
        ),
        (FRAMES, features(1, 3, 2) | ids([1, 2, 3]), "input input_ids is unknown; made takes features, attention_mask"),
        (
            manifest_of(*IDS, "features"),
            features(1, 3, 2) | ids([1, 2, 3]),
            "inputs input_ids and features came together; send one of them",
        ),
        (
            manifest_of(*IDS, "features"),
            features(1, 3, 2) | {"token_type_ids": np.array([[0, 0, 0]])},
            "input token_type_ids came with features; it goes with input_ids",
        ),
        (FRAMES, texts("a"), "input text is unknown; made takes features, attention_mask"),
        (GRAPHS, features(1, 3, 2) | {"adjacency": np.ones((1, 3, 3), np.int64)}, "input adjacency must be BOOL"),
    ],
)
def test_what_does_not_go_together_is_named(
    encoder: TextTokenizer, manifest: Manifest, inputs: Arrays, message: str
) -> None:
    assert refused(manifest, inputs, encoder=encoder).startswith(message)


# Outputs


def outputs(manifest: Manifest, inputs: Arrays, *wanted: str, encoder: TextTokenizer | None = None) -> list[str]:
    return check_request(manifest, encoder, inputs, wanted).spec.outputs


def test_attentions_are_never_given_unasked(encoder: TextTokenizer) -> None:
    assert outputs(TEXTS, ids([1])) == ["last_hidden_state"]
    assert outputs(TEXTS, texts("a"), encoder=encoder) == ["last_hidden_state"]
    asked = check_request(TEXTS, None, ids([1]), ["attentions"])
    assert (asked.spec.outputs, asked.spec.kind) == (["attentions"], "attentions")
    assert check_request(TEXTS, None, ids([1])).spec.kind == "answers"


def test_words_are_given_unasked_where_they_are_what_is_labelled(encoder: TextTokenizer) -> None:
    assert outputs(WORDS, texts("a"), encoder=encoder) == ["logits", "labels", "tokens", "offsets"]
    assert outputs(WORDS, ids([1])) == ["logits", "labels"]
    assert outputs(TEXTS, texts("a"), "offsets", encoder=encoder) == ["offsets"]


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_words_need_text(name: str) -> None:
    assert refused(WORDS, ids([1]), "labels", name) == f"output {name} needs text, but input_ids came"


def test_tokens_are_written_as_in_the_vocabulary_and_offsets_count_code_points(encoder: TextTokenizer) -> None:
    """`é` loses its accent, `👩` is one code point and no word, and a pair's texts are counted each from 0."""
    (tokens,) = check_request(WORDS, encoder, texts("é 👩 foxs", pairs=["saw a"])).texts
    assert tokens.words.tolist() == ["[CLS]", "e", "[UNK]", "fox", "##s", "[SEP]", "saw", "a", "[SEP]"]
    assert tokens.offsets.tolist() == [[0, 0], [0, 1], [2, 3], [4, 7], [7, 8], [0, 0], [0, 3], [4, 5], [0, 0]]
    assert [VOCABULARY[token] for token in tokens.input_ids] == tokens.words.tolist()


def group_of(manifest: Manifest, *requests: dict[str, Any]) -> Arrays:
    rows: list[Request] = [check_request(manifest, None, inputs) for inputs in requests]
    return pack([row for request in rows for row in request.rows], manifest.aligned)


def test_requests_with_and_without_optional_inputs_share_a_group() -> None:
    named = ids([5, 6, 7]) | {"global_attention_mask": np.array([[0, 0, 1]])}
    assert group_of(LONG, named, ids([5, 6]))["globals"].tolist() == [[2, 0], [0, 0]]
