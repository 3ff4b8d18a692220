"""`tei.v1` over gRPC, against `transformers` and `tokenizers`: what sentence-transformers would make of them.

Letters: L tokens, D width, C labels.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from heed.client import Client
from heed.protos import tei_pb2 as pb
from heed.protos import tei_pb2_grpc as wire
from tests.bundles import export_bundle
from tests.checkpoints import save_family
from tests.contract.support import BUDGET
from tests.support import Running, add_pooling, run_server
from tests.tokenizers import save_wordpiece

LIMIT = 40  # tokens of the small models' texts
DENSE = 12  # the width of the small model's embeddings
QUEUE = 3 * LIMIT
LABELS = ["mail", '早 "x"', "naïve"]
PROMPTS = {"query": "I saw: ", "passage": "the fox ", "none": ""}
TEXTS = ["the quick brown fox", "Naïve cafés, 東京 & 🦊.", "attention is all you need: a query looks at the keys"]
LONG = "I saw a quick brown fox jumping over the lazy dog " * 6
RIGHT, LEFT = pb.TRUNCATION_DIRECTION_RIGHT, pb.TRUNCATION_DIRECTION_LEFT
SIDES: list[tuple[pb.TruncationDirection, str]] = [(RIGHT, "right"), (LEFT, "left")]


class Texts:
    """A model of `transformers` in float64, its tokenizer, and what is done with the vectors by hand."""

    def __init__(self, source: Path, kind: str, limit: int) -> None:
        network: Any = getattr(transformers, kind)
        self._network = network.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
        self.tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self.tokenizer.no_padding()
        self._limit = limit

    def answer(self, text: str, pair: str | None = None, side: str = "right") -> np.ndarray:
        """Hidden vectors `[L, D]`, or logits `[C]`."""
        self.tokenizer.enable_truncation(self._limit, strategy="longest_first", direction=side)
        encoding = self.tokenizer.encode(text, pair)
        self.tokenizer.no_truncation()
        with torch.no_grad():
            ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
            answer: torch.Tensor = self._network(input_ids=ids, token_type_ids=types)[0][0]
        return answer.numpy()


def close(answer: Any, expected: np.ndarray) -> None:
    answer = np.array(answer)
    assert answer.shape == expected.shape
    np.testing.assert_allclose(answer, expected, rtol=0, atol=BUDGET * max(1.0, np.abs(expected).max()))


def unit(vector_D: np.ndarray) -> np.ndarray:
    scaled_D: np.ndarray = vector_D / np.linalg.norm(vector_D)
    return scaled_D


def serve(source: Path, folder: Path, name: str, *flags: str) -> Iterator[grpc.Channel]:
    with (
        run_server(export_bundle(source, folder / name), folder / "log", *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


def small(folder: Path, task: Literal["encoder", "sequence", "token"], labels: list[str] | None = None) -> Path:
    source = folder / "source"
    source.mkdir()
    settings: dict[str, Any] = {"vocab_size": save_wordpiece(source)}
    if labels:
        settings["id2label"] = dict(enumerate(labels))
    return save_family(source, "bert", task, **settings)


@pytest.fixture(scope="module")
def vectors_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean, a dense layer with tanh, and then the length."""
    source = add_pooling(small(tmp_path_factory.mktemp("vectors"), "encoder"), "mean")
    modules = json.loads((source / "modules.json").read_text())
    modules.insert(2, modules[2] | {"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "2_Dense").mkdir()
    (source / "2_Dense/config.json").write_text(json.dumps({"in_features": 30, "out_features": DENSE}))
    generator = torch.Generator().manual_seed(3)
    weights = {"weight": torch.randn(DENSE, 30, generator=generator), "bias": torch.randn(DENSE, generator=generator)}
    save_file({f"linear.{name}": weight for name, weight in weights.items()}, source / "2_Dense/model.safetensors")
    settings = {"prompts": PROMPTS, "default_prompt_name": "passage"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return source


@pytest.fixture(scope="module")
def vectors(vectors_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """Its queue holds three texts of the longest kind."""
    yield from serve(vectors_source, tmp_path_factory.mktemp("served"), "vectors", "--max-queue-tokens", str(QUEUE))


@pytest.fixture(scope="module")
def sorter_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)  # of a model whose labels are not always in the same order
    return small(tmp_path_factory.mktemp("sorter"), "sequence", LABELS)


@pytest.fixture(scope="module")
def sorter(sorter_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    yield from serve(sorter_source, tmp_path_factory.mktemp("served"), "sorter")


@pytest.fixture(scope="module")
def ranker_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("ranker"), "sequence", ["fit"])


@pytest.fixture(scope="module")
def ranker(ranker_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    yield from serve(ranker_source, tmp_path_factory.mktemp("served"), "ranker", "--max-batch", "8")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("tagger")
    yield from serve(small(folder, "token", ["O", "BEAST"]), folder, "tagger")


class Embeddings(Texts):
    """Of the small model."""

    def __init__(self, source: Path) -> None:
        super().__init__(source, "AutoModel", LIMIT)
        self._dense = {
            name: weight.double().numpy() for name, weight in load_file(source / "2_Dense/model.safetensors").items()
        }

    def embed(self, text: str, side: str = "right") -> np.ndarray:
        """Not scaled, `[D]`."""
        mean_D = self.answer(text, side=side).mean(0)
        return np.asarray(np.tanh(self._dense["linear.weight"] @ mean_D + self._dense["linear.bias"]))


@pytest.fixture(scope="module")
def embeddings(vectors_source: Path) -> Embeddings:
    return Embeddings(vectors_source)


def refusal(method: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    """The status and the message, of a call or of a stream."""
    with pytest.raises(grpc.RpcError) as refused:
        list(method(request, timeout=60))
    return refused.value.code(), refused.value.details() or ""


# Vectors


def test_embeddings_have_length_1_unless_that_is_not_wanted(vectors: grpc.Channel, embeddings: Embeddings) -> None:
    stub = wire.EmbedStub(vectors)
    for text in TEXTS:
        expected_D = embeddings.embed(PROMPTS["passage"] + text)
        assert abs(np.linalg.norm(expected_D) - 1) > 0.1
        close(stub.Embed(pb.EmbedRequest(inputs=text)).embeddings, unit(expected_D))
        close(stub.Embed(pb.EmbedRequest(inputs=text, normalize=True)).embeddings, unit(expected_D))
        close(stub.Embed(pb.EmbedRequest(inputs=text, normalize=False)).embeddings, expected_D)


@pytest.mark.parametrize("dimensions", [1, 5, DENSE])
def test_the_first_dimensions_have_length_1_too(vectors: grpc.Channel, embeddings: Embeddings, dimensions: int) -> None:
    stub = wire.EmbedStub(vectors)
    expected_D = embeddings.embed(PROMPTS["passage"] + TEXTS[0])[:dimensions]
    close(stub.Embed(pb.EmbedRequest(inputs=TEXTS[0], dimensions=dimensions)).embeddings, unit(expected_D))
    as_it_is = stub.Embed(pb.EmbedRequest(inputs=TEXTS[0], dimensions=dimensions, normalize=False))
    close(as_it_is.embeddings, expected_D)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_stands_before_the_text(vectors: grpc.Channel, embeddings: Embeddings, name: str) -> None:
    stub = wire.EmbedStub(vectors)
    whole = PROMPTS[name] + TEXTS[1]
    close(stub.Embed(pb.EmbedRequest(inputs=TEXTS[1], prompt_name=name)).embeddings, unit(embeddings.embed(whole)))
    answer = stub.EmbedAll(pb.EmbedAllRequest(inputs=TEXTS[1], prompt_name=name))
    close([token.embeddings for token in answer.token_embeddings], embeddings.answer(whole))


@pytest.mark.parametrize(("direction", "side"), SIDES)
def test_a_text_is_cut_at_the_end_that_is_asked_for(
    vectors: grpc.Channel, embeddings: Embeddings, direction: pb.TruncationDirection, side: str
) -> None:
    stub = wire.EmbedStub(vectors)
    expected_D = embeddings.embed(PROMPTS["query"] + LONG, side)
    fields: Any = {"inputs": LONG, "truncate": True, "truncation_direction": direction, "prompt_name": "query"}
    answer = stub.Embed(pb.EmbedRequest(normalize=False, **fields))
    close(answer.embeddings, expected_D)
    assert answer.metadata.compute_tokens == LIMIT
    tokens = stub.EmbedAll(pb.EmbedAllRequest(**fields)).token_embeddings
    close([token.embeddings for token in tokens], embeddings.answer(PROMPTS["query"] + LONG, side=side))


def test_minilm_gives_the_bits_of_the_tensor_door(minilm_server: Running, minilm: Path) -> None:
    """And `normalize` off gives the mean of what `transformers` says."""
    oracle = Texts(minilm, "AutoModel", 256)
    with grpc.insecure_channel(minilm_server.address) as channel, Client(minilm_server.address, "minilm") as client:
        stub = wire.EmbedStub(channel)
        vectors = client.embed(TEXTS)
        for text, vector_D in zip(TEXTS, vectors, strict=True):
            found = np.array(stub.Embed(pb.EmbedRequest(inputs=text)).embeddings, np.float32)
            assert np.array_equal(found, vector_D)
            mean_D = oracle.answer(text).mean(0)
            close(stub.Embed(pb.EmbedRequest(inputs=text, normalize=False)).embeddings, mean_D)
            close(stub.Embed(pb.EmbedRequest(inputs=text, dimensions=64)).embeddings, unit(mean_D[:64]))
        for direction, side in SIDES:
            request = pb.EmbedRequest(inputs=LONG * 6, truncate=True, truncation_direction=direction)
            close(stub.Embed(request).embeddings, unit(oracle.answer(LONG * 6, side=side).mean(0)))


# Labels


def softmax(logits_C: np.ndarray) -> np.ndarray:
    shares_C: np.ndarray = np.exp(logits_C) / np.exp(logits_C).sum()
    return shares_C


def predicted(answer: pb.PredictResponse) -> dict[str, float]:
    """By label; the best must be first."""
    scores = [prediction.score for prediction in answer.predictions]
    assert scores == sorted(scores, reverse=True)
    return {prediction.label: prediction.score for prediction in answer.predictions}


@pytest.mark.parametrize("raw", [False, True])
def test_predictions_are_shares_of_the_labels_or_their_logits(
    sorter: grpc.Channel, sorter_source: Path, raw: bool
) -> None:
    stub = wire.PredictStub(sorter)
    oracle = Texts(sorter_source, "AutoModelForSequenceClassification", LIMIT)
    pairs = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    alone = list(stub.PredictStream(pb.PredictRequest(inputs=text, raw_scores=raw) for text in TEXTS))
    joined = list(stub.PredictPairStream(pb.PredictPairRequest(inputs=pair, raw_scores=raw) for pair in pairs))
    expected = [oracle.answer(text) for text in TEXTS] + [oracle.answer(*pair) for pair in pairs]
    assert len({tuple(logits_C.argsort()) for logits_C in expected}) > 1  # not always the same order
    for answer, logits_C in zip(alone + joined, expected, strict=True):
        found = predicted(answer)
        close([found[label] for label in LABELS], logits_C if raw else softmax(logits_C))
    assert predicted(stub.Predict(pb.PredictRequest(inputs=TEXTS[0], raw_scores=raw))) == predicted(alone[0])
    assert predicted(stub.PredictPair(pb.PredictPairRequest(inputs=TEXTS[:1], raw_scores=raw))) == predicted(alone[0])
    assert predicted(stub.PredictPair(pb.PredictPairRequest(inputs=pairs[0], raw_scores=raw))) == predicted(joined[0])


@pytest.mark.parametrize(("direction", "side"), SIDES)
def test_of_a_pair_the_longer_text_is_cut_at_the_end_that_is_asked_for(
    sorter: grpc.Channel, sorter_source: Path, direction: pb.TruncationDirection, side: str
) -> None:
    stub = wire.PredictStub(sorter)
    oracle = Texts(sorter_source, "AutoModelForSequenceClassification", LIMIT)
    for pair in [(LONG, TEXTS[0]), (TEXTS[0], LONG), (LONG, "a " + LONG)]:
        fields: Any = {"inputs": pair, "truncate": True, "truncation_direction": direction, "raw_scores": True}
        found = predicted(stub.PredictPair(pb.PredictPairRequest(**fields)))
        close([found[label] for label in LABELS], oracle.answer(*pair, side=side))


def test_a_single_label_is_a_sigmoid(ranker: grpc.Channel, ranker_source: Path) -> None:
    stub = wire.PredictStub(ranker)
    (logit,) = Texts(ranker_source, "AutoModelForSequenceClassification", LIMIT).answer(TEXTS[0])
    found = predicted(stub.Predict(pb.PredictRequest(inputs=TEXTS[0])))
    close([found["fit"]], np.array([1 / (1 + np.exp(-logit))]))


# Ranks


def fields(ranks: Any) -> list[tuple[int, float, str | None]]:
    return [(rank.index, rank.score, rank.text if rank.HasField("text") else None) for rank in ranks]


def test_texts_are_ranked_by_how_well_they_fit(ranker: grpc.Channel, ranker_source: Path) -> None:
    stub = wire.RerankStub(ranker)
    oracle = Texts(ranker_source, "AutoModelForSequenceClassification", LIMIT)
    texts = [*TEXTS, "the lazy dog", "", TEXTS[0]]
    logits = np.array([oracle.answer("a quick fox", text)[0] for text in texts])
    order = np.argsort(-logits, kind="stable")
    assert order.tolist() != list(range(len(texts)))

    answer = stub.Rerank(pb.RerankRequest(query="a quick fox", texts=texts, raw_scores=True, return_text=True))
    assert [rank.index for rank in answer.ranks] == order.tolist()  # of equal texts the first is first
    assert [rank.text for rank in answer.ranks] == [texts[index] for index in order]
    close([rank.score for rank in answer.ranks], logits[order])

    shares = stub.Rerank(pb.RerankRequest(query="a quick fox", texts=texts)).ranks
    assert not any(rank.HasField("text") for rank in shares)
    close([rank.score for rank in shares], 1 / (1 + np.exp(-logits[order])))

    # On a stream the first request says how it is answered.
    asked = [pb.RerankStreamRequest(query="a quick fox", text=text) for text in texts]
    asked[0].raw_scores = asked[0].return_text = True
    streamed = stub.RerankStream(iter(asked))
    assert fields(streamed.ranks) == fields(answer.ranks)
    tokens = sum(len(oracle.tokenizer.encode("a quick fox", text).ids) for text in texts)
    characters = sum(len("a quick fox" + text) for text in texts)
    for metadata in (answer.metadata, streamed.metadata):
        assert (metadata.compute_tokens, metadata.compute_chars) == (tokens, characters)


# Tokens


def test_tokens_are_those_of_the_tokenizer_with_their_bytes(minilm_server: Running, minilm: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text = "Naïve cafés, 東京 & 🦊 unbelievable [SEP]" * 100  # longer than what is embedded
    with grpc.insecure_channel(minilm_server.address) as channel:
        stub = wire.TokenizeStub(channel)
        for special in (False, True):
            expected = tokenizer.encode(text, add_special_tokens=special)
            tokens = stub.Tokenize(pb.EncodeRequest(inputs=text, add_special_tokens=special)).tokens
            assert [token.id for token in tokens] == expected.ids
            assert [token.special for token in tokens] == [bool(one) for one in expected.special_tokens_mask]
            plain = [token for token in tokens if not token.special]
            assert all(text.encode()[token.start : token.stop].decode() == token.text for token in plain)
            spans = [
                span
                for span, special in zip(expected.offsets, expected.special_tokens_mask, strict=True)
                if not special
            ]
            assert [token.text for token in plain] == [text[start:end] for start, end in spans]
        assert [token.text for token in tokens if token.special] == ["[CLS]", "[SEP]"]
        assert not any(token.HasField("start") or token.HasField("stop") for token in tokens if token.special)
        ids = [token.id for token in tokens]
        for skip in (False, True):
            decoded = stub.Decode(pb.DecodeRequest(ids=ids, skip_special_tokens=skip)).text
            assert decoded == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_tokenized_text_has_its_prompt(vectors: grpc.Channel, embeddings: Embeddings) -> None:
    stub = wire.TokenizeStub(vectors)
    requests = [pb.EncodeRequest(inputs="lazy", prompt_name=name) for name in PROMPTS] + [
        pb.EncodeRequest(inputs="lazy")
    ]
    answers = list(stub.TokenizeStream(iter(requests)))
    wholes = [prompt + "lazy" for prompt in [*PROMPTS.values(), PROMPTS["passage"]]]
    expected = [embeddings.tokenizer.encode(whole, add_special_tokens=False).ids for whole in wholes]
    assert [[token.id for token in answer.tokens] for answer in answers] == expected
    assert answers[0].tokens[-1].stop == len("I saw: lazy")
    texts = [answer.text for answer in stub.DecodeStream(pb.DecodeRequest(ids=ids) for ids in expected)]
    assert texts == [embeddings.tokenizer.decode(ids) for ids in expected]


# Streams


def test_a_stream_is_answered_in_its_order_and_waits_for_room_in_the_queue(vectors: grpc.Channel) -> None:
    """All of it at once would be more than the queue takes."""
    stub = wire.EmbedStub(vectors)
    requests = [
        pb.EmbedRequest(inputs="a " * (1 + number * 7 % 31), dimensions=1 + number % DENSE, prompt_name="none")
        for number in range(300)
    ]
    answers = list(stub.EmbedStream(iter(requests), timeout=120))
    assert [len(answer.embeddings) for answer in answers] == [request.dimensions for request in requests]
    for request, answer in list(zip(requests, answers, strict=True))[::37]:
        assert answer.embeddings == stub.Embed(request).embeddings


def test_a_bad_item_ends_its_stream_after_the_answers_before_it(vectors: grpc.Channel, ranker: grpc.Channel) -> None:
    requests = [pb.EmbedRequest(inputs=text) for text in [*TEXTS, LONG, *TEXTS]]
    answers = wire.EmbedStub(vectors).EmbedStream(iter(requests), timeout=60)
    assert [len(next(answers).embeddings) for _ in TEXTS] == [DENSE] * len(TEXTS)
    with pytest.raises(grpc.RpcError) as refused:
        next(answers)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.match(r"item 3: input text\[0\] has \d+ tokens, at most 40", refused.value.details() or "")
    texts = [pb.RerankStreamRequest(query="a", text=text) for text in ["b", "c", LONG]]
    with pytest.raises(grpc.RpcError, match=r"item 2: input text\[0\] with its pair has \d+ tokens, at most 40"):
        wire.RerankStub(ranker).RerankStream(iter(texts), timeout=60)


def test_a_stream_of_texts_to_rank_is_as_long_as_a_call_may_be(ranker: grpc.Channel) -> None:
    texts = [pb.RerankStreamRequest(query="a", text="b")] * 9
    stub = wire.RerankStub(ranker)
    assert [rank.index for rank in stub.RerankStream(iter(texts[:8]), timeout=60).ranks] == list(range(8))
    with pytest.raises(grpc.RpcError, match=r"9 rows, at most 8 are taken \(--max-batch\)") as refused:
        stub.RerankStream(iter(texts), timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# What each model is and cannot do


def test_each_model_says_what_it_is(
    vectors: grpc.Channel, sorter: grpc.Channel, ranker: grpc.Channel, tagger: grpc.Channel
) -> None:
    found = [wire.InfoStub(channel).Info(pb.InfoRequest()) for channel in (vectors, sorter, ranker, tagger)]
    assert [info.model_id for info in found] == ["vectors", "sorter", "ranker", "tagger"]
    assert [info.model_type for info in found] == [
        pb.MODEL_TYPE_EMBEDDING,
        pb.MODEL_TYPE_CLASSIFIER,
        pb.MODEL_TYPE_RERANKER,
        pb.MODEL_TYPE_CLASSIFIER,
    ]
    assert {(info.model_dtype, info.max_input_length) for info in found} == {("float32", LIMIT)}
    assert [info.max_batch_tokens for info in found] == [QUEUE, 65536, 65536, 65536]
    assert [info.max_client_batch_size for info in found] == [1024, 1024, 8, 1024]
    assert {info.max_concurrent_requests for info in found} == {4096}
    assert all(info.model_sha.startswith("sha256:") and info.version for info in found)


def test_what_a_model_cannot_do_it_says_with_what_it_can(
    vectors: grpc.Channel, sorter: grpc.Channel, ranker: grpc.Channel, tagger: grpc.Channel
) -> None:
    text, query = pb.EmbedRequest(inputs="a"), pb.RerankRequest(query="a", texts=["b"])
    refused = [
        refusal(wire.PredictStub(vectors).Predict, pb.PredictRequest(inputs="a")),
        refusal(wire.EmbedStub(sorter).Embed, text),
        refusal(wire.RerankStub(sorter).Rerank, query),
        refusal(wire.EmbedStub(ranker).Embed, text),
        refusal(wire.PredictStub(tagger).Predict, pb.PredictRequest(inputs="a")),
    ]
    assert {code for code, _ in refused} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert [message for _, message in refused] == [
        "vectors is a model for embedding and has no Predict, only Embed, EmbedAll",
        "sorter is a model for sequence classification and has no Embed, only Predict, PredictPair, EmbedAll",
        "sorter is a model for sequence classification and has no Rerank, only Predict, PredictPair, EmbedAll",
        "ranker is a model for reranking and has no Embed, only Rerank, Predict, PredictPair, EmbedAll",
        "tagger is a model for token classification and has no Predict, only EmbedAll; the labels of tokens "
        "and their spans come through the Open Inference Protocol, inference.GRPCInferenceService/ModelInfer",
    ]
    assert len(wire.EmbedStub(tagger).EmbedAll(pb.EmbedAllRequest(inputs="a")).token_embeddings) == 3


def test_sparse_embeddings_are_not_to_be_had(vectors: grpc.Channel) -> None:
    stub = wire.EmbedStub(vectors)
    expected = grpc.StatusCode.UNIMPLEMENTED, "heed has no sparse embeddings"
    for method, request in [
        (stub.EmbedSparse, pb.EmbedSparseRequest(inputs="a")),
        (stub.EmbedSparseStream, iter([pb.EmbedSparseRequest(inputs="a")])),
    ]:
        code, message = refusal(method, request)
        assert (code, message.split(";")[0]) == expected
