"""The methods of `tei.v1` that a model has, and the refusal of those that it has not."""

from heed.bundle import Manifest
from heed.bundle.manifest import Task
from heed.server.errors import FailedPrecondition

TENSORS = "the Open Inference Protocol, inference.GRPCInferenceService/ModelInfer"

# Those that need nothing but a tokenizer are for all.
METHODS: dict[Task, tuple[str, ...]] = {
    "encoder": ("EmbedAll",),
    "embedding": ("Embed", "EmbedAll"),
    "sequence_classification": ("Predict", "PredictPair", "EmbedAll"),
    "token_classification": ("EmbedAll",),
    "reranking": ("Rerank", "Predict", "PredictPair", "EmbedAll"),
}
MORE: dict[Task, str] = {"token_classification": f"; the labels of tokens and their spans come through {TENSORS}"}


def check_text(manifest: Manifest) -> None:
    """Raises FailedPrecondition if the model takes no texts."""
    if not manifest.takes_text:
        takes = ", ".join(manifest.input_specs)
        raise FailedPrecondition(f"{manifest.name} takes no text but {takes}: use {TENSORS}")


def check_can(manifest: Manifest, method: str) -> None:
    """Raises FailedPrecondition if the model cannot do this; the message says what it can."""
    check_text(manifest)
    methods = METHODS[manifest.task]
    if method not in methods:
        task = manifest.task.replace("_", " ")
        raise FailedPrecondition(
            f"{manifest.name} is a model for {task} and has no {method}, only {', '.join(methods)}"
            + MORE.get(manifest.task, "")
        )
