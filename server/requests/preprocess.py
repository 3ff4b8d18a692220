"""From a request's tensors, texts or images to its rows: sequences of tokens without padding.

Letters: B batch, L length, F features, t tokens of one row.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np

from heed.bundle import Manifest
from heed.bundle.manifest import ScoreActivation
from heed.bundle.sequence_packing import (
    Answer,
    Arrays,
    Bools,
    Ints,
    TokenSequence,
    cut_into_patches,
    first_column,
    numbers,
    token_sequence,
    unpack,
    unpack_attentions,
)
from heed.server.errors import DeadlineExceeded, InvalidArgument, NotFinite
from heed.server.requests.limits import RequestLimits
from heed.server.requests.scores import scores
from heed.server.requests.tokenizer import Side, TextTokenizer, TokenizedText
from heed.server.requests.validation import RequestSpec, Shaped, validate

# A smaller request is prepared on the event loop: to hand it to a thread would take longer than the work.
INLINE_CHARACTERS = 4096
TEXT_CHARACTERS = 32  # that a text counts as, however short it is
INLINE_VALUES = 2**16  # of the main input
# A norm squares what it gets. What is past 1e19 by then has no square in float32, and onnxruntime's norm makes zeros of
# it in silence; this leaves a billion for the weights before the first norm.
LARGEST_FLOAT = 1e10

NO_LIMITS = RequestLimits()


@dataclass(eq=False)
class Request:
    """A valid request and its rows."""

    spec: RequestSpec
    rows: list[TokenSequence]
    length: int  # L: columns of the answers
    labels: list[str] = field(default_factory=list)  # the model's, in the order of its logits
    activation: ScoreActivation = "none"  # that makes scores of them
    texts: list[TokenizedText] = field(default_factory=list)  # one for each row, if they came as texts

    def __post_init__(self) -> None:
        self.tokens = sum(map(len, self.rows))

    def assemble(self, answers: Sequence[Answer]) -> Arrays:
        """The rows' answers in the caller's columns, zeros (or "") at padding.

        Raises:
            NotFinite: an output of a row is NaN or infinite; the message names both.
        """
        return {name: self._output(name, answers) for name in self.spec.outputs}

    def _output(self, name: str, answers: Sequence[Answer]) -> np.ndarray:
        if name == "attentions":
            return unpack_attentions(self.rows, self._computed(name, answers), self.length)
        values = self._values(name, answers)
        return unpack(self.rows, values, self.length) if name in self.spec.per_token else np.array(values)

    def _values(self, name: str, answers: Sequence[Answer]) -> list[np.ndarray]:
        """One for each row."""
        if name == "tokens":
            return [text.words for text in self.texts]
        if name == "offsets":
            return [text.offsets for text in self.texts]
        if name == "labels":
            labels = np.array(self.labels)
            return [labels[logits.argmax(-1)] for logits in self._computed("logits", answers)]
        if name == "scores":
            computed = self._computed("logits", answers)
            return [scores(logits, self.activation).astype(np.float32) for logits in computed]
        return self._computed(name, answers)

    def _computed(self, name: str, answers: Sequence[Answer]) -> list[np.ndarray]:
        """A graph's output, for each row."""
        try:
            return [answer[name] for answer in answers]
        except KeyError:
            row = next(row for row, answer in enumerate(answers) if name not in answer)
            raise NotFinite(
                f"{name} of row {row} is NaN or infinite: the model's arithmetic overflows on this input; "
                "leave the row out, or send smaller values where it has any"
            ) from None


def never_cancelled() -> bool:
    return False


