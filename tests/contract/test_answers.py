"""Labels, words, ranks and graphs over gRPC, as callers use them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from grpc import StatusCode
from typer.testing import CliRunner

from heed.bundle.sequence_packing import Arrays
from heed.cli.main import app
from heed.client import CallError, Client
from heed.model import Encoder
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LabelsConfig,
    LayerConfig,
    VectorsConfig,
)
from heed.model.patterns import Adjacency
from tests.bundles import export_bundle
from tests.checkpoints import Task, save_family
from tests.support import Running, make_noisy, run_server
from tests.tokenizers import save_wordpiece

Served = tuple[Running, Client]


def serve(source: Path | Encoder, folder: Path, name: str) -> Iterator[Served]:
    export_bundle(source, folder / name)
    with run_server(folder / name, folder / "log") as server, Client(server.address, name) as client:
        yield server, client


def bert(folder: Path, task: Task, labels: list[str]) -> Path:
    source = folder / "source"
    source.mkdir()
    vocabulary = save_wordpiece(source)
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 1}
    return save_family(source, "bert", task, **sizes, id2label=dict(enumerate(labels)))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tagger")
    yield from serve(bert(folder, "token", ["O", "TOOL", "BEAST"]), folder, "tagger")


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sorter")
    yield from serve(bert(folder, "sequence", ["mail", '早 "x"', "naïve"]), folder, "sorter")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ranker")
    yield from serve(bert(folder, "sequence", ["score"]), folder, "ranker")


def said(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


# Words


def test_a_tagger_says_of_each_word_where_it_stands_and_what_it_is(tagger: Served) -> None:
    _, client = tagger
    texts = ["I saw the naïve 🦊!", "saw"]
    answer = client.infer({"text": texts})
    assert set(answer.outputs) == {"last_hidden_state", "logits", "labels", "tokens", "offsets"}
    assert answer["logits"].shape[:2] == answer["labels"].shape == answer["tokens"].shape
    assert answer["offsets"].shape == (*answer["tokens"].shape, 2)
    for row, text in enumerate(texts):
        count = int((answer["tokens"][row] != "").sum())
        assert answer["tokens"][row][0] == "[CLS]"
        assert answer["tokens"][row][count - 1] == "[SEP]"
        pieces = [text[start:end] for start, end in answer["offsets"][row][1 : count - 1]]
        assert "".join(pieces) == text.replace(" ", "")
        best = np.array(["O", "TOOL", "BEAST"])[answer["logits"][row][:count].argmax(-1)]
        assert answer["labels"][row][:count].tolist() == best.tolist()
        assert not answer["labels"][row][count:].any()
        assert not answer["offsets"][row][count:].any()
    assert (answer["tokens"][1] == "").any()  # there was padding


def test_offsets_of_a_pair_refer_each_to_their_own_text(tagger: Served) -> None:
    _, client = tagger
    answer = client.infer({"text": ["I saw"], "text_pair": ["the fox"]}, ["tokens", "offsets"])
    separator = answer["tokens"][0].tolist().index("[SEP]")
    start, end = answer["offsets"][0][separator + 1]
    assert "the fox"[start:end] == "the fox"[: end - start]
    assert start == 0 < end


def test_words_need_text(tagger: Served) -> None:
    _, client = tagger
    assert set(client.infer({"input_ids": np.array([[5, 6]])}).outputs) == {"last_hidden_state", "logits", "labels"}
    with pytest.raises(CallError, match="output tokens needs text, but input_ids came") as refused:
        client.infer({"input_ids": np.array([[5, 6]])}, ["labels", "tokens"])
    assert refused.value.code is StatusCode.INVALID_ARGUMENT


def test_labels_alone_are_those_beside_their_logits(tagger: Served) -> None:
    _, client = tagger
    alone = client.infer({"text": ["the lazy fox"]}, ["labels"])
    assert list(alone.outputs) == ["labels"]
    assert np.array_equal(alone["labels"], client.infer({"text": ["the lazy fox"]})["labels"])


def test_call_shows_the_words_with_their_labels(tagger: Served) -> None:
    server, client = tagger
    labels = client.infer({"text": ["the fox"]}, ["labels"])["labels"][0][1:-1]
    words = said("call", server.address, "tagger", "-t", "the fox").splitlines()[1].split()
    assert words[0] == "1"
    assert [word for word in words if word in ("TOOL", "BEAST")] == [label for label in labels if label != "O"]


# Labels


def test_a_sorter_names_the_likeliest_label_and_lists_all_in_its_metadata(sorter: Served) -> None:
    server, client = sorter
    info = client.info()
    assert (info.task, info.labels) == ("sequence_classification", ["mail", '早 "x"', "naïve"])
    texts = ["I saw a saw.", "the fox", "attention is all you need"]
    logits = client.infer({"text": texts})["logits"].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = client.classify(texts)
    assert [label.name for label in found] == [info.labels[best] for best in logits.argmax(-1)]
    np.testing.assert_allclose([label.probability for label in found], shares.max(-1), rtol=1e-5)
    assert client.classify(texts, pairs=["a"] * 3) != found
    shown = said("call", server.address, "sorter", "-t", "the fox")
    assert found[1].name in shown
    assert f"{found[1].probability:.1%}" in shown


# Ranks


def test_a_ranker_scores_pairs_alone_as_in_a_batch(ranker: Served) -> None:
    _, client = ranker
    pairs = ["The fox saw nothing.", "a query", "naïve cafés & 🦊", ""]
    together = client.infer({"text": ["I saw"] * 4, "text_pair": pairs})
    assert set(together.outputs) == {"last_hidden_state", "logits", "labels"}
    assert together["logits"].shape == (4, 1)
    alone = [client.infer({"text": ["I saw"], "text_pair": [pair]}, ["logits"])["logits"][0] for pair in pairs]
    assert np.array_equal(together["logits"], np.array(alone))
    swapped = client.infer({"text": pairs, "text_pair": ["I saw"] * 4})
    assert not np.array_equal(swapped["logits"], together["logits"])


def test_call_ranks_the_pairs_of_a_text(ranker: Served) -> None:
    server, client = ranker
    pairs = ["the fox", "a query", "nothing"]
    scores = client.infer({"text": ["I saw"] * 3, "text_pair": pairs})["logits"][:, 0]
    lines = said("call", server.address, "ranker", "-t", "I saw", *(f"-p{pair}" for pair in pairs)).splitlines()
    order = [pairs[number] for number in np.argsort(-scores)]
    assert [line.split(maxsplit=2)[2].strip() for line in lines[2:5]] == order


def test_a_single_label_comes_with_its_score(ranker: Served) -> None:
    server, client = ranker
    texts = ["The fox saw nothing.", "a query", "naïve cafés & 🦊"]
    logits = client.infer({"text": texts}, ["logits"])["logits"][:, 0].astype(np.float64)
    scores = 1 / (1 + np.exp(-logits))
    found = client.classify(texts)
    assert [label.name for label in found] == ["score"] * 3
    np.testing.assert_allclose([label.probability for label in found], scores, rtol=1e-5)
    shown = said("call", server.address, "ranker", *(f"-t{text}" for text in texts)).splitlines()[2:5]
    assert [line.split("score")[1].split()[0] for line in shown] == [f"{score:.1%}" for score in scores]


# Graphs


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two layers of attention along edges, and a label for each node."""
    torch.manual_seed(0)
    layer = LayerConfig(AttentionConfig(4, Adjacency()), FeedForwardConfig(24))
    head = LabelsConfig(("a", "b", "c"), per="token")
    encoder = Encoder(EncoderConfig(VectorsConfig(5), 16, (layer,) * 2, 30, head=head))
    make_noisy(encoder)
    folder = tmp_path_factory.mktemp("nodes")
    yield from serve(encoder, folder, "nodes")


