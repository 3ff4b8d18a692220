"""Replaces what stands between linear layers by calls of functions: attention, residual norms, GELUs.

Each function is made of the very nodes that it replaces, so that other runtimes compute the same. See
`onnx_functions.py`.

    heed.Attention   a softmax over all allowed keys, from projected tokens [T, D] to attended ones
    heed.AddNorm     a LayerNorm of a residual sum
    heed.Gelu        the exact one
"""

from collections import defaultdict

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, helper

from heed.export.passes.attention_by_head import by_head_if_long
from heed.export.passes.onnx_functions import DOMAIN, add_functions, standard_opset

# The nodes of attention: output, operator, inputs. From [T, D] to heads, scores, weights, and back to [T, D].
ATTENTION = (
    ("query_heads", "Reshape", ("query", "head_shape")),
    ("query_slots", "Gather", ("query_heads", "places")),
    ("scaled", "Mul", ("query_slots", "scale")),
    ("key_heads", "Reshape", ("key", "head_shape")),
    ("key_slots", "Gather", ("key_heads", "places")),
    ("keys", "Transpose", ("key_slots",)),
    ("scores", "MatMul", ("scaled", "keys")),
    ("masked", "Add", ("scores", "mask")),
    ("weights", "Softmax", ("masked",)),
    ("value_heads", "Reshape", ("value", "value_shape")),
    ("value_slots", "Gather", ("value_heads", "places")),
    ("summed", "MatMul", ("weights", "value_slots")),
    ("allowed", "Mul", ("summed", "any")),
    ("attended", "Reshape", ("allowed", "value_shape")),
    ("of_tokens", "Gather", ("attended", "back")),
    ("y", "Reshape", ("of_tokens", "out_shape")),
)
ATTENTION_INPUTS = (
    *("query", "key", "value", "places", "mask", "any", "back", "scale"),
    *("head_shape", "value_shape", "out_shape"),
)


def outline_attention(model: ModelProto, long_rows: bool = False) -> ModelProto:
    """Calls `heed.Attention`, `heed.AddNorm` and `heed.Gelu` in a float32 graph after `outline_linear`.

    Args:
        long_rows: rows can be so long that the weights of all heads should not be in memory together.
    """
    outlining = _Outlining(model, long_rows)
    for operator, replace in (
        ("Softmax", outlining.replace_attention),
        ("LayerNormalization", outlining.replace_norm),
        ("Gelu", outlining.replace_gelu),
    ):
        for node in [node for node in model.graph.node if node.op_type == operator and not node.domain]:
            replace(node)
    outlining.finish()
    return model


def _copies(nodes: list[tuple[NodeProto, list[str], str]]) -> list[NodeProto]:
    """The same nodes with other names of their inputs and their output."""
    copies = []
    for node, inputs, output in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        for field in ("name", "doc_string", "metadata_props"):  # they differ from layer to layer
            copy.ClearField(field)
        copy.input[:], copy.output[:] = inputs, [output]
        copies.append(copy)
    return copies


def _attribute(node: NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)


