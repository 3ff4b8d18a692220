"""What is served, over gRPC and by two clients, against `transformers` in float64."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.contract.support import (
    BUDGET,
    CLIENT_KINDS,
    Oracle,
    Served,
    ask,
    assert_answers_as_transformers,
    assert_close,
    pads_in_the_middle,
    pads_left,
    pads_right,
)

LONGEST_IN_A_BATCH = 40

TEXTS = [
    "How do I get my money back?",
    "ALL CAPITALS, and Some",
    "Ça alors ! Zoë's naïve crème brûlée à la façade",
    "Ångström, Łódź, İstanbul, ǅ, ﬁne",
    "早上好，世界。",
    "こんにちは 안녕하세요 สวัสดี",
    "👩‍🔬🚀 to the moon 🌕",
    "שלום עולם، مرحبا بالعالم",
    "  leading,\ttabs\nand\u00a0non-breaking \u200b spaces  ",
    "xqzjvwkk floccinaucinihilipilification",
    "[CLS] in [SEP] the [MASK] text [PAD]",
    "3.14159 ± 0.5% at 10⁻⁹ m²",
    "",
]
LONG_TEXT = "money back for a naïve customer " * 60  # 362 tokens
MAX_TEXT_LENGTH = 256


def test_every_length_is_answered_as_transformers_does(served: Served) -> None:
    requests = served.requests(seed=1)
    assert_answers_as_transformers(served, [requests.of(np.ones((1, length), np.int64)) for length in served.lengths])


def test_batches_of_mixed_lengths_are_answered_as_transformers_does(served: Served) -> None:
    requests = served.requests(seed=2)
    lengths = [requests.lengths(batch, LONGEST_IN_A_BATCH) for batch in served.batches]
    assert_answers_as_transformers(served, [requests.of(pads_right(mixed)) for mixed in lengths])


def test_padding_may_be_anywhere(served: Served) -> None:
    requests = served.requests(seed=3)
    lengths = [1, 2, 3, 7, 16, 31, 40]
    masks = [pads_right(lengths), pads_left(lengths), pads_in_the_middle([1, 2, 3, 7, 16, 31, 36])]
    masks += [requests.holes(batch, length) for batch, length in [(1, 9), (4, 17), (8, 40)]]
    assert_answers_as_transformers(served, [requests.of(mask) for mask in masks])


def test_padding_ids_count_for_positions_as_the_family_counts_them(served: Served) -> None:
    requests = served.requests(seed=4)
    masks = [np.ones((2, 40), np.int64), pads_right([5, 40, 12]), pads_left([5, 40, 12]), requests.holes(4, 33)]
    assert_answers_as_transformers(served, [requests.sprinkled(requests.of(mask), served.padding_id) for mask in masks])


@pytest.mark.parametrize("left_out", [{"attention_mask"}, {"token_type_ids"}, {"attention_mask", "token_type_ids"}])
def test_inputs_left_out_mean_what_transformers_means(served: Served, left_out: set[str]) -> None:
    full = served.requests(seed=5).of(pads_right([21, 9, 14]))
    given = {name: array for name, array in full.items() if name not in left_out}
    assert_answers_as_transformers(served, [given])


def test_cls_pooling_takes_the_first_real_token(cls_served: Served) -> None:
    request = cls_served.requests(seed=6).of(pads_left([3, 10]))
    request["attention_mask"][1, 0] = 0
    first_real = cls_served.oracle.answer(request)["last_hidden_state"][0, 7]
    for kind in CLIENT_KINDS:
        (answer,) = ask(kind, cls_served.address, cls_served.name, [request])
        assert_close(answer, cls_served.oracle.answer(request), kind)
        assert np.abs(answer["sentence_embedding"][0] - first_real / np.linalg.norm(first_real)).max() < 1e-5


def test_text_is_answered_as_tokenizer_and_model_of_transformers_do(minilm: Path, minilm_served: Served) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    groups = [[text] for text in [*TEXTS, LONG_TEXT]] + [TEXTS]
    references = []
    for group in groups:
        tokens = tokenizer(group, padding=True, truncation=True, max_length=MAX_TEXT_LENGTH, return_tensors="np")
        references.append(minilm_served.oracle.answer({name: tokens[name] for name in tokens}))
    assert references[-2]["last_hidden_state"].shape[1] == MAX_TEXT_LENGTH
    requests = [{"text": np.array(group)} for group in groups]
    for kind in CLIENT_KINDS:
        answers = ask(kind, minilm_served.address, "minilm", requests, truncate=True)
        for group, answer, reference in zip(groups, answers, references, strict=True):
            assert_close(answer, reference, f"{group[0]!r} by the {kind} client")


def test_an_answer_that_is_twice_the_budget_off_is_noticed(tiny_served: Served) -> None:
    """A control."""
    request = tiny_served.requests(seed=7).of(pads_right([5, 3]))
    (answer,) = ask("own", tiny_served.address, tiny_served.name, [request])
    reference = tiny_served.oracle.answer(request)
    assert_close(answer, reference, "as it came")
    for name, expected in reference.items():
        off = expected.copy()
        off[0, 0] += 2 * BUDGET * max(1.0, np.abs(expected).max())
        with pytest.raises(AssertionError, match=name):
            assert_close(answer, reference | {name: off}, "altered")


def test_answers_of_another_model_are_noticed(tiny_served: Served, cls_source: Path) -> None:
    """A control."""
    request = tiny_served.requests(seed=8).of(pads_right([5, 3]))
    (answer,) = ask("own", tiny_served.address, tiny_served.name, [request])
    with pytest.raises(AssertionError, match="last_hidden_state is off by"):
        assert_close(answer, Oracle(cls_source, "mean").answer(request), "another")
