"""The reference as an ONNX graph, in the form without padding.

Letters: B batch, L length, T tokens, K kept tokens, G global tokens, F features. See `model/layout.py` for the two
forms.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.export import Dim

from heed.model import Encoder
from heed.model.attention_plan import AttentionPlan
from heed.model.config import TokensConfig
from heed.model.layout import GlobalTokens, Packed

OPSET = 20


@contextmanager
def _states_of(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Collects what the embeddings and every layer give while the encoder runs."""
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
    """The encoder over tokens that lie end to end: `[T]` in, `[T, D]` out."""

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
        """Inputs by the names that `bundle/packing.py` gives them; the outputs are the encoder's, in its order."""
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
    tokens, batch, length, places = Dim("tokens"), Dim("batch"), Dim("length"), Dim("globals")
    shapes: dict[str, dict[int, Dim]] = {name: {0: tokens} for name in inputs}
    for name in ("slots", "real"):
        shapes[name] = {0: batch, 1: length}
    if "kept" in inputs:
        shapes |= {"kept": {0: Dim("kept")}, "first": {0: batch}}
    if "adjacency" in inputs:
        shapes["adjacency"] = {0: batch, 1: length, 2: length}
    if "globals" in inputs:
        shapes["globals"] = shapes["globals_real"] = {0: batch, 1: places}
    return shapes


def export_graph(
    encoder: Encoder, path: Path, dense: bool = True, attentions: Path | None = None, states: bool = False
) -> None:
    """Writes `path` and its weights beside it as `<path>.data`.

    Args:
        dense: attend to all pairs and mask them; otherwise in blocks, where a pattern has a cheaper form.
        attentions: where to write the same graph, in which the attention weights are one more output. They are the last
            thing that it computes, so the other graph is what is left without them, and one capture does for both.
        states: see `PackedEncoder`.
    """
    program = _captured(encoder, PackedEncoder(encoder, dense, attentions is not None, states).eval())
    if attentions:
        _save(program, attentions)
        program.model.graph.outputs.pop()
        RemoveUnusedNodesPass()(program.model)
    _save(program, path)


def _captured(encoder: Encoder, packed: PackedEncoder) -> torch.onnx.ONNXProgram:
    inputs = _example(encoder)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that nothing here needs
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
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


def _save(program: torch.onnx.ONNXProgram, path: Path) -> None:
    program.save(path, external_data=True)
    _forget_origins(path)


def _forget_origins(path: Path) -> None:
    """Drops the exporter's notes on where each node came from: they hold this machine's paths, and half the size."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)