class Preprocessor:
    """Validates the requests for one model and makes rows of them. Safe in several threads."""

    def __init__(
        self, manifest: Manifest, tokenizer: TextTokenizer | None = None, limits: RequestLimits = NO_LIMITS
    ) -> None:
        """`tokenizer` is needed by a model that takes texts."""
        self._manifest = manifest
        self._tokenizer = tokenizer
        self.limits = limits
        self._takes_adjacency = manifest.takes("adjacency")
        self._takes_globals = manifest.takes("global_attention_mask")
        self._rule = manifest.position_rule

    def validate(self, inputs: Mapping[str, Shaped], outputs: Iterable[str] = ()) -> RequestSpec:
        """What many requests have in common: names, types, shapes.

        Raises:
            InvalidArgument: see `validation.validate`.
        """
        return validate(self._manifest, self.limits, inputs, outputs)

    def prepare(
        self,
        spec: RequestSpec,
        inputs: Arrays,
        truncate: Side | None = None,
        is_cancelled: Callable[[], bool] = never_cancelled,
    ) -> Request:
        """Validates the values and makes rows of them.

        Args:
            inputs: as `spec` was validated for. Texts are an object array of bytes or strings.
            truncate: the end at which to cut texts that are too long, instead of refusing them.
            is_cancelled: is called between texts.

        Raises:
            DeadlineExceeded: the request was cancelled.
            InvalidArgument: a value is wrong; the message says where it is, and what was expected.
        """
        if spec.main == "text":
            return self._prepare_texts(spec, inputs, truncate, is_cancelled)
        for name, array in inputs.items():
            if array.dtype == np.float32:
                _check_floats(name, array)
        return self._prepare_images(spec, inputs) if spec.main == "pixel_values" else self._prepare_rows(spec, inputs)

    def preprocess(self, inputs: Arrays, outputs: Iterable[str] = (), truncate: Side | None = None) -> Request:
        """Both of the above."""
        return self.prepare(self.validate(inputs, outputs), inputs, truncate)

    async def prepare_async(self, spec: RequestSpec, inputs: Arrays, truncate: Side | None = None) -> Request:
        """`prepare` from the event loop. A large request is prepared in a thread, which ends soon if the caller leaves.

        Raises: as `prepare`.
        """
        if not _is_large(spec, inputs):
            return self.prepare(spec, inputs, truncate)
        cancelled = Event()
        try:
            return await asyncio.to_thread(self.prepare, spec, inputs, truncate, cancelled.is_set)
        finally:
            cancelled.set()

    def make_row(
        self,
        tokens: Arrays,
        real: Bools | None = None,
        adjacency: Bools | None = None,
        is_global: Bools | None = None,
    ) -> TokenSequence:
        """One row, `[L]` or `[L, F]`, without its padding. All edges and the model's own global tokens unless given.

        Args:
            real: `[L]`, True for real tokens; None if all are.
        """
        if self._takes_adjacency and adjacency is None:
            length = _length(tokens)
            adjacency = np.ones((length, length), np.bool_)
        if self._takes_globals and is_global is None:
            first = 0 if real is None else first_column(self._rule, real)
            columns = numbers(_length(tokens)) - first
            is_global = (columns >= 0) & (columns < self._manifest.first_tokens_global)
        return token_sequence(self._rule, tokens, real, adjacency, is_global)

    def _prepare_rows(self, spec: RequestSpec, inputs: Arrays) -> Request:
        """Of input_ids or features."""
        real_BL = _real(inputs)
        tokens = self._tokens(inputs)
        others: Arrays = {} if real_BL is None else {"real": real_BL}
        if "adjacency" in inputs:
            others["adjacency"] = inputs["adjacency"]
        if "global_attention_mask" in inputs:
            _check_binary("global_attention_mask", inputs["global_attention_mask"])
            others["is_global"] = inputs["global_attention_mask"].astype(np.bool_)
        batch, length = inputs[spec.main].shape[:2]
        rows = [
            self.make_row(
                {name: array[row] for name, array in tokens.items()},
                **{name: array[row] for name, array in others.items()},
            )
            for row in range(batch)
        ]
        return self._request(spec, rows, length)

    def _tokens(self, inputs: Arrays) -> Arrays:
        """The inputs of the first layer, `[B, L]` or `[B, L, F]`."""
        if "features" in inputs:
            return {"features": inputs["features"]}
        limits = self._manifest.limits
        ids = inputs["input_ids"]
        _check_range("input_ids", ids, limits.vocabulary, "the vocabulary")
        if not limits.token_types:
            return {"input_ids": ids}
        if "token_type_ids" not in inputs:
            return {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
        types = inputs["token_type_ids"]
        _check_range("token_type_ids", types, limits.token_types, "the token types")
        return {"input_ids": ids, "token_type_ids": types}

    def _prepare_images(self, spec: RequestSpec, inputs: Arrays) -> Request:
        assert self._manifest.image
        features_BLF = cut_into_patches(inputs["pixel_values"], self._manifest.image.patch)
        rows = [self.make_row({"features": row_LF}) for row_LF in features_BLF]
        return self._request(spec, rows, features_BLF.shape[1])

    def _prepare_texts(
        self, spec: RequestSpec, inputs: Arrays, truncate: Side | None, is_cancelled: Callable[[], bool]
    ) -> Request:
        for name, array in inputs.items():
            self.limits.check_texts(f"input {name}", array.flat)
        texts = _decoded(inputs, "text")
        pairs: list[str] | list[None] = [None] * len(texts)
        if "text_pair" in inputs:
            pairs = _decoded(inputs, "text_pair")
            if len(pairs) != len(texts):
                raise InvalidArgument(f"input text_pair has {len(pairs)} texts, text has {len(texts)}; they differ")
        tokenized: list[TokenizedText] = []
        rows: list[TokenSequence] = []
        assert self._tokenizer  # as the manifest takes text
        for index, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
            if is_cancelled():
                raise DeadlineExceeded("the caller no longer waits for the answer")
            where = f"input text[{index}]" + " with its pair" * (pair is not None)
            tokens = self._tokenizer.encode(text, pair, truncate, where)
            tokenized.append(tokens)
            rows.append(self.make_row(self._text_tokens(tokens, where)))
        return self._request(spec, rows, max(map(len, tokenized)), tokenized)

    def _request(
        self, spec: RequestSpec, rows: list[TokenSequence], length: int, texts: Sequence[TokenizedText] = ()
    ) -> Request:
        manifest = self._manifest
        return Request(spec, rows, length, manifest.labels, manifest.label_activation, [*texts])

    def _text_tokens(self, text: TokenizedText, where: str) -> Arrays:
        """Those of one text, `[t]`; a tokenizer may have more tokens and types than the model has rows for."""
        limits = self._manifest.limits
        tokens = {"input_ids": text.input_ids}
        if not _fits(text.input_ids, limits.vocabulary):
            outside = int((text.input_ids >= limits.vocabulary).argmax())
            raise InvalidArgument(
                f"{where} has the token {str(text.words[outside])!r}, whose id {text.input_ids[outside]} is outside "
                f"the vocabulary of 0 to {limits.vocabulary - 1}"
            )
        if limits.token_types:
            tokens["token_type_ids"] = text.token_type_ids
            if not _fits(text.token_type_ids, limits.token_types):
                raise InvalidArgument(
                    f"{where} has tokens of type {text.token_type_ids.max()}, outside the token types of 0 to "
                    f"{limits.token_types - 1}; send the text without a pair"
                )
        return tokens


def _is_large(spec: RequestSpec, inputs: Arrays) -> bool:
    if spec.main != "text":
        return inputs[spec.main].size > INLINE_VALUES
    return sum(TEXT_CHARACTERS + len(text) for array in inputs.values() for text in array.flat) > INLINE_CHARACTERS


def _check_floats(name: str, array: np.ndarray) -> None:
    if not np.abs(array).max() <= LARGEST_FLOAT:  # NaN is not, either
        index = np.argwhere(~(np.abs(array) <= LARGEST_FLOAT))[0]
        raise InvalidArgument(
            f"input {name}{index.tolist()} is {array[tuple(index)]:g}, expected a number from -{LARGEST_FLOAT:.0e} to "
            f"{LARGEST_FLOAT:.0e}"
        )


def _fits(array: Ints, size: int) -> bool:
    """Whether all are 0 to size - 1. Seen without a sign, a negative number is larger than any size."""
    return bool(array.astype(np.int64, copy=False).view(np.uint64).max() < size)


def _check_range(name: str, array: Ints, size: int, what: str) -> None:
    if _fits(array, size):
        return
    row, column = np.argwhere((array < 0) | (array >= size))[0]
    raise InvalidArgument(f"input {name}[{row}, {column}] is {array[row, column]}, outside {what} of 0 to {size - 1}")


def _check_binary(name: str, mask: Ints) -> None:
    if _fits(mask, 2):
        return
    row, column = np.argwhere((mask != 0) & (mask != 1))[0]
    raise InvalidArgument(f"input {name}[{row}, {column}] is {mask[row, column]}, expected 0 or 1")


def _real(inputs: Arrays) -> Bools | None:
    """`[B, L]`, True for real tokens; None if all are."""
    mask = inputs.get("attention_mask")
    if mask is None or (mask == 1).all():  # as most are
        return None
    _check_binary("attention_mask", mask)
    empty = ~mask.any(axis=1)
    if empty.any():
        raise InvalidArgument(f"input attention_mask: row {np.argmax(empty)} has no real token (all 0)")
    return mask.astype(np.bool_)


def _length(tokens: Arrays) -> int:
    return len(next(iter(tokens.values())))


def _decoded(inputs: Arrays, name: str) -> list[str]:
    texts = []
    for index, raw in enumerate(inputs[name]):
        try:
            texts.append(raw if isinstance(raw, str) else raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"input {name}[{index}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts
