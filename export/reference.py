"""The reference's own answers: the contract's cases, computed in float64."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from heed.bundle.contract import START_TOKENS, Case, error_of
from heed.bundle.sequence_packing import Arrays
from heed.export.cases import NOT_AT_START, WITH_ATTENTIONS, tensor_cases, text_cases
from heed.export.manifest import gives_attentions, limits
from heed.export.progress import Progress, Work, no_progress
from heed.model import Checkpoint, CheckpointError, Encoder, EncoderConfig
from heed.model.config import LabelsConfig

# Numbers in a hidden state from which two threads are faster than one.
LARGE_STATE = 2**20


@contextmanager
def same_threads(inputs: Arrays, config: EncoderConfig) -> Iterator[None]:
    """Computes with two threads where there is enough to do, with one elsewhere, whatever the machine has: the last
    bits, and with them a bundle's digests, depend on the number of threads.

    Args:
        inputs: what is computed, padded or packed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if _tokens(inputs, config) * config.width >= LARGE_STATE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tokens(inputs: Arrays, config: EncoderConfig) -> int:
    """Padding included."""
    if "pixel_values" in inputs:
        return len(inputs["pixel_values"]) * config.max_length
    return inputs["input_ids"].size if "input_ids" in inputs else inputs["features"][..., 0].size


class _Linear(nn.Linear):
    """Keeps its weights in float32 and computes in float64."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return nn.functional.linear(x.double(), self.weight.double(), bias)


class _Embedding(nn.Embedding):
    """Keeps its rows in float32 and returns them in float64."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).double()


def _in_float64(encoder: Encoder) -> Encoder:
    """A copy that computes in float64.

    The matrices of layers and tables, which are nearly all of a model, stay the encoder's own in float32: each is
    converted when its layer is computed, and freed. A whole copy in float64 would take twice the model's memory.
    """
    casting = {nn.Linear: _Linear, nn.Embedding: _Embedding}
    large = [part for part in encoder.modules() if type(part) in casting]
    shared = {id(weight): weight for part in large for weight in part.parameters()}
    copied = copy.deepcopy(encoder, shared)
    for part in copied.modules():
        if type(part) in casting:
            part.__class__ = casting[type(part)]
        else:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.double()
    return copied.eval()


def _answer(encoder: Encoder, inputs: Arrays, attentions: bool) -> Arrays:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad(), same_threads(inputs, encoder.config):
        outputs = encoder(**tensors, attentions=attentions)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _float32_errors(encoder: Encoder, inputs: Arrays, reference: Arrays, attentions: bool) -> dict[str, float]:
    """How far PyTorch's own float32 is from the reference, by output, as `error_of` counts. To two digits: the last
    bits are not the same on every machine, and a bundle's digests should be."""
    answers = _answer(encoder, inputs, attentions)
    errors = {name: error_of(answer, reference[name]) for name, answer in answers.items()}
    return {name: float(f"{error:.1e}") for name, error in errors.items() if np.isfinite(error)}


class Reference:
    """An encoder in float64, from the same float32 weights."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = _in_float64(encoder)

    def answer(self, inputs: Arrays, attentions: bool = False) -> Arrays:
        """The reference's answer to padded rows: every output as float64, and labels as their names."""
        answers = _answer(self.encoder, inputs, attentions)
        return answers | self._labels(answers, inputs)

    def _labels(self, answers: Arrays, inputs: Arrays) -> Arrays:
        """The names of the best labels, `[B]` or `[B, L]`; empty at padding."""
        head = self.encoder.config.head
        if not isinstance(head, LabelsConfig) or len(head.names) == 1:
            return {}
        labels = np.array(head.names)[answers["logits"].argmax(-1)]
        if head.per == "token" and "attention_mask" in inputs:
            labels = np.where(inputs["attention_mask"] == 1, labels, "")
        return {"labels": labels}


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """
    Raises:
        CheckpointError: it cannot be read, or is not this model's.
    """
    path, vocabulary = checkpoint.tokenizer, checkpoint.encoder.config.vocabulary
    try:
        tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer_json())
    except Exception as error:  # tokenizers raises the bare class
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from None
    own = tokenizer.get_vocab(with_added_tokens=False)
    last = max(own.values(), default=-1)
    if last >= vocabulary:
        raise CheckpointError(f"{path} gives ids up to {last}, the model's vocabulary ends at {vocabulary - 1}")
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if own.keys() <= added:
        raise CheckpointError(
            f"{path} is a tokenizer without a vocabulary: it has the special tokens {', '.join(sorted(added))} and no "
            "others, so that every text would be the same to the model; make it anew from the publisher's files"
        )
    return tokenizer


def _requests(checkpoint: Checkpoint) -> list[tuple[str, Arrays, Arrays]]:
    """Name, a caller's inputs and the same as tensors, of every case."""
    config = checkpoint.encoder.config
    requests = [(name, inputs, inputs) for name, inputs in tensor_cases(config)]
    if checkpoint.tokenizer:
        cases = [*text_cases(_tokenizer(checkpoint), limits(checkpoint))]
        if not cases:
            raise CheckpointError(
                f"{checkpoint.tokenizer} has tokens or token types in every text that the model has no rows for: "
                f"its vocabulary ends at {config.vocabulary - 1}, its token types at {config.token_types - 1}"
            )
        requests += cases
    return requests


@contextmanager
def _after_layers(encoders: Iterable[Encoder], call: Callable[[], None]) -> Iterator[None]:
    """Calls something whenever one of the encoders has computed a layer."""
    blocks = [block for encoder in encoders for block in encoder.blocks]
    hooks = [block.register_forward_hook(lambda *_: call()) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layer_work(tensors: Arrays, config: EncoderConfig) -> float:
    """Multiplications of a layer, roughly: the projections' and the attention's."""
    tokens = _tokens(tensors, config)
    length = tokens / len(next(iter(tensors.values())))
    return tokens * (6.0 * config.width + length)


def make_contract(checkpoint: Checkpoint, progress: Progress = no_progress) -> list[Case]:
    """Every case with the reference's answers, those first that reveal most.

    The first ones that fit into `START_TOKENS` are checked at every start of a server.

    Raises:
        CheckpointError: the tokenizer cannot be read, or is not this model's.
    """
    reference, encoder = Reference(checkpoint.encoder), checkpoint.encoder
    has_weights = gives_attentions(encoder.config)
    requests = _requests(checkpoint)
    layer_work = [_layer_work(tensors, encoder.config) for _, _, tensors in requests]
    work = Work(progress, 2 * len(encoder.blocks) * sum(layer_work))
    left = START_TOKENS
    cases: list[Case] = []
    for (name, inputs, tensors), part in zip(requests, layer_work, strict=True):
        attentions = has_weights and name in WITH_ATTENTIONS
        with _after_layers((reference.encoder, encoder), partial(work.done, part)):
            outputs = reference.answer(tensors, attentions)
            errors = _float32_errors(encoder, tensors, outputs, attentions)
        batch, length = outputs["last_hidden_state"].shape[:2]
        tokens = int(tensors["attention_mask"].sum()) if "attention_mask" in tensors else batch * length
        at_start = not cases or (tokens <= left and name not in NOT_AT_START)
        left -= tokens if at_start else 0
        cases.append(Case(name, inputs, outputs, at_start, errors))
    return cases
