"""The reference's own answers: the contract's cases, computed in float64."""

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bundle.contract import START_TOKENS, Case
from bundle.packing import Arrays
from export.cases import tensor_cases, text_cases
from model import Checkpoint, CheckpointError, Encoder


class Reference:
    """An encoder in float64, from the same float32 weights."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = copy.deepcopy(encoder).double().eval()

    def answer(self, inputs: Arrays) -> Arrays:
        """What the reference says to padded rows: every output as float64."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the last bits, and with them a bundle's digests, would depend on how many there are
        try:
            with torch.no_grad():
                outputs = self._encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        finally:
            torch.set_num_threads(threads)
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def _tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare class
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from None
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if last >= vocabulary:
        raise CheckpointError(f"{path} gives ids up to {last}, the model's vocabulary ends at {vocabulary - 1}")
    return tokenizer


def make_contract(checkpoint: Checkpoint) -> list[Case]:
    """Every case with the reference's answers, in the order of what tells most.

    The first ones that fit into `START_TOKENS` are checked at every start of a server.

    Raises:
        CheckpointError: the tokenizer cannot be read, or is not this model's.
    """
    reference = Reference(checkpoint.encoder)
    config = checkpoint.encoder.config
    asked = [(name, inputs, inputs) for name, inputs in tensor_cases(config)]
    if checkpoint.tokenizer:
        asked += text_cases(_tokenizer(checkpoint.tokenizer, config.vocabulary), checkpoint.max_text_length)
    left = START_TOKENS
    cases = []
    for name, inputs, tensors in asked:
        tokens = int(tensors.get("attention_mask", torch.ones(tensors["input_ids"].shape)).sum())
        at_start = tokens <= left and name not in ("large_batch", "two_longest")
        left -= tokens if at_start else 0
        cases.append(Case(name, inputs, reference.answer(tensors), at_start))
    return cases
