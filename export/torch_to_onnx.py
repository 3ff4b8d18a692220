"""Captures the PyTorch reference as an ONNX graph in float32, in the form without padding (`torch.onnx.export`).

Letters: B batch, L length, T tokens, K kept tokens, G global tokens, F features. See `model/layout.py` for the two
forms.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx_ir
import torch
import torch._dynamo
from onnx import ModelProto
from onnx_ir import external_data
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.export import Dim

from heed.export.passes.drop_metadata import drop_metadata
from heed.export.weights import SMALLEST, save_graphs
from heed.model import Encoder
from heed.model.attention_plan import AttentionPlan
from heed.model.config import TokensConfig
from heed.model.disentangled_attention import folded_distances
from heed.model.layout import GlobalTokens, Packed

OPSET = 20


@contextmanager
def _states_of(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Collects the outputs of the embeddings and of every layer while the encoder runs."""
    states: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, output: states.append(output))
        for part in (encoder.embeddings, *encoder.blocks)
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


class PackedEncoder(nn.Module):
    """The encoder over a padding-free batch: `[T]` in, `[T, D]` out."""

    def __init__(self, encoder: Encoder, dense: bool, attentions: bool = False, states: bool = False) -> None:
        """
        Args:
            attentions: answer with the attention weights, too.
            states: answer with nothing but the hidden states behind the embeddings and behind each layer.
        """
        super().__init__()
        self.encoder, self.dense, self.states = encoder, dense, states
        self.encode = encoder.encode_with_attentions if attentions else encoder.encode

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Inputs by the names in `bundle/sequence_packing.py`; the outputs are the encoder's, in its order."""
        layout = Packed(
            slots_BL=inputs["slots"],
            rows_T=inputs["rows"],
            columns_T=inputs["columns"],
            real_BL=inputs["real"],
            positions=inputs["position_ids"],
            adjacency_BLL=inputs.get("adjacency"),
            global_tokens=GlobalTokens(inputs["globals"], inputs["globals_real"]) if "globals" in inputs else None,
            kept_K=inputs.get("kept"),
            first_B=inputs.get("first"),
        )
        plan = AttentionPlan(layout, blockwise=not self.dense)
        if not self.states:
            return tuple(self.encode(inputs, plan).values())
        with _states_of(self.encoder) as states:
            self.encode(inputs, plan)
        return tuple(states)

    @property
    def outputs(self) -> list[str]:
        """The names of what it returns, in order."""
        if self.states:
            return ["embeddings", *(f"layer_{number}" for number in range(1, len(self.encoder.blocks) + 1))]
        return self.encoder.outputs + ["attentions"] * (self.encode == self.encoder.encode_with_attentions)


def _example(encoder: Encoder) -> dict[str, Tensor]:
    """Two rows, one a token shorter than the other. Every input is a tensor of its own: equal ones would be merged."""
    config = encoder.config
    length = min(config.max_length, 1000)
    lengths = torch.tensor([length, max(1, length - 1)])
    tokens = int(lengths.sum())
    columns_L = torch.arange(length)
    real_BL = columns_L < lengths[:, None]
    rows_T, columns_T = real_BL.nonzero(as_tuple=True)
    inputs: dict[str, Tensor] = {}
    if isinstance(config.inputs, TokensConfig):
        inputs["input_ids"] = torch.arange(tokens) % config.vocabulary
        if config.token_types:
            inputs["token_type_ids"] = torch.arange(tokens) % config.token_types
    else:
        inputs["features"] = torch.randn(tokens, config.inputs.features)
    inputs |= {
        "position_ids": columns_T + config.first_position,
        "slots": torch.where(real_BL, columns_L + torch.tensor([[0], [length]]), 0),
        "rows": rows_T.clone(),
        "columns": columns_T.clone(),
        "real": real_BL,
    }
    if config.reads_first:
        inputs |= {"kept": torch.tensor([0, length, 0]), "first": torch.tensor([0, 1])}
    if "adjacency" in config.needs:
        inputs["adjacency"] = torch.ones(2, length, length, dtype=torch.bool)
    if "global_attention_mask" in config.needs:
        inputs |= {
            "globals": torch.tensor([[0, 1, 2], [0, 1, 0]]),
            "globals_real": torch.tensor([[True, True, True], [True, True, False]]),
        }
    return inputs


