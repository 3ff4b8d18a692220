"""Labels, tags and ranks: read from answers made by hand, and from real servers."""

from itertools import groupby

import numpy as np
import pytest

from heed.client import Answer, AsyncClient, Client, Rank, Tag
from heed.client.answers import read_labels, read_ranks, read_tags
from tests.support import Running


def answer_of(**outputs: np.ndarray) -> Answer:
    return Answer(outputs, "", "", "", 0.0, 0.0)


def tags_of(text: str, *tokens: tuple[str, int, int]) -> list[tuple[str, str]]:
    """Of tokens by label, start and end; each label is as likely as not."""
    labels, starts, ends = zip(*tokens, strict=True)
    answer = answer_of(
        labels=np.array([labels], object),
        scores=np.full((1, len(tokens), 2), 0.5),
        offsets=np.array([list(zip(starts, ends, strict=True))], np.int64),
    )
    (tags,) = read_tags(answer, [text])
    assert all(tag.text == text[tag.start : tag.end] and tag.probability == 0.5 for tag in tags)
    return [(tag.text, tag.label) for tag in tags]


CLS, END, PADDING = ("O", 0, 0), ("O", 0, 0), ("", 0, 0)


def test_neighbours_with_one_label_are_one_tag() -> None:
    tokens = [CLS, ("O", 0, 2), ("PLACE", 3, 6), ("PLACE", 6, 9), ("NAME", 10, 13), END, PADDING]
    assert tags_of("in berlin Ada", *tokens) == [("berlin", "PLACE"), ("Ada", "NAME")]


def test_what_stands_between_parts_two_tags() -> None:
    tokens = [("NAME", 0, 3), ("O", 4, 7), ("NAME", 8, 12)]
    assert tags_of("Ada and Bert", *tokens) == [("Ada", "NAME"), ("Bert", "NAME")]


def test_a_prefix_says_where_a_tag_begins() -> None:
    tokens = [CLS, ("B-NAME", 0, 3), ("I-NAME", 4, 9), ("B-NAME", 10, 14), ("I-PLACE", 15, 20), END]
    expected = [("Ada Byron", "NAME"), ("Bert", "NAME"), ("Essen", "PLACE")]
    assert tags_of("Ada Byron Bert Essen", *tokens) == expected


def test_a_special_token_is_nothing_whatever_its_label() -> None:
    assert tags_of("Ada", ("NAME", 0, 0), ("NAME", 0, 3), ("NAME", 0, 0)) == [("Ada", "NAME")]


def test_a_tag_is_as_likely_as_its_tokens_are_on_average() -> None:
    answer = answer_of(
        labels=np.array([["X", "X"]], object),
        scores=np.array([[[0.9, 0.1], [0.7, 0.3]]]),
        offsets=np.array([[[0, 1], [1, 2]]]),
    )
    ((tag,),) = read_tags(answer, ["ab"])
    assert tag == Tag("ab", "X", 0, 2, tag.probability)
    assert tag.probability == pytest.approx(0.8)


def test_a_label_is_the_likeliest() -> None:
    scores = np.array([[0.25, 0.75], [0.9, 0.1]])
    labels = read_labels(answer_of(labels=np.array(["bad", "good"], object), scores=scores))
    assert [(label.name, round(label.probability, 6)) for label in labels] == [("bad", 0.75), ("good", 0.9)]


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    """By their logits: two scores of 1 say nothing."""
    answer = answer_of(logits=np.array([[0.0], [50.0], [0.0], [70.0]]), scores=np.array([[0.5], [1.0], [0.5], [1.0]]))
    ranks = read_ranks(answer, ["a", "b", "c", "d"])
    assert ranks == [Rank(3, "d", 1.0), Rank(1, "b", 1.0), Rank(0, "a", 0.5), Rank(2, "c", 0.5)]


TEXTS = ["The quick brown fox saw nothing.", "naïve 🦊", "a saw"]


async def test_a_real_taggers_tags_are_the_runs_of_its_labels(models: Running) -> None:
    with Client(models.address, "tagger") as client:
        tags = client.tag(TEXTS)
        answer = client.infer({"text": TEXTS}, ["labels", "offsets"])
    async with AsyncClient(models.address, "tagger") as other:
        assert await other.tag(TEXTS) == tags
    for text, found, labels, offsets in zip(TEXTS, tags, answer["labels"], answer["offsets"].tolist(), strict=True):
        tokens = [(label, *place) for label, place in zip(labels, offsets, strict=True) if place[1]]
        runs = [list(run) for _, run in groupby(tokens, key=lambda token: str(token[0]))]
        assert [(tag.label, tag.start, tag.end) for tag in found] == [
            (run[0][0], run[0][1], run[-1][2]) for run in runs
        ]
        assert [tag.text for tag in found] == [text[run[0][1] : run[-1][2]] for run in runs]
        assert all(1 / 3 < tag.probability <= 1 for tag in found)


async def test_a_real_reranker_ranks_by_the_score_of_each_pair(models: Running) -> None:
    with Client(models.address, "ranker", request_rows=2) as client:
        ranks = client.rank("who saw the fox?", TEXTS)
        pairs = [{"text": ["who saw the fox?"], "text_pair": [text]} for text in TEXTS]
        scores = [float(client.infer(pair, ["scores"])["scores"][0, 0]) for pair in pairs]
        logits = [float(client.infer(pair)["logits"][0, 0]) for pair in pairs]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-5)
    async with AsyncClient(models.address, "ranker") as other:
        assert await other.rank("who saw the fox?", TEXTS) == ranks
    assert [(rank.text, rank.score) for rank in ranks] == [(TEXTS[rank.index], scores[rank.index]) for rank in ranks]
    assert [rank.score for rank in ranks] == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


async def test_a_model_with_one_label_gives_it_with_its_score(models: Running) -> None:
    """As `transformers`' pipelines do; of a text, and of a pair as `rank` scores it."""
    queries = ["who saw the fox?"] * len(TEXTS)
    with Client(models.address, "ranker") as client:
        ranks = client.rank(queries[0], TEXTS)
        found = client.classify(queries, pairs=TEXTS)
        alone = client.classify(TEXTS)
    async with AsyncClient(models.address, "ranker") as other:
        assert await other.classify(TEXTS) == alone
    assert [(label.name, label.probability) for label in found] == [
        ("score", rank.score) for rank in sorted(ranks, key=lambda rank: rank.index)
    ]
    assert {label.name for label in alone} == {"score"}
