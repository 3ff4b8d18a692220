"""Weights of graphs: read where they are, written once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from heed.export.passes.pipeline import Pass, run_passes
from heed.export.weights import ALIGNMENT, SMALLEST, Locations, save_graphs, tensor_array


def array(values: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + values, dtype=np.float32)


def graph(**constants: np.ndarray) -> ModelProto:
    """A graph that returns its constants."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in constants]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None) for name in constants]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "constants", [], outputs, tensors))


def read(path: Path) -> dict[str, np.ndarray]:
    """As onnx itself reads a graph and its weights."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def external(name: str, values: np.ndarray, file: Path, offset: int) -> TensorProto:
    """A tensor whose content is in a file of its own, which has other bytes before it and after it."""
    file.write_bytes(b"\1" * offset + values.tobytes() + b"\1" * 9)
    tensor = numpy_helper.from_array(values, name)
    set_external_data(tensor, str(file), offset, values.nbytes)
    tensor.ClearField("raw_data")
    return tensor


@pytest.mark.parametrize("offset", [0, 3, 4096, 5000])
def test_a_tensor_in_a_file_is_read_as_it_was_written(tmp_path: Path, offset: int) -> None:
    values = array(600).reshape(20, 30)
    found = tensor_array(external("w", values, tmp_path / "data", offset))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_a_tensor_in_the_graph_is_read_too() -> None:
    np.testing.assert_array_equal(tensor_array(numpy_helper.from_array(array(3), "w")), [0, 1, 2])


def test_what_two_graphs_share_is_written_once(tmp_path: Path) -> None:
    shared, own = array(1000), array(1000, start=5)
    graphs = [(tmp_path / "one.onnx", graph(a=shared, b=own)), (tmp_path / "two.onnx", graph(c=shared))]
    save_graphs(graphs, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size == ALIGNMENT + own.nbytes
    np.testing.assert_array_equal(read(tmp_path / "one.onnx")["b"], own)
    np.testing.assert_array_equal(read(tmp_path / "one.onnx")["a"], shared)
    np.testing.assert_array_equal(read(tmp_path / "two.onnx")["c"], shared)


def test_what_another_file_holds_is_not_written_again(tmp_path: Path) -> None:
    shared, own, locations = array(1000), array(400, start=7), Locations()
    save_graphs([(tmp_path / "one.onnx", graph(a=shared))], tmp_path / "first", locations)
    save_graphs([(tmp_path / "two.onnx", graph(a=shared, b=own))], tmp_path / "second", locations)
    assert (tmp_path / "second").stat().st_size == own.nbytes
    found = read(tmp_path / "two.onnx")
    np.testing.assert_array_equal(found["a"], shared)
    np.testing.assert_array_equal(found["b"], own)


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    large, small = array(SMALLEST // 4), array(SMALLEST // 4 - 1)
    model = graph(large=large)
    model.graph.initializer.append(external("small", small, tmp_path / "data", 12))
    save_graphs([(tmp_path / "graph.onnx", model)], tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == large.tobytes()
    (tmp_path / "data").unlink()
    np.testing.assert_array_equal(read(tmp_path / "graph.onnx")["small"], small)


def test_only_one_graph_is_made_at_a_time(tmp_path: Path) -> None:
    def graphs() -> Iterator[tuple[Path, ModelProto]]:
        yield tmp_path / "one.onnx", graph(a=array(3))
        assert (tmp_path / "one.onnx").exists()
        yield tmp_path / "two.onnx", graph(a=array(4))

    save_graphs(graphs(), tmp_path / "weights")
    assert len(read(tmp_path / "two.onnx")["a"]) == 4


def test_passes_run_in_order_and_leave_the_captured_graph_as_it_is() -> None:
    def rename(suffix: str) -> Pass:
        def run(model: ModelProto) -> ModelProto:
            model.graph.name += suffix
            return model

        return run

    captured = graph(a=array(3))
    assert run_passes(captured, [rename("-1"), rename("-2")]).graph.name == "constants-1-2"
    assert captured.graph.name == "constants"