def _dynamic_shapes(inputs: dict[str, Tensor]) -> dict[str, dict[int, Dim]]:
    tokens, batch, length, global_tokens = Dim("tokens"), Dim("batch"), Dim("length"), Dim("globals")
    shapes: dict[str, dict[int, Dim]] = {name: {0: tokens} for name in inputs}
    for name in ("slots", "real"):
        shapes[name] = {0: batch, 1: length}
    if "kept" in inputs:
        shapes |= {"kept": {0: Dim("kept")}, "first": {0: batch}}
    if "adjacency" in inputs:
        shapes["adjacency"] = {0: batch, 1: length, 2: length}
    if "globals" in inputs:
        shapes["globals"] = shapes["globals_real"] = {0: batch, 1: global_tokens}
    return shapes


def capture_graph(encoder: Encoder, data: Path, dense: bool = True, states: bool = False) -> ModelProto:
    """The encoder as a float32 graph.

    Args:
        data: where to write the weights; the graph refers to this file.
        dense: attend to all pairs and mask them; otherwise in blocks, where a pattern has a cheaper form.
        states: see `PackedEncoder`.
    """
    program = _capture(PackedEncoder(encoder, dense, states=states).eval())
    return _serialized(_with_external_weights(program.model, data))


def capture_with_attentions(encoder: Encoder, data: Path) -> tuple[ModelProto, ModelProto]:
    """The dense graph, and the same graph with the attention weights as one more output.

    The attention weights are the last thing that it computes, so the first graph is what is left without them, and one
    capture is enough for both.

    Args:
        data: where to write the weights; both graphs refer to this file.
    """
    program = _capture(PackedEncoder(encoder, dense=True, attentions=True).eval())
    model = _with_external_weights(program.model, data)
    with_attentions = _serialized(model)
    model.graph.outputs.pop()
    RemoveUnusedNodesPass()(model)
    return _serialized(model), with_attentions


def export_graph(encoder: Encoder, path: Path, dense: bool = True) -> None:
    """Writes the captured graph as it is, and its weights beside it as `<path>.data`."""
    captured = path.with_name(f"{path.name}.captured")
    try:
        model = drop_metadata(capture_graph(encoder, captured, dense))
        save_graphs([(path, model)], path.with_name(f"{path.name}.data"))
    finally:
        captured.unlink(missing_ok=True)


@contextmanager
def _silence() -> Iterator[None]:
    """What the exporter prints and warns of is for its authors."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _capture(packed: PackedEncoder) -> torch.onnx.ONNXProgram:
    inputs = _example(packed.encoder)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that nothing here needs
    # The symbols in the shapes of blocks are long: to find them in torch's cache takes longer than to compute them.
    cache = torch._dynamo.config.patch(fake_tensor_cache_enabled=packed.dense)
    with cache, folded_distances(packed), _silence():
        program = torch.onnx.export(
            packed,
            kwargs={"inputs": inputs},
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=packed.outputs,
            dynamic_shapes={"inputs": _dynamic_shapes(inputs)},
        )
    assert program is not None  # it is, with dynamo=True
    return program


def _with_external_weights(model: onnx_ir.Model, data: Path) -> onnx_ir.Model:
    """The model whose large tensors are in the file `data`."""
    return external_data.unload_from_model(model, data.parent, data.name, size_threshold_bytes=SMALLEST)


def _serialized(model: onnx_ir.Model) -> ModelProto:
    """The graph with its file of weights by an absolute path, as `export/weights.py` reads it."""
    proto = onnx_ir.to_proto(model)
    for tensor in proto.graph.initializer:
        content = model.graph.initializers[tensor.name].const_value
        if isinstance(content, onnx_ir.ExternalTensor):
            (location,) = (entry for entry in tensor.external_data if entry.key == "location")
            location.value = str(Path(content.path).absolute())
    return proto
