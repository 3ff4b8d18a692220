"""A bundle's manifest (`bundle.json`): the model's task, its inputs and outputs, its limits, and where it comes from.

Letters in shapes: B batch, L length; -1 stands for any size.
"""

import hashlib
import shlex
from importlib.metadata import version
from pathlib import Path

from heed.bundle.digests import file_digest
from heed.bundle.manifest import (
    Graph,
    Image,
    Limits,
    Manifest,
    PositionRule,
    Provenance,
    Task,
    TensorSpec,
    specs_of_logits,
)
from heed.model import Checkpoint
from heed.model.config import EncoderConfig, ImagesConfig, LabelsConfig, PoolingConfig, VectorsConfig

B, L = -1, -1
TOOLS = ("heed-serve", "torch", "onnx", "onnxscript", "tokenizers", "numpy")


def make_manifest(checkpoint: Checkpoint, name: str, graphs: list[Graph], source: dict[str, str]) -> Manifest:
    """
    Args:
        name: the model's name for callers.
        source: see `source_digests`.
    """
    config = checkpoint.encoder.config
    return Manifest(
        name=name,
        task=task(config),
        inputs=inputs(checkpoint),
        outputs=outputs(checkpoint, gives_attentions(config)),
        limits=limits(checkpoint),
        position_rule=position_rule(config),
        aligned=config.aligned,
        first_tokens_global=config.first_tokens_global,
        first_token="real" if config.reads_first_real else "column",
        labels=labels(config),
        score_activation=config.head.activation if isinstance(config.head, LabelsConfig) else None,
        unit_length=unit_length(config),
        prompts=dict(checkpoint.prompts.texts) if checkpoint.tokenizer else {},
        default_prompt_name=checkpoint.prompts.default if checkpoint.tokenizer else None,
        image=image(config),
        graphs=graphs,
        provenance=_provenance(checkpoint, name, graphs, source),
    )


def _provenance(checkpoint: Checkpoint, name: str, graphs: list[Graph], source: dict[str, str]) -> Provenance:
    precisions = list(dict.fromkeys(graph.precision for graph in graphs))
    option = f" --precision {','.join(precisions)}" if precisions != ["fp32"] else ""
    option += "".join(f" --ignore-key {shlex.quote(key)}" for key in checkpoint.ignored_keys)
    return Provenance(
        family=checkpoint.family,
        ignored_keys=list(checkpoint.ignored_keys),
        source=source,
        tools={tool: version(tool) for tool in TOOLS},
        command=f"heed export SOURCE OUT --name {name}{option}",
    )


def source_digests(source: Path | Checkpoint, checkpoint: Checkpoint) -> dict[str, str]:
    """What identifies the source: the digest of every file that was read from a folder, or of a model's weights."""
    if isinstance(source, Path):
        return {path.relative_to(source).as_posix(): file_digest(path) for path in checkpoint.files}
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.encoder.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return {"weights": digest.hexdigest()}


def task(config: EncoderConfig) -> Task:
    """What the model is for, in the ecosystem's words."""
    head = config.head
    if isinstance(head, PoolingConfig):
        return "embedding"
    if not isinstance(head, LabelsConfig):
        return "encoder"
    if head.per == "token":
        return "token_classification"
    return "reranking" if len(head.names) == 1 else "sequence_classification"


def inputs(checkpoint: Checkpoint) -> list[TensorSpec]:
    """Every tensor that a request may hold."""
    config = checkpoint.encoder.config
    return [
        *_token_inputs(config, has_text=checkpoint.tokenizer is not None),
        *_text_inputs(checkpoint),
        *_layout_inputs(config),
    ]


def _token_inputs(config: EncoderConfig, has_text: bool) -> list[TensorSpec]:
    """The tensors that hold the tokens themselves."""
    if isinstance(config.inputs, ImagesConfig):
        shape = [B, config.inputs.channels, config.inputs.height, config.inputs.image_width]
        return [TensorSpec(name="pixel_values", datatype="FP32", shape=shape, help="images, scaled by the caller")]
    specs = []
    if isinstance(config.inputs, VectorsConfig):
        shape = [B, L, config.inputs.features]
        specs.append(TensorSpec(name="features", datatype="FP32", shape=shape, help="a vector for each token"))
    else:
        # Optional only because a request may have text instead.
        specs.append(TensorSpec(name="input_ids", datatype="INT64", shape=[B, L], optional=has_text, help="token ids"))
    specs.append(
        TensorSpec(
            name="attention_mask", datatype="INT64", shape=[B, L], optional=True,
            help="1 for a real token, 0 for padding; all real when left out",
        )
    )  # fmt: skip
    if config.token_types:
        specs.append(
            TensorSpec(name="token_type_ids", datatype="INT64", shape=[B, L], optional=True, help="zeros when left out")
        )
    return specs


