"""`heed verify --against FOLDER`: what `transformers` itself answers to the inputs of a contract, in float64.

The contract holds the answers of heed's own reference. This asks the other implementation that everybody knows, and for
texts its tokenizer too.

Letters: B rows of a request, L columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from heed.bundle import Manifest
from heed.bundle.contract import Case
from heed.bundle.manifest import Task
from heed.bundle.sequence_packing import Arrays
from heed.model.sentence_transformers_folder import read_sentence_folder

CLASSES: dict[Task, str] = {
    "encoder": "AutoModel",
    "embedding": "AutoModel",
    "sequence_classification": "AutoModelForSequenceClassification",
    "reranking": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "global_attention_mask")


class Transformers:
    """A checkpoint as `transformers` reads it. Each row is asked for by itself.

    Raises:
        OSError, ValueError: it cannot load the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        inner = read_sentence_folder(folder).transformer
        name = "AutoModelForImageClassification" if manifest.image and manifest.labels else CLASSES[manifest.task]
        options: dict[str, Any] = {"dtype": torch.float64, "local_files_only": True}
        self._manifest = manifest
        self._model = getattr(transformers, name).from_pretrained(inner, **options).eval()
        self._tokenizer = (
            transformers.AutoTokenizer.from_pretrained(inner, local_files_only=True) if manifest.takes_text else None
        )
        self._embed = _sentence_transformer(folder) if manifest.task == "embedding" else None

    @property
    def name(self) -> str:
        names = ["transformers", *(["sentence-transformers"] if self._embed else [])]
        return ", ".join(f"{each} {version(each)}" for each in names)

    def ask(self, case: Case) -> Case:
        """The case with these answers in place of the contract's; without any that `transformers` does not give."""
        if "text" in case.inputs:
            rows = [self._of_text(case.inputs, row) for row in range(len(case.inputs["text"]))]
        else:
            rows = [self._of_tensors(case.inputs, row) for row in range(len(next(iter(case.inputs.values()))))]
        outputs = {name: _stacked([row[name] for row in rows]) for name in rows[0] if name in case.outputs}
        if self._embed and "sentence_embedding" in case.outputs and case.inputs.keys() == {"text"}:
            outputs["sentence_embedding"] = self._embed([str(text) for text in case.inputs["text"]])
        return replace(case, outputs=outputs)

    def _of_text(self, inputs: Arrays, row: int) -> Arrays:
        assert self._tokenizer is not None
        texts = [str(inputs[name][row]) for name in ("text", "text_pair") if name in inputs]
        return self._run(dict(self._tokenizer(*texts, return_tensors="pt")))

    def _of_tensors(self, inputs: Arrays, row: int) -> Arrays:
        """A row of tokens is asked for without the padding at its end, where the answer is zeros."""
        asked = {name: torch.from_numpy(np.ascontiguousarray(array[row : row + 1])) for name, array in inputs.items()}
        if "pixel_values" in asked:
            return self._run({"pixel_values": asked["pixel_values"].double()})
        length = inputs["input_ids"].shape[1]
        mask = asked.get("attention_mask", torch.ones(1, length, dtype=torch.long))
        real = mask[0].nonzero().flatten()
        first = int(real[0]) if self._manifest.position_rule.kind == "stripped" else 0
        span = slice(first, int(real[-1]) + 1)
        found = self._run(
            {name: asked[name][:, span] for name in COLUMNS if name in asked} | {"attention_mask": mask[:, span]}
        )
        return {
            name: _padded(array, span, mask[0].numpy()) if array.ndim == 2 else array for name, array in found.items()
        }

    def _run(self, inputs: dict[str, Tensor]) -> Arrays:
        """The answer for one row: `[L, ...]` for tokens, `[...]` for the whole row."""
        if hasattr(self._model, "set_attention_type"):  # a short row switches Big Bird to full attention for good
            self._model.set_attention_type(self._model.config.attention_type)
        with torch.no_grad():
            answer = self._model(**inputs)
        return {name: answer[name][0].numpy() for name in ("last_hidden_state", "logits") if name in answer}


def _sentence_transformer(folder: Path) -> Callable[[list[str]], np.ndarray] | None:
    """Embeds texts as sentence-transformers does; None where it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        return None
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True).double().eval()

    def embed(texts: list[str]) -> np.ndarray:
        return np.stack([np.asarray(model.encode(text, prompt="", show_progress_bar=False)) for text in texts])

    return embed


def _padded(array: np.ndarray, span: slice, mask_L: np.ndarray) -> np.ndarray:
    """A row's answer `[span, ...]` in all its columns, `[L, ...]`, with zeros at padding."""
    whole = np.zeros((len(mask_L), *array.shape[1:]))
    whole[span] = array
    whole[mask_L == 0] = 0
    return whole


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """The rows of a request `[B, L, ...]`, those of texts with zeros behind the shorter ones."""
    if rows[0].ndim < 2:
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])


def asked(oracle: Transformers, cases: list[Case]) -> Iterator[Case]:
    """The cases with the answers of `transformers`, those without any left out."""
    for case in cases:
        answered = oracle.ask(case)
        if answered.outputs:
            yield answered
