"""What a model can do at this door, and what it says to what it cannot."""

from heed.bundle import Manifest
from heed.bundle.manifest import Task
from heed.server.errors import FailedPrecondition

TENSOR_DOOR = "the tensor door, inference.GRPCInferenceService/ModelInfer"

# Those that need nothing but a tokenizer are for all.
METHODS: dict[Task, tuple[str, ...]] = {
    "encoder": ("EmbedAll",),
    "embedding": ("Embed", "EmbedAll"),
    "sequence_classification": ("Predict", "PredictPair", "EmbedAll"),
    "token_classification": ("EmbedAll",),
    "reranking": ("Rerank", "Predict", "PredictPair", "EmbedAll"),
}
MORE: dict[Task, str] = {"token_classification": f"; spans and labels of tokens travel by {TENSOR_DOOR}"}


def check_text(manifest: Manifest) -> None:
    """Raises FailedPrecondition if the model takes no texts."""
    if not manifest.takes_text:
        takes = ", ".join(manifest.input_specs)
        raise FailedPrecondition(f"{manifest.name} takes no text but {takes}: ask it through {TENSOR_DOOR}")


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
