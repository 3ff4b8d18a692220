"""What a classifier's folder promises of its scores: which function makes them of logits."""

from dataclasses import replace
from typing import Any

from heed.model.classification_head import LabelsConfig, ScoreActivation
from heed.model.config import EncoderConfig

# By the names that sentence-transformers writes for cross-encoders.
ACTIVATIONS: dict[str, ScoreActivation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
    "torch.nn.modules.linear.Identity": "none",
}
# By the names that `transformers` has for what a model was trained for.
PROBLEMS: dict[str, ScoreActivation] = {
    "multi_label_classification": "sigmoid",
    "regression": "none",
    "single_label_classification": "softmax",
}


def with_scores(config: EncoderConfig, raw: dict[str, Any], activation: str | None) -> EncoderConfig:
    """The same, with what makes scores of its logits.

    A cross-encoder's own activation counts first, then `problem_type` as in the pipelines of `transformers`: one label
    makes a sigmoid unless it is a regression.

    Args:
        raw: config.json.
        activation: what config_sentence_transformers.json names.

    Raises:
        ValueError: the function is not computed here.
    """
    head = config.head
    if not isinstance(head, LabelsConfig) or head.per == "token":
        return config
    own = raw.get("sentence_transformers")
    named = activation or (own.get("activation_fn") if isinstance(own, dict) else None)
    named = named or raw.get("sbert_ce_default_activation_function")
    if named is not None:
        if named not in list(ACTIVATIONS):
            raise ValueError(f"the activation of scores {named!r} is not supported, only {', '.join(ACTIVATIONS)}")
        return replace(config, head=replace(head, score_activation=ACTIVATIONS[named]))
    problem = raw.get("problem_type")
    if problem is not None and problem not in list(PROBLEMS):
        raise ValueError(f"config.json: problem_type={problem!r} is none of {', '.join(PROBLEMS)}")
    if problem is None or (problem == "single_label_classification" and len(head.names) == 1):
        return config
    return replace(config, head=replace(head, score_activation=PROBLEMS[problem]))