class _Outlining:
    """The graph while its nodes are replaced by calls."""

    def __init__(self, model: ModelProto, long_rows: bool) -> None:
        self._model, self._long_rows = model, long_rows
        self._opset = standard_opset(model)
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._users[name].append(node)
        self._outputs = {output.name for output in model.graph.output}
        self._removed: list[NodeProto] = []
        self._functions: dict[str, FunctionProto] = {}

    def replace_attention(self, softmax: NodeProto) -> None:
        """If it is of the form of `ATTENTION`."""
        found = self._match(softmax)
        if found is None:
            return
        nodes, names = found
        body = _copies([(nodes[output], list(takes), output) for output, _, takes in ATTENTION])
        if self._long_rows:
            body = by_head_if_long(body)
        replaced = [nodes[output] for output, _, _ in ATTENTION]
        self._call("Attention", replaced, [names[name] for name in ATTENTION_INPUTS], body, list(ATTENTION_INPUTS))

    def _match(self, softmax: NodeProto) -> tuple[dict[str, NodeProto], dict[str, str]] | None:
        """The nodes by the names of their outputs in `ATTENTION`, and the graph's own names of all values."""
        nodes = self._before(softmax)
        names: dict[str, str] = {}
        for output, operator, takes in ATTENTION:
            node = nodes.get(output)
            if node is None or node.op_type != operator or len(node.input) != len(takes):
                return None
            names[output] = node.output[0]
            if any(names.setdefault(role, name) != name for role, name in zip(takes, node.input, strict=True)):
                return None
            if output != "y" and not self._has_one_user(node):
                return None
        turned = _attribute(nodes["keys"], "perm") == [0, 1, 3, 2]
        return (nodes, names) if turned and names["scale"] in self._constants else None

    def _before(self, softmax: NodeProto) -> dict[str, NodeProto]:
        """Candidates for the nodes of `ATTENTION`: from the last one, five behind the softmax, backwards."""
        last = softmax
        for _ in range(5):
            if not self._has_one_user(last):
                return {}
            (last,) = self._users[last.output[0]]
        takes = {output: inputs for output, _, inputs in ATTENTION}
        nodes, ahead = {}, [("y", last)]
        while ahead:
            output, node = ahead.pop()
            nodes[output] = node
            for role, name in zip(takes[output], node.input, strict=False):
                if role in takes and name in self._producers:
                    ahead.append((role, self._producers[name]))
        return nodes

    def _has_one_user(self, node: NodeProto) -> bool:
        return len(self._users[node.output[0]]) == 1 and node.output[0] not in self._outputs

    def replace_norm(self, norm: NodeProto) -> None:
        """If it normalizes a residual sum: of tokens and a linear layer's output, and with no other reader."""
        added = self._producers.get(norm.input[0])
        constants = all(name in self._constants for name in norm.input[1:])
        if added is None or added.op_type != "Add" or len(norm.input) != 3 or not constants:
            return
        makers = [self._producers.get(name) for name in added.input]
        of_layer = any(maker is not None and maker.domain == DOMAIN for maker in makers)
        if not self._has_one_user(added) or not of_layer or _attribute(norm, "axis") != -1:
            return
        body = _copies([(added, ["x", "y"], "sum"), (norm, ["sum", "weight", "bias"], "normed")])
        for attribute in body[1].attribute:
            if attribute.name == "epsilon":
                attribute.CopyFrom(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=attribute.type))
        epsilon = _attribute(norm, "epsilon")
        inputs = [*added.input, *norm.input[1:]]
        self._call("AddNorm", [added, norm], inputs, body, ["x", "y", "weight", "bias"], epsilon=epsilon)

    def replace_gelu(self, gelu: NodeProto) -> None:
        """If it is the exact one."""
        if _attribute(gelu, "approximate") in (None, b"none"):
            self._call("Gelu", [gelu], list(gelu.input), _copies([(gelu, ["x"], "y")]), ["x"])

    def _call(
        self,
        name: str,
        replaced: list[NodeProto],
        inputs: list[str],
        body: list[NodeProto],
        parameters: list[str],
        **attributes: object,
    ) -> None:
        """Replaces some nodes by one call, in the position of the last of them.

        Args:
            body: the function's nodes, from `parameters` to the last node's output.
        """
        outputs = list(body[-1].output)
        function = helper.make_function(DOMAIN, name, parameters, outputs, body, [self._opset], list(attributes))
        if self._functions.setdefault(name, function) != function:
            return  # the same nodes with other attributes: they stay as they are
        *others, node = replaced
        self._removed += others
        node.op_type, node.domain = name, DOMAIN
        node.input[:] = inputs
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())

    def finish(self) -> None:
        """Removes the nodes that calls replace, and defines the functions."""
        for node in self._removed:
            self._model.graph.node.remove(node)
        add_functions(self._model, self._functions.values())
