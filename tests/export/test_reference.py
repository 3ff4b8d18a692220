"""The reference keeps its matrices in float32 and answers as if all of it were float64."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from heed.export.cases import tensor_cases
from heed.export.reference import Reference, same_threads
from heed.model import load_checkpoint


@pytest.mark.parametrize("source", ["tiny", "tiny_roberta"])
def test_it_answers_to_the_bit_as_a_whole_copy_in_float64(source: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(source)
    encoder = load_checkpoint(folder).encoder
    reference, whole = Reference(encoder), copy.deepcopy(encoder).double()
    for name, inputs in tensor_cases(encoder.config):
        answers = reference.answer(inputs, attentions=True)
        with torch.no_grad(), same_threads(inputs, encoder.config):
            expected = whole(**{key: torch.from_numpy(array) for key, array in inputs.items()}, attentions=True)
        for output, tensor in expected.items():
            assert answers[output].dtype == np.float64
            np.testing.assert_array_equal(answers[output], tensor.numpy(), err_msg=name)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}  # it is as it was


def test_it_has_no_matrices_of_its_own(tiny: Path) -> None:
    encoder = load_checkpoint(tiny).encoder
    shared = {weight.data_ptr() for weight in encoder.parameters() if weight.ndim == 2}
    copied = {weight.data_ptr() for weight in Reference(encoder).encoder.parameters() if weight.ndim == 2}
    assert shared == copied
