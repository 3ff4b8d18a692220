"""What a bundle's manifest says of a model: its task, what goes in, what comes out.

Letters in shapes: B batch, L length; -1 stands for any size.
"""

from heed.bundle.manifest import Graph, Image, Limits, PositionRule, Task, TensorSpec
from heed.model import Checkpoint
from heed.model.attention_plan import DENSE_COLUMNS
from heed.model.config import EncoderConfig, ImagesConfig, LabelsConfig, PoolingConfig, VectorsConfig

B, L = -1, -1


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
    return [*_rows(config, has_text=checkpoint.tokenizer is not None), *_texts(checkpoint), *_beside(config)]


def _rows(config: EncoderConfig, has_text: bool) -> list[TensorSpec]:
    """The tensors that hold the tokens themselves."""
    if isinstance(config.inputs, ImagesConfig):
        shape = [B, config.inputs.channels, config.inputs.height, config.inputs.image_width]
        return [TensorSpec(name="pixel_values", datatype="FP32", shape=shape, help="images, scaled by the caller")]
    specs = []
    if isinstance(config.inputs, VectorsConfig):
        shape = [B, L, config.inputs.features]
        specs.append(TensorSpec(name="features", datatype="FP32", shape=shape, help="a vector for each token"))
    else:
        # Optional only because text can stand in its place.
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


def _texts(checkpoint: Checkpoint) -> list[TensorSpec]:
    if checkpoint.tokenizer is None:
        return []
    return [
        TensorSpec(name="text", datatype="BYTES", shape=[B], optional=True, help="UTF-8, instead of the other inputs"),
        TensorSpec(
            name="text_pair", datatype="BYTES", shape=[B], optional=True, help="the second text of a pair, with text"
        ),
    ]


def _beside(config: EncoderConfig) -> list[TensorSpec]:
    """What comes beside the tokens."""
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
        *_of_head(config),
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


def _of_head(config: EncoderConfig) -> list[TensorSpec]:
    head = config.head
    if isinstance(head, PoolingConfig):
        unit = ", scaled to length 1" if head.unit_length else ""
        text = f"{head.mode} of the tokens{unit}"
        shape = [B, head.width(config.width)]
        specs = [TensorSpec(name="sentence_embedding", datatype="FP32", shape=shape, help=text)]
        if head.unit_length:
            text = "on request: the same before it is scaled"
            specs.append(TensorSpec(name="unnormalized_embedding", datatype="FP32", shape=shape, help=text))
        return specs
    if not isinstance(head, LabelsConfig):
        return []
    rows = [B, L] if head.per == "token" else [B]
    specs = [TensorSpec(name="logits", datatype="FP32", shape=[*rows, len(head.names)], help="a score for each label")]
    if len(head.names) > 1:
        specs.append(TensorSpec(name="labels", datatype="BYTES", shape=rows, help="the label with the highest score"))
    return specs


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
    return config.head.unit_length if isinstance(config.head, PoolingConfig) else None


def gives_attentions(config: EncoderConfig) -> bool:
    """Whether there are weights between tokens, in as many heads in every layer."""
    attentions = [layer.attention for layer in config.layers]
    return all(attention.has_weights for attention in attentions) and len({each.heads for each in attentions}) == 1


def graphs(checkpoint: Checkpoint) -> list[Graph]:
    """The graphs of a bundle.

    Where a layer has a form cheaper than all pairs there are two: all pairs for short rows, where that is faster, and
    the cheap form for longer ones. A row's own length decides, never its neighbours'.
    """
    config, encoder = checkpoint.encoder.config, checkpoint.encoder
    dense_columns = max([DENSE_COLUMNS, *(layer.attention.dense_up_to for layer in config.layers)])
    plain = Graph(precision="fp32", file="model.fp32.onnx", outputs=encoder.outputs)
    found = [plain]
    if config.block_sparse and config.max_length > dense_columns:
        found.insert(0, plain.model_copy(update={"file": "short.fp32.onnx", "longest": dense_columns}))
    elif config.block_sparse:  # no row is long
        found = [plain.model_copy(update={"longest": config.max_length})]
    if gives_attentions(config):
        found.append(
            Graph(
                precision="fp32",
                file="attentions.fp32.onnx",
                outputs=[*encoder.outputs, "attentions"],
                kind="attentions",
            )
        )
    return found
