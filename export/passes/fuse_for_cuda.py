"""Fuses nodes to operators that onnxruntime has for CUDA: attention without padding, with biases and residuals.

It replaces the calls of `outline_linear.py` and `outline_attention.py`, where one follows a linear layer:

    Attention of three layers     one product, and PackedMultiHeadAttention, which adds their biases
    AddNorm of a layer            SkipLayerNormalization, which adds the layer's bias
    Gelu of a layer               BiasGelu

Elsewhere onnxruntime adds a layer's bias in a kernel of its own, and those take longer than products on a large GPU.
PackedMultiHeadAttention is given where rows end, so the graph is for sequences whose tokens are all real.

Letters: B sequences, L tokens of the longest, T tokens of all, D width, N heads, H head width.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from heed.export.passes.onnx_functions import DOMAIN
from heed.export.passes.outline_attention import ATTENTION_INPUTS
from heed.export.weights import tensor_array

OPERATORS = "com.microsoft"
LAYOUT = ("places", "ends")  # see `bundle/sequence_packing.py`


def fuse_for_cuda(model: ModelProto) -> ModelProto:
    """
    Args:
        model: a float32 graph after `outline_linear` and `outline_attention`.

    Raises:
        ValueError: its attention is not softmax over all pairs of linear layers' outputs.
    """
    return _Fusion(model).run()


class _Fusion:
    """The graph while its nodes are replaced by fused operators."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._uses = [name for node in model.graph.node for name in node.input]
        self._uses += [output.name for output in model.graph.output]

    def run(self) -> ModelProto:
        rules = {"Attention": self._attention, "AddNorm": self._add_norm, "Gelu": self._gelu}
        for node in list(self._model.graph.node):
            if node.domain == DOMAIN and node.op_type in rules:
                rules[node.op_type](node)
            elif node.op_type == "LayerNormalization":
                self._pre_norm(node)
        if any(node.op_type in ("Attention", "Softmax") for node in self._model.graph.node):
            raise ValueError("its attention is not softmax over all pairs of linear layers' outputs")
        self._model.opset_import.append(helper.make_opsetid(OPERATORS, 1))
        model = inline_local_functions(self._model)
        _remove_unused(model)
        return model

    def _layer(self, output: str) -> NodeProto | None:
        """The linear layer with this output, if a single node reads it."""
        layer = self._made_by.get(output)
        is_layer = layer is not None and (layer.domain, layer.op_type) == (DOMAIN, "Linear")
        return layer if is_layer and self._uses.count(output) == 1 else None

    def _fuse(self, node: NodeProto, operator: str, inputs: list[str], **attributes: object) -> None:
        node.op_type, node.domain = operator, OPERATORS
        node.input[:] = inputs
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        for name in filter(None, node.output):  # shape inference does not know these operators
            self._model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def _remove_bias(self, layer: NodeProto) -> str:
        """Removes the bias from a layer, and returns the bias's name."""
        bias = layer.input.pop()
        layer.op_type, layer.domain = "Gemm", ""
        layer.attribute.append(helper.make_attribute("transB", 1))
        return bias

    def _gelu(self, node: NodeProto) -> None:
        if layer := self._layer(node.input[0]):
            self._fuse(node, "BiasGelu", [node.input[0], self._remove_bias(layer)])

    def _add_norm(self, node: NodeProto) -> None:
        x, y, weight, bias = node.input
        (epsilon,) = (attribute.f for attribute in node.attribute)
        self._skip_norm(node, [x, y], [weight, bias], epsilon)

    def _pre_norm(self, norm: NodeProto) -> None:
        """A norm before a layer (pre-norm): the residual sum is read elsewhere, too, and the operator returns it."""
        added = self._made_by.get(norm.input[0])
        if added is None or added.op_type != "Add" or not any(map(self._layer, added.input)):
            return
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in norm.attribute}
        if len(norm.input) != 3 or attributes.get("axis", -1) != -1:
            return
        added.output[:] = [norm.output[0], "", "", added.output[0]]  # in the sum's position: the next nodes may read it
        self._skip_norm(added, list(added.input), list(norm.input[1:]), attributes.get("epsilon", 1e-5))
        self._model.graph.node.remove(norm)

    def _skip_norm(self, node: NodeProto, added: list[str], norm: list[str], epsilon: float) -> None:
        added.sort(key=lambda name: self._layer(name) is None)  # the layer first
        layer = self._layer(added[0])
        bias = [self._remove_bias(layer)] if layer else []
        self._fuse(node, "SkipLayerNormalization", [*added, *norm, *bias], epsilon=epsilon)

    def _attention(self, node: NodeProto) -> None:
        layers = [layer for layer in map(self._layer, node.input[:3]) if layer]  # of queries, keys and values
        if len(layers) < 3 or len({layer.input[0] for layer in layers}) > 1:
            return
        constants = dict(zip(ATTENTION_INPUTS, node.input, strict=True))
        width = int(self._array(constants["head_shape"])[-1])
        x, name = layers[0].input[0], node.output[0]
        weights_ND = [self._array(layer.input[1]) for layer in layers]
        inner = weights_ND[0].shape[1]
        weights_N3HD = np.stack([weight.reshape(-1, width, inner) for weight in weights_ND], 1)
        heads = len(weights_N3HD)
        weight = self._constant(f"{name}_weight", weights_N3HD.reshape(-1, inner))
        bias = self._constant(f"{name}_bias", np.concatenate([self._array(layer.input[2]) for layer in layers]))
        shape = self._constant(f"{name}_shape", np.array([-1, heads, 3, width], np.int64))
        product = helper.make_node("Gemm", [x, weight], [f"{name}_product"], transB=1)
        together = helper.make_node("Reshape", [product.output[0], shape], [f"{name}_together"])
        position = list(self._model.graph.node).index(node)
        self._model.graph.node.insert(position, together)
        self._model.graph.node.insert(position, product)
        scale = float(self._array(constants["scale"]).item())
        inputs = [together.output[0], "", "", bias, *self._layout()]
        self._fuse(node, "PackedMultiHeadAttention", inputs, num_heads=heads, scale=scale)

    def _layout(self) -> tuple[str, ...]:
        """The graph's inputs that say where rows lie."""
        given = {each.name for each in self._model.graph.input}
        for name, shape in zip(LAYOUT, (["batch", "length"], ["batch_and_one"]), strict=True):
            if name not in given:
                self._model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, shape))
        return LAYOUT

    def _array(self, name: str) -> np.ndarray:
        return tensor_array(self._constants[name])

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _remove_unused(model: ModelProto) -> None:
    """Removes nodes, constants and inputs that no output needs."""
    graph = model.graph
    used = {output.name for output in graph.output}
    for number, node in reversed(list(enumerate(graph.node))):
        if used.intersection(node.output):
            used.update(node.input)
        else:
            del graph.node[number]
    for number, tensor in reversed(list(enumerate(graph.initializer))):
        if tensor.name not in used:
            del graph.initializer[number]
    for number, given in reversed(list(enumerate(graph.input))):
        if given.name not in used:
            del graph.input[number]