def graph(seed: int, nodes: int = 9) -> Arrays:
    random = np.random.default_rng(seed)
    features = random.standard_normal((1, nodes, 5)).astype(np.float32)
    return {"features": features, "adjacency": random.random((1, nodes, nodes)) < 0.4}


def test_an_isolated_node_is_answered_and_depends_on_nobody(nodes: Served) -> None:
    _, client = nodes
    inputs = graph(0)
    inputs["adjacency"][0, 4, :] = False
    answer = client.infer(inputs)
    assert answer["labels"][0][4] in ("a", "b", "c")
    assert answer["last_hidden_state"][0, 4].any()
    others = np.arange(9) != 4
    inputs["features"][0, others] += 1
    changed = client.infer(inputs)
    assert np.array_equal(changed["last_hidden_state"][0, 4], answer["last_hidden_state"][0, 4])
    moved = (changed["last_hidden_state"] != answer["last_hidden_state"])[0, others].any(-1)
    assert moved.all()


def test_edges_of_masked_nodes_do_not_matter(nodes: Served) -> None:
    _, client = nodes
    inputs = graph(1) | {"attention_mask": np.array([[1, 1, 0, 1, 1, 0, 1, 1, 1]])}
    answer = client.infer(inputs)
    masked = inputs["attention_mask"][0] == 0
    assert answer["labels"][0][masked].tolist() == ["", ""]
    inputs["adjacency"][0, masked, :] ^= True
    inputs["adjacency"][0, :, masked] ^= True
    assert np.array_equal(client.infer(inputs)["last_hidden_state"], answer["last_hidden_state"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"features": np.full((1, 9, 5), np.nan, np.float32)}, r"input features\[0, 0, 0\] is nan"),
        ({"features": np.zeros((1, 9, 6), np.float32)}, r"shape \[any, any, 5\] \(3 dimensions\), got \[1, 9, 6\]"),
        (
            {"adjacency": np.ones((1, 9, 8), np.bool_)},
            r"input adjacency has shape \[1, 9, 8\], features has \[1, 9, 5\]",
        ),
        ({"adjacency": np.ones((1, 9, 9), np.int64)}, "input adjacency must be BOOL, got INT64"),
    ],
)
def test_a_bad_graph_is_refused_and_harms_nobody(nodes: Served, edit: Arrays, message: str) -> None:
    _, client = nodes
    good = graph(2)
    before = client.infer(good)["last_hidden_state"]
    rounds: list[bool] = []
    enough = threading.Event()

    def call_until_enough() -> None:
        while not enough.is_set():
            rounds.append(np.array_equal(client.infer(good)["last_hidden_state"], before))

    caller = threading.Thread(target=call_until_enough)
    caller.start()
    try:
        for _ in range(10):
            with pytest.raises(CallError, match=message) as refused:
                client.infer(graph(3) | edit)
            assert refused.value.code is StatusCode.INVALID_ARGUMENT
    finally:
        enough.set()
        caller.join(20)
    assert rounds
    assert all(rounds)


def test_a_graph_without_edges_given_is_refused(nodes: Served) -> None:
    _, client = nodes
    with pytest.raises(CallError, match="input adjacency is missing; nodes needs it beside features"):
        client.infer({"features": graph(4)["features"]})
