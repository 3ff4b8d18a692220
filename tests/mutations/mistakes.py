"""An exporter's mistakes: bundles that are whole, with right digests and the true contract, and answer wrongly.

Each is a right bundle of which one part was made anew from something wrong:

    weights    other numbers in the same graphs
    graphs     those of plain answers, exported from a changed encoder
    words      tokenizer.json
    manifest   bundle.json

Letters: B batch, L length, D width.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bench.subjects import Right
from heed.bundle.digests import write_digests
from heed.bundle.manifest import TOKENIZER, Graph, Manifest, PositionRule, read_manifest, write_manifest
from heed.export.graph_writer import WEIGHTS
from heed.export.passes.pipeline import passes_for, run_passes
from heed.export.torch_to_onnx import export_graph
from heed.export.weights import save_graphs
from heed.model import Encoder
from heed.model.attention import Bias, MultiHeadAttention
from heed.model.attention_plan import AttentionPlan
from heed.model.classification_head import ClassificationHead
from heed.model.disentangled_attention import DisentangledAttention, Distances, DistancesConfig
from heed.model.embeddings import TokenEmbedding
from heed.model.exact_attention import ExactAttention
from heed.model.feed_forward import FeedForward
from heed.model.layout import Layout
from heed.model.longformer_attention import LongformerAttention
from heed.model.norms import OffsetRMSNorm
from heed.model.patterns import Adjacency, Causal, Full, GlobalMask, Pairs, Pattern, Window
from heed.model.pooling import Pooling
from heed.model.positions import (
    LearnedPositions,
    LinearBias,
    LogBuckets,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    alibi_slopes,
)
from heed.model.score_functions import ScaledDot
from heed.model.softmax import softmax
from heed.model.transformer_block import Block, PreNormBlock, SandwichBlock

Module = TypeVar("Module", bound=nn.Module)
ChangeEncoder = Callable[[Encoder], None]

# --- The parts of an encoder -----------------------------------------------------------------------------------------


def _all(encoder: Encoder, kind: type[Module]) -> list[Module]:
    """Every module of a kind, in order; there must be one."""
    found = [module for module in encoder.modules() if isinstance(module, kind)]
    assert found, f"no {kind.__name__} in {encoder.config}"
    return found


def _attention(encoder: Encoder, number: int) -> MultiHeadAttention:
    return _all(encoder, MultiHeadAttention)[number]


def _set_blocks(encoder: Encoder, blocks: list[Block]) -> None:
    encoder.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]


def _with_parts(block: Block, kind: type[Block]) -> Block:
    """Another kind of layer with the same parts."""
    return kind(block.attention, block.feed_forward, block.attention_norm, block.feed_forward_norm)


def _swap(first: Tensor, second: Tensor) -> None:
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def _swap_weights(first: nn.Module, second: nn.Module) -> None:
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        _swap(one, other)


# --- Other numbers in the same graphs --------------------------------------------------------------------------------


def value_weight_scaled_by_1001_thousandths(encoder: Encoder) -> None:
    _attention(encoder, 0).value.weight.mul_(1.001)


def all_weights_scaled_by_1001_thousandths(encoder: Encoder) -> None:
    for parameter in encoder.parameters():
        parameter.mul_(1.001)


def weights_rounded_to_bfloat16(encoder: Encoder) -> None:
    for parameter in encoder.parameters():
        parameter.copy_(parameter.bfloat16())


def weights_rounded_to_float16(encoder: Encoder) -> None:
    for parameter in encoder.parameters():
        parameter.copy_(parameter.half())


def positions_off_by_one(encoder: Encoder) -> None:
    table = _all(encoder, LearnedPositions)[0].table.weight
    table.copy_(table.roll(1, 0))


def two_layers_swapped(encoder: Encoder) -> None:
    first, second, *_ = encoder.blocks
    _swap_weights(first, second)


def query_and_key_of_a_layer_swapped(encoder: Encoder) -> None:
    attention = _attention(encoder, -1)
    _swap_weights(attention.query, attention.key)


def query_and_key_of_a_head_swapped(encoder: Encoder) -> None:
    attention = _attention(encoder, -1)
    rows = slice(0, attention.query.out_features // attention.heads)
    _swap(attention.query.weight[rows], attention.key.weight[rows])
    _swap(attention.query.bias[rows], attention.key.bias[rows])


def heads_of_query_and_key_permuted(encoder: Encoder) -> None:
    """The values stay where they are."""
    attention = _attention(encoder, 0)
    for layer in (attention.query, attention.key):
        for parameter in layer.parameters():
            parameter.copy_(parameter.roll(layer.out_features // attention.heads, 0))


def output_weight_transposed(encoder: Encoder) -> None:
    weight = _attention(encoder, 1).out.weight
    weight.copy_(weight.T.clone())


def a_stale_bias(encoder: Encoder) -> None:
    """As it was before the training."""
    _all(encoder, FeedForward)[-1].down.bias.zero_()


def a_weight_that_is_nan(encoder: Encoder) -> None:
    _attention(encoder, 0).value.weight[3, 5] = math.nan


def token_types_ignored(encoder: Encoder) -> None:
    types = _all(encoder, TokenEmbedding)[0].types
    assert types is not None
    types.weight[1] = types.weight[0]


def vocabulary_truncated(encoder: Encoder) -> None:
    tokens = _all(encoder, TokenEmbedding)[0].tokens
    tokens.weight = nn.Parameter(tokens.weight[:-10].clone(), requires_grad=False)


def labels_in_another_order(encoder: Encoder) -> None:
    for parameter in _all(encoder, ClassificationHead)[0].out.parameters():
        parameter.copy_(parameter.roll(1, 0))


def distances_the_other_way_round(encoder: Encoder) -> None:
    buckets = _all(encoder, RelativeBias)[0].bucket_of_distance
    buckets.copy_(buckets.flip(0))


def buckets_of_another_size(encoder: Encoder) -> None:
    bias = _all(encoder, RelativeBias)[0]
    distances = torch.arange(1 - bias.max_length, bias.max_length)
    bias.bucket_of_distance.copy_(LogBuckets(16, 64)(distances))


def rotary_base_of_another_layer(encoder: Encoder) -> None:
    for rotary in _all(encoder, RotaryPositions)[1:]:
        other = RotaryPositions(rotary.head_width, 1.6e5, len(rotary.cos))
        rotary.cos.copy_(other.cos)
        rotary.sin.copy_(other.sin)


def gate_and_value_swapped(encoder: Encoder) -> None:
    for feed_forward in _all(encoder, FeedForward):
        assert feed_forward.gate is not None
        _swap_weights(feed_forward.gate, feed_forward.up)


def global_projections_missing(encoder: Encoder) -> None:
    """Global tokens look through the projections of the others, as in checkpoints made before their training."""
    for attention in _all(encoder, LongformerAttention):
        for name in ("query", "key", "value"):
            ours, theirs = getattr(attention, name), getattr(attention, f"{name}_global")
            for parameter, other in zip(theirs.parameters(), ours.parameters(), strict=True):
                parameter.copy_(other)


def sines_before_cosines(encoder: Encoder) -> None:
    """In two halves instead of by turns."""
    table = _all(encoder, SinusoidalPositions)[0].table
    table.copy_(torch.cat([table[:, ::2], table[:, 1::2]], 1))


def rows_of_distances_of_another_size(encoder: Encoder) -> None:
    rows = _all(encoder, Distances)[0].row_of_distance
    distances = torch.arange(len(rows)) - len(rows) // 2
    rows.copy_(DistancesConfig(8, 12).rows(distances))


def rows_of_distances_the_other_way_round(encoder: Encoder) -> None:
    rows = _all(encoder, Distances)[0].row_of_distance
    rows.copy_(rows.flip(0))


def rotary_factor_ignored(encoder: Encoder) -> None:
    for rotary in _all(encoder, RotaryPositions):
        plain = RotaryPositions(rotary.head_width, 1e3, len(rotary.cos))
        rotary.cos.copy_(plain.cos)
        rotary.sin.copy_(plain.sin)


# --- Graphs of a changed encoder -------------------------------------------------------------------------------------


def tanh_gelu(encoder: Encoder) -> None:
    for feed_forward in _all(encoder, FeedForward):
        feed_forward.activation = nn.GELU(approximate="tanh")


def relu(encoder: Encoder) -> None:
    for feed_forward in _all(encoder, FeedForward):
        feed_forward.activation = nn.ReLU()


def _set_epsilon(encoder: Encoder, epsilon: float) -> None:
    for norm in _all(encoder, nn.LayerNorm):
        norm.eps = epsilon


def norm_epsilon_of_keras(encoder: Encoder) -> None:
    _set_epsilon(encoder, 1e-3)


def norm_epsilon_of_torch(encoder: Encoder) -> None:
    _set_epsilon(encoder, 1e-5)


def attention_scale_missing(encoder: Encoder) -> None:
    for score in _all(encoder, ScaledDot):
        score.scale = 1.0


def attention_scale_of_the_whole_width(encoder: Encoder) -> None:
    for score in _all(encoder, ScaledDot):
        score.scale = 1 / math.sqrt(encoder.config.width)


def mask_ignored(encoder: Encoder) -> None:
    for exact in _all(encoder, ExactAttention):
        exact.normalize = lambda scores, allowed, columns: scores.softmax(-1)


def mask_added_as_it_is(encoder: Encoder) -> None:
    """1 for what counts, 0 for what does not."""
    for exact in _all(encoder, ExactAttention):
        exact.normalize = lambda scores, allowed, columns: (scores + allowed.to(scores.dtype)).softmax(-1)


def padding_leaks(encoder: Encoder) -> None:
    """-10 where it should be out of reach."""
    for exact in _all(encoder, ExactAttention):
        exact.normalize = lambda scores, allowed, columns: (scores + torch.where(allowed, 0.0, -10.0)).softmax(-1)


def final_layer_missing(encoder: Encoder) -> None:
    _set_blocks(encoder, list(encoder.blocks)[:-1])


class _WithoutResidual(Block):
    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None, last: bool = False) -> Tensor:
        x = self.attention_norm(self.attention(x, plan, bias))
        if last:
            x = plan.layout.kept(x)
        normed: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return normed


def residual_missing(encoder: Encoder) -> None:
    first, *others = encoder.blocks
    _set_blocks(encoder, [_with_parts(first, _WithoutResidual), *others])


def norms_before_layers(encoder: Encoder) -> None:
    _set_blocks(encoder, [_with_parts(block, PreNormBlock) for block in encoder.blocks])


def first_token_instead_of_the_mean(encoder: Encoder) -> None:
    pooling = _all(encoder, Pooling)[0]
    assert pooling.config.mode == "mean"
    pooling.config = replace(pooling.config, mode="cls")


class _MeanOverPadding(Pooling):
    def unscaled(self, x: Tensor, layout: Layout) -> Tensor:
        return layout.to_rows(x).mean(1)


def mean_over_padding(encoder: Encoder) -> None:
    encoder.head = _MeanOverPadding(_all(encoder, Pooling)[0].config, encoder.config.width)


def unit_length_missing(encoder: Encoder) -> None:
    pooling = _all(encoder, Pooling)[0]
    assert pooling.config.unit_length
    pooling.config = replace(pooling.config, unit_length=False)


def mean_instead_of_the_largest(encoder: Encoder) -> None:
    pooling = _all(encoder, Pooling)[0]
    assert pooling.config.mode == "max"
    pooling.config = replace(pooling.config, mode="mean")


def _set_pattern(encoder: Encoder, was: type[Pattern], pattern: Pattern) -> None:
    found = [exact for exact in _all(encoder, ExactAttention) if isinstance(exact.pattern, was)]
    assert found
    for exact in found:
        exact.pattern = pattern


def window_wider_by_one(encoder: Encoder) -> None:
    windows = [exact for exact in _all(encoder, ExactAttention) if isinstance(exact.pattern, Window)]
    _set_pattern(encoder, Window, Window(next(iter(windows)).pattern.reach + 1))  # type: ignore[operator]


def windows_left_out(encoder: Encoder) -> None:
    _set_pattern(encoder, Window, Full())


def final_norm_missing(encoder: Encoder) -> None:
    assert encoder.norm is not None
    encoder.norm = None


def activation_of_the_head_missing(encoder: Encoder) -> None:
    _all(encoder, ClassificationHead)[0].activation = nn.Identity()


def window_wider_by_one_in_longformer(encoder: Encoder) -> None:
    for attention in _all(encoder, LongformerAttention):
        attention.local.pattern = Window(9) | GlobalMask()


@dataclass(frozen=True)
class _Reversed(Adjacency):
    def allows(self, pairs: Pairs) -> Tensor:
        return super().allows(pairs).transpose(-1, -2)


def edges_reversed(encoder: Encoder) -> None:
    _set_pattern(encoder, Adjacency, _Reversed())


def a_lone_node_sees_all(encoder: Encoder) -> None:
    """Softmax alone: where nothing is allowed every score is as low as any other."""

    def select(scores: Tensor, allowed: Tensor, columns: Tensor) -> Tensor:
        return torch.where(allowed, scores, torch.finfo(scores.dtype).min).softmax(-1)

    for exact in _all(encoder, ExactAttention):
        assert exact.normalize is softmax
        exact.normalize = select


def norm_weights_taken_as_they_are(encoder: Encoder) -> None:
    """Without the 1 that they are less by."""
    for norm in _all(encoder, OffsetRMSNorm):
        norm.weight.sub_(1)


def slopes_of_twice_as_many_heads(encoder: Encoder) -> None:
    for bias in _all(encoder, LinearBias):
        heads = len(bias.slopes)
        bias.slopes.copy_(torch.tensor(alibi_slopes(2 * heads)[:heads]))


class _Interleaved(MultiHeadAttention):
    def _shared(self, x: Tensor) -> Tensor:
        return x.repeat(*(1,) * (x.dim() - 1), self.heads // self.key_heads)


def keys_shared_by_every_other_head(encoder: Encoder) -> None:
    for attention in _all(encoder, MultiHeadAttention):
        assert attention.key_heads < attention.heads
        attention.__class__ = _Interleaved


def heads_not_normed(encoder: Encoder) -> None:
    for attention in _all(encoder, MultiHeadAttention):
        assert attention.query_norm is not None
        attention.query_norm = attention.key_norm = None


def table_not_scaled(encoder: Encoder) -> None:
    embedding = _all(encoder, TokenEmbedding)[0]
    assert embedding.scale != 1
    embedding.scale = 1.0


def scale_of_a_head_s_own_width(encoder: Encoder) -> None:
    for score in _all(encoder, ScaledDot):
        assert score.scale != 1 / math.sqrt(8)
        score.scale = 1 / math.sqrt(8)


def tokens_see_what_comes_behind_them(encoder: Encoder) -> None:
    _set_pattern(encoder, Causal, Full())


def first_token_instead_of_the_last(encoder: Encoder) -> None:
    pooling = _all(encoder, ClassificationHead)[0].pooling
    assert pooling.config.mode == "lasttoken"
    pooling.config = replace(pooling.config, mode="cls")


def norms_behind_parts_missing(encoder: Encoder) -> None:
    for block in _all(encoder, SandwichBlock):
        block.attention_out_norm = block.feed_forward_out_norm = nn.Identity()


def scale_without_the_terms_of_distance(encoder: Encoder) -> None:
    for attention in _all(encoder, DisentangledAttention):
        attention.score.scale = 1 / math.sqrt(encoder.config.width // attention.heads)


def a_term_of_distance_missing(encoder: Encoder) -> None:
    for attention in _all(encoder, DisentangledAttention):
        attention.config = replace(attention.config, position_to_content=False)


class _Swapped(DisentangledAttention):
    def project(self, distances: Distances) -> tuple[Tensor, Tensor]:
        keys, queries = super().project(distances)
        return queries, keys


def keys_and_queries_of_distances_swapped(encoder: Encoder) -> None:
    for attention in _all(encoder, DisentangledAttention):
        attention.__class__ = _Swapped


def distances_not_normed(encoder: Encoder) -> None:
    distances = _all(encoder, Distances)[0]
    assert distances.norm is not None
    distances.norm = None


# --- Other words -----------------------------------------------------------------------------------------------------

Json = dict[str, Any]


def vocabulary_in_another_order(tokenizer: Json) -> None:
    """All words but the special ones, back to front."""
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    ids = [vocabulary[word] for word in words]
    vocabulary.update(zip(words, reversed(ids), strict=True))


def case_kept(tokenizer: Json) -> None:
    assert tokenizer["normalizer"]["lowercase"] is True
    tokenizer["normalizer"]["lowercase"] = False


def accents_kept(tokenizer: Json) -> None:
    tokenizer["normalizer"]["strip_accents"] = False


def special_tokens_missing(tokenizer: Json) -> None:
    tokenizer["post_processor"] = None


def pairs_of_one_type(tokenizer: Json) -> None:
    for part in tokenizer["post_processor"]["pair"]:
        next(iter(part.values()))["type_id"] = 0


# --- Another manifest ------------------------------------------------------------------------------------------------


def columns_instead_of_counted_positions(manifest: Manifest) -> Manifest:
    assert manifest.position_rule.kind == "counted"
    return manifest.model_copy(update={"position_rule": PositionRule(kind="column")})


def positions_counted_past_another_id(manifest: Manifest) -> Manifest:
    rule = manifest.position_rule
    return manifest.model_copy(update={"position_rule": PositionRule(kind=rule.kind, padding_id=rule.padding_id - 1)})


def names_of_labels_in_another_order(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"labels": manifest.labels[::-1]})


def windows_over_counted_tokens(manifest: Manifest) -> Manifest:
    """Slots without holes where attention looks at columns."""
    assert manifest.aligned
    return manifest.model_copy(update={"aligned": False})


def the_first_column_whether_it_is_real_or_not(manifest: Manifest) -> Manifest:
    assert manifest.first_token == "real"
    return manifest.model_copy(update={"first_token": "column"})


def no_global_token_by_default(manifest: Manifest) -> Manifest:
    assert manifest.first_tokens_global
    return manifest.model_copy(update={"first_tokens_global": 0})


def int8_in_float32_s_place(manifest: Manifest) -> Manifest:
    names = [(graph, graph.file.replace(".fp32.", ".int8.")) for graph in manifest.graphs]
    return manifest.model_copy(update={"graphs": [graph.model_copy(update={"file": name}) for graph, name in names]})


# --- From a mistake to a bundle --------------------------------------------------------------------------------------

Part = Literal["weights", "graphs", "words", "manifest"]


@dataclass(frozen=True)
class Mistake:
    """One wrong bundle.

    `only_long`: in the graph for long rows alone; the one for short rows is right.
    """

    subject: str
    part: Part
    change: Callable[[Any], Any]
    only_long: bool = False

    @property
    def name(self) -> str:
        return self.change.__name__.replace("_", " ") + ", in the graph for long rows" * self.only_long

    def make(self, right: Right, out: Path) -> Path:
        """The wrong bundle, in the new folder `out`."""
        shutil.copytree(right.bundle, out)
        if self.part == "words":
            _change_words(out, self.change)
        elif self.part == "manifest":
            write_manifest(out, self.change(read_manifest(out)))
        else:
            graphs = [graph for graph in _float32(out) if not self.only_long or _is_for_long_rows(graph)]
            wrong = _changed(right.checkpoint.encoder, self.change)
            if self.part == "weights":
                _replace_weights(right.checkpoint.encoder, wrong, out, graphs)
            else:
                graphs = [graph for graph in graphs if graph.kind == "answers"]
                _export_again(wrong, out, graphs)
            _convert_again(wrong, out, graphs)
        write_digests(out)
        return out


def _float32(folder: Path) -> list[Graph]:
    return [graph for graph in read_manifest(folder).graphs if graph.precision == "fp32"]


def _is_for_long_rows(graph: Graph) -> bool:
    return graph.kind == "answers" and graph.longest is None


def _changed(encoder: Encoder, change: ChangeEncoder) -> Encoder:
    wrong = copy.deepcopy(encoder)
    with torch.no_grad():
        change(wrong)
    return wrong


def _change_words(folder: Path, change: Callable[[Json], None]) -> None:
    tokenizer = json.loads((folder / TOKENIZER).read_text("utf-8"))
    change(tokenizer)
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _export_again(wrong: Encoder, folder: Path, graphs: list[Graph]) -> None:
    for graph in graphs:
        export_graph(wrong, folder / graph.file, dense=graph.longest is not None)


def _convert_again(wrong: Encoder, folder: Path, graphs: list[Graph]) -> None:
    """What the exporter makes of float32 graphs in int8, where the bundle has that."""
    sources = {(graph.kind, graph.longest): graph.file for graph in graphs}
    for graph in read_manifest(folder).graphs:
        if graph.precision == "int8" and (graph.kind, graph.longest) in sources:
            with np.errstate(invalid="ignore"):  # NaN among them
                source = onnx.load(folder / sources[graph.kind, graph.longest])
                onnx.save(run_passes(source, passes_for(graph, wrong)), folder / graph.file)


def _constants(encoder: Encoder) -> dict[str, np.ndarray]:
    """Weights and tables by their names."""
    return {name: tensor.numpy() for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]}


Content = tuple[tuple[int, ...], bytes]


def _content(array: np.ndarray) -> Content:
    return array.shape, array.tobytes()


def _replacements(right: Encoder, wrong: Encoder) -> dict[Content, tuple[str, np.ndarray]]:
    """Name and new content of all that differs, by its old content, as it is and transposed."""
    found = {}
    new = _constants(wrong)
    for name, old in _constants(right).items():
        if _content(old) != _content(new[name]):
            found[_content(old)] = name, new[name]
            found[_content(old.T)] = name, new[name].T
    return found


def _replace_weights(right: Encoder, wrong: Encoder, folder: Path, graphs: list[Graph]) -> None:
    """The exporter names and turns weights as it likes, so they are found by what they hold."""
    replacements = _replacements(right, wrong)
    assert replacements
    models = [(folder / graph.file, onnx.load(folder / graph.file)) for graph in graphs]
    for path, model in models:
        replaced = set()
        for tensor in model.graph.initializer:
            content = _content(numpy_helper.to_array(tensor))
            if content in replacements:
                name, array = replacements[content]
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
                replaced.add(name)
        missing = {name for name, _ in replacements.values()} - replaced
        assert not missing, f"{path.name} does not hold {missing}"
        onnx.save(model, path)
    if len(graphs) == len(_float32(folder)):
        save_graphs(models, folder / WEIGHTS)


def _of(subject: str, part: Part, *changes: Callable[[Any], Any]) -> list[Mistake]:
    return [Mistake(subject, part, change) for change in changes]


MISTAKES: list[Mistake] = [
    *_of(
        "sentences",
        "weights",
        value_weight_scaled_by_1001_thousandths,
        all_weights_scaled_by_1001_thousandths,
        weights_rounded_to_bfloat16,
        weights_rounded_to_float16,
        positions_off_by_one,
        two_layers_swapped,
        query_and_key_of_a_layer_swapped,
        query_and_key_of_a_head_swapped,
        heads_of_query_and_key_permuted,
        output_weight_transposed,
        a_stale_bias,
        a_weight_that_is_nan,
        token_types_ignored,
        vocabulary_truncated,
    ),
    *_of("tagger", "weights", labels_in_another_order, distances_the_other_way_round, buckets_of_another_size),
    *_of("classifier", "weights", rotary_base_of_another_layer, gate_and_value_swapped),
    *_of("longformer", "weights", global_projections_missing),
    *_of("nodes", "weights", sines_before_cosines),
    *_of("reranker", "weights", rotary_factor_ignored),
    *_of("entailment", "weights", rows_of_distances_of_another_size, rows_of_distances_the_other_way_round),
    *_of(
        "sentences",
        "graphs",
        tanh_gelu,
        relu,
        norm_epsilon_of_keras,
        norm_epsilon_of_torch,
        attention_scale_missing,
        attention_scale_of_the_whole_width,
        mask_ignored,
        mask_added_as_it_is,
        padding_leaks,
        final_layer_missing,
        residual_missing,
        norms_before_layers,
        first_token_instead_of_the_mean,
        mean_over_padding,
        unit_length_missing,
    ),
    *_of(
        "classifier",
        "graphs",
        window_wider_by_one,
        windows_left_out,
        final_norm_missing,
        activation_of_the_head_missing,
    ),
    Mistake("longformer", "graphs", window_wider_by_one_in_longformer, only_long=True),
    Mistake("longformer", "weights", weights_rounded_to_float16, only_long=True),
    *_of("nodes", "graphs", edges_reversed, a_lone_node_sees_all, mean_instead_of_the_largest),
    *_of(
        "reranker",
        "graphs",
        norm_weights_taken_as_they_are,
        slopes_of_twice_as_many_heads,
        keys_shared_by_every_other_head,
        heads_not_normed,
        table_not_scaled,
        scale_of_a_head_s_own_width,
        tokens_see_what_comes_behind_them,
        first_token_instead_of_the_last,
        norms_behind_parts_missing,
    ),
    *_of(
        "entailment",
        "graphs",
        scale_without_the_terms_of_distance,
        a_term_of_distance_missing,
        keys_and_queries_of_distances_swapped,
        distances_not_normed,
    ),
    *_of(
        "sentences",
        "words",
        vocabulary_in_another_order,
        case_kept,
        accents_kept,
        special_tokens_missing,
        pairs_of_one_type,
    ),
    *_of(
        "tagger",
        "manifest",
        columns_instead_of_counted_positions,
        positions_counted_past_another_id,
        names_of_labels_in_another_order,
    ),
    *_of("classifier", "manifest", windows_over_counted_tokens),
    *_of("longformer", "manifest", no_global_token_by_default),
    *_of("entailment", "manifest", the_first_column_whether_it_is_real_or_not),
]
# For bundles that have int8.
INT8_MISTAKES: list[Mistake] = _of("sentences", "manifest", int8_in_float32_s_place)