def _text_inputs(checkpoint: Checkpoint) -> list[TensorSpec]:
    if checkpoint.tokenizer is None:
        return []
    return [
        TensorSpec(name="text", datatype="BYTES", shape=[B], optional=True, help="UTF-8, instead of the other inputs"),
        TensorSpec(
            name="text_pair", datatype="BYTES", shape=[B], optional=True, help="the second text of a pair, with text"
        ),
    ]


def _layout_inputs(config: EncoderConfig) -> list[TensorSpec]:
    """The inputs about tokens: which pairs attend, and which tokens are global."""
    specs = []
    if "adjacency" in config.needs:
        specs.append(
            TensorSpec(name="adjacency", datatype="BOOL", shape=[B, L, L], help="true where row i may look at column j")
        )
    if "global_attention_mask" in config.needs:
        first = config.first_tokens_global
        default = f"the first {first}" if first else "none"
        specs.append(
            TensorSpec(
                name="global_attention_mask", datatype="INT64", shape=[B, L], optional=True,
                help=f"1 for tokens that see and are seen by all; {default} when left out",
            )
        )  # fmt: skip
    return specs


def outputs(checkpoint: Checkpoint, attentions: bool) -> list[TensorSpec]:
    """Every tensor that an answer may hold, the cheap ones first."""
    config = checkpoint.encoder.config
    specs = [
        TensorSpec(name="last_hidden_state", datatype="FP32", shape=[B, L, config.width], help="zeros at padding"),
        *_head_outputs(config),
    ]
    if checkpoint.tokenizer is not None:
        specs += [
            TensorSpec(name="tokens", datatype="BYTES", shape=[B, L], help="of texts: each token as it is written"),
            TensorSpec(
                name="offsets", datatype="INT64", shape=[B, L, 2],
                help="of texts: where a token begins and ends, in Unicode code points",
            ),
        ]  # fmt: skip
    if attentions:
        shape = [B, len(config.layers), config.layers[0].attention.heads, L, L]
        specs.append(TensorSpec(name="attentions", datatype="FP32", shape=shape, help="on request: who looks at whom"))
    return specs


def _head_outputs(config: EncoderConfig) -> list[TensorSpec]:
    head = config.head
    if isinstance(head, PoolingConfig):
        unit = ", scaled to length 1" if head.unit_length else ""
        cut = f", its first {head.dimensions} values" if head.dimensions else ""
        text = f"{' and '.join(head.modes)} of the tokens{unit}{cut}"
        shape = [B, head.width(config.width)]
        specs = [TensorSpec(name="sentence_embedding", datatype="FP32", shape=shape, help=text)]
        if head.gives_unit_length:
            text = "on request: the same before it is scaled"
            specs.append(TensorSpec(name="unnormalized_embedding", datatype="FP32", shape=shape, help=text))
        return specs
    if not isinstance(head, LabelsConfig):
        return []
    rows = [B, L] if head.per == "token" else [B]
    logits = TensorSpec(name="logits", datatype="FP32", shape=[*rows, len(head.names)], help="a number for each label")
    return [logits, *specs_of_logits(logits)]


def limits(checkpoint: Checkpoint) -> Limits:
    config = checkpoint.encoder.config
    return Limits(
        vocabulary=config.vocabulary,
        token_types=config.token_types,
        length=config.max_length,
        text_length=(checkpoint.max_text_length or config.max_length) if checkpoint.tokenizer else 0,
    )


def position_rule(config: EncoderConfig) -> PositionRule:
    return PositionRule(kind=config.position_rule.kind, padding_id=config.position_rule.padding_id)


def image(config: EncoderConfig) -> Image | None:
    if not isinstance(config.inputs, ImagesConfig):
        return None
    size = config.inputs
    return Image(channels=size.channels, height=size.height, width=size.image_width, patch=size.patch)


def labels(config: EncoderConfig) -> list[str]:
    return list(config.head.names) if isinstance(config.head, LabelsConfig) else []


def unit_length(config: EncoderConfig) -> bool | None:
    """Whether embeddings are scaled to length 1; None if there are none."""
    return config.head.gives_unit_length if isinstance(config.head, PoolingConfig) else None


def gives_attentions(config: EncoderConfig) -> bool:
    """Whether there are weights between tokens, in as many heads in every layer."""
    attentions = [layer.attention for layer in config.layers]
    return all(attention.has_weights for attention in attentions) and len({each.heads for each in attentions}) == 1
