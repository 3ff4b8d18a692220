"""The reference as an ONNX graph, in the form without padding.

Letters: B batch, L length, T tokens. See `model/layout.py` for the two forms.
"""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from model import Encoder
from model.layout import Packed

OPSET = 20


class PackedEncoder(nn.Module):
    """The encoder over tokens that lie end to end: `[T]` in, `[T, D]` out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        slots: Tensor,
        rows: Tensor,
        columns: Tensor,
        real: Tensor,
    ) -> tuple[Tensor, ...]:
        """`slots` and `real` are `[B, L]`, the others `[T]`; the outputs are the encoder's, in its order."""
        outputs = self.encoder.encode(input_ids, token_type_ids, position_ids, Packed(slots, rows, columns, real))
        return tuple(outputs.values())


def _example() -> tuple[Tensor, ...]:
    """Two rows of three and two tokens. Every input is a tensor of its own: equal ones would be merged."""
    return (
        torch.tensor([1, 2, 3, 1, 2]),
        torch.tensor([0, 0, 1, 0, 1]),
        torch.tensor([2, 3, 4, 3, 2]),
        torch.tensor([[0, 1, 2], [3, 4, 3]]),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.tensor([0, 1, 2, 0, 1]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )


def export_graph(encoder: Encoder, path: Path) -> None:
    """Writes `path` and its weights beside it as `<path>.data`."""
    tokens, batch, length = Dim("tokens"), Dim("batch"), Dim("length")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that nothing here needs
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            PackedEncoder(encoder).eval(),
            _example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "token_type_ids", "position_ids", "slots", "rows", "columns", "real"],
            output_names=["last_hidden_state"] + ["sentence_embedding"] * (encoder.pooling is not None),
            dynamic_shapes=(
                {0: tokens},
                {0: tokens},
                {0: tokens},
                {0: batch, 1: length},
                {0: tokens},
                {0: tokens},
                {0: batch, 1: length},
            ),
        )
    assert program is not None  # it is, with dynamo=True
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
