"""Scores out of logits. Letters: C labels."""

import numpy as np
import pytest

from heed.bundle.manifest import Manifest, ScoreActivation
from heed.server.requests.preprocess import Preprocessor
from heed.server.requests.scores import best_first, scores
from tests.server.support import manifest_of


@pytest.mark.parametrize(
    ("activation", "logits_C", "expected_C"),
    [
        ("softmax", [1000.0, 1000.0, -1000.0], [0.5, 0.5, 0.0]),
        ("sigmoid", [-1000.0, 0.0, 1000.0], [0.0, 0.5, 1.0]),
        ("sigmoid", [np.log(3.0)], [0.75]),
        ("none", [-3.5, 2.0], [-3.5, 2.0]),
    ],
)
def test_scores_by_hand(activation: ScoreActivation, logits_C: list[float], expected_C: list[float]) -> None:
    found = scores(np.array([[logits_C]], np.float32), activation)
    np.testing.assert_allclose(found, [[expected_C]], rtol=1e-6)


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    assert best_first(np.array([0.1, 0.5, 0.5, 0.9])).tolist() == [3, 1, 2, 0]


def classifier(activation: ScoreActivation | None, labels: int = 3) -> Manifest:
    outputs = ["last_hidden_state", "logits", "labels", "scores"]
    names = ["a", "b", "c"][:labels]
    return manifest_of("input_ids", "attention_mask", outputs=outputs, labels=names, score_activation=activation)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (classifier("sigmoid"), [0.75, 0.5, 0.25]),
        (classifier("none"), [np.log(3.0), 0.0, -np.log(3.0)]),
        (classifier("softmax"), [9 / 13, 3 / 13, 1 / 13]),
        (classifier(None), [9 / 13, 3 / 13, 1 / 13]),  # of a bundle that does not say
    ],
)
def test_scores_are_an_output_of_their_own(manifest: Manifest, expected: list[float]) -> None:
    preprocessor = Preprocessor(manifest)
    inputs = {"input_ids": np.array([[5, 6], [7, 8]]), "attention_mask": np.array([[1, 1], [1, 0]])}
    request = preprocessor.preprocess(inputs, ["scores", "labels"])
    assert request.spec.computed == {"logits"}
    logits_LC = np.array([[np.log(3.0), 0.0, -np.log(3.0)]] * 2, np.float32)
    answers = request.assemble([{"logits": logits_LC}, {"logits": logits_LC[:1]}])
    assert answers["scores"].dtype == np.float32
    np.testing.assert_allclose(answers["scores"][:, 0], [expected] * 2, rtol=1e-6)
    assert not answers["scores"][1, 1].any()  # padding
    assert "scores" not in preprocessor.preprocess(inputs).spec.outputs  # only for callers who name them


def test_a_bundle_that_does_not_say_has_a_sigmoid_for_one_label() -> None:
    assert classifier(None, labels=1).label_activation == "sigmoid"
    assert classifier("none", labels=1).label_activation == "none"
