"""Attention of long rows head by head: the weights of one head are in memory at a time, not those of all.

A row of 8,192 tokens has 67 million weights in each head: those of 16 heads take 4 GiB, and their softmax as much
again. A kernel that computes attention at once holds none of them; this is for every other runtime.
"""

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from heed.model.attention_plan import WHOLE_COLUMNS

HEADS = 1  # the axis of [B, N, L, H]
SLOTS = ("query_slots", "key_slots", "value_slots")  # of all heads, [B, N, L, H]
PAIRS = ("scaled", "keys", "scores", "masked", "weights", "summed")  # from those to the sums of values, [B, N, L, V]


def by_head_if_long(body: list[NodeProto]) -> list[NodeProto]:
    """The nodes of `heed.Attention`, with a choice by the row's length: all heads at once, or one after another.

    Either way every head is computed by the same operators, and has the same bits.
    """
    pairs = [node for node in body if node.output[0] in PAIRS]
    before, after = body[: body.index(pairs[-1])], body[body.index(pairs[-1]) + 1 :]
    all_heads = helper.make_graph(pairs, "all_heads", [], [_value("summed")])
    choice = helper.make_node("If", ["is_long"], ["summed"], then_branch=_by_head(pairs), else_branch=all_heads)
    return [*(node for node in before if node not in pairs), *_is_long(), choice, *after]


def _is_long() -> list[NodeProto]:
    return [
        helper.make_node("Shape", ["places"], ["row_length"], start=-1),  # [B, N, L]
        helper.make_node("Constant", [], ["whole_columns"], value_ints=[WHOLE_COLUMNS]),
        helper.make_node("Greater", ["row_length", "whole_columns"], ["is_long"]),
    ]


def _by_head(pairs: list[NodeProto]) -> GraphProto:
    """The same nodes for one head, [B, L, H], and a Scan over the heads. They share the mask, [B, 1, L or 1, L]."""
    head = helper.make_graph(
        [_of_one_head(node) for node in pairs],
        "head",
        [_value(f"head_{name}") for name in SLOTS],
        [_value("head_summed")],
    )
    nodes = [
        helper.make_node("Constant", [], ["heads_axis"], value_ints=[HEADS]),
        helper.make_node("Squeeze", ["mask", "heads_axis"], ["head_mask"]),
        helper.make_node(
            "Scan", list(SLOTS), ["all_summed"], body=head, num_scan_inputs=len(SLOTS),
            scan_input_axes=[HEADS] * len(SLOTS), scan_output_axes=[HEADS],
        ),
    ]  # fmt: skip
    return helper.make_graph(nodes, "by_head", [], [_value("all_summed")])


def _of_one_head(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name if name == "scale" else f"head_{name}" for name in node.input]
    copy.output[:] = [f"head_{name}" for name in node.output]
    if node.op_type == "Transpose":
        del copy.attribute[:]
        copy.attribute.append(helper.make_attribute("perm", [0, 2, 1]))
    return copy


def _value(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
