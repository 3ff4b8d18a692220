"""What is done to a captured graph before it is written: the passes of each precision, in order."""

from collections.abc import Callable, Iterable
from functools import partial

from onnx import ModelProto

from heed.bundle.manifest import Graph
from heed.export.passes.convert_to_float16 import convert_to_float16
from heed.export.passes.drop_metadata import drop_metadata
from heed.export.passes.fuse_for_cuda import fuse_for_cuda
from heed.export.passes.outline_attention import outline_attention
from heed.export.passes.outline_linear import outline_linear, outline_linear_16_bit
from heed.export.passes.quantize_to_int8 import quantize_to_int8
from heed.model import Encoder
from heed.model.attention_plan import WHOLE_COLUMNS

Pass = Callable[[ModelProto], ModelProto]


def passes_for(graph: Graph, encoder: Encoder) -> list[Pass]:
    """The passes from a captured float32 graph to the graph that a manifest describes."""
    outline = partial(outline_attention, long_rows=encoder.config.max_length > WHOLE_COLUMNS)
    if graph.fused:
        return [
            drop_metadata,
            outline_linear,
            outline_attention,
            fuse_for_cuda,
            convert_to_float16,
            outline_linear,
        ]
    if graph.precision == "fp16":
        return [drop_metadata, convert_to_float16, outline_linear]
    if graph.precision == "int8":
        quantize = partial(quantize_to_int8, encoder=encoder, float32_layers=graph.float32_layers)
        return [drop_metadata, quantize, outline_linear_16_bit, outline]
    return [drop_metadata, outline_linear, outline]


def run_passes(model: ModelProto, passes: Iterable[Pass]) -> ModelProto:
    """A copy of a graph after these passes. Large tensors are not copied: they are in a file."""
    result = ModelProto()
    result.CopyFrom(model)
    for run in passes:
        result = run(result)
    return result
