"""JinaBERT v2 and ALiBi. `transformers` has neither: an independent form in numpy, token by token, from the papers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from heed.model import CheckpointError, load_checkpoint
from heed.model.patterns import Pairs
from heed.model.positions import LinearBias, alibi_slopes
from tests.model.loops import Floats
from tests.oracle import BUDGET, VISIBLE, edited, error, padded, random_ids

WIDTH, HEADS, LAYERS, INNER, VOCABULARY = 18, 6, 2, 11, 60
CONFIG: dict[str, Any] = {
    "_name_or_path": "jinaai/jina-bert-implementation",
    "architectures": ["JinaBertForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    "classifier_dropout": None,
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-3,
    "max_position_embeddings": 90,
    "model_max_length": 90,
    "model_type": "bert",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "torch_dtype": "float16",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
Weights = dict[str, Tensor]


def random_weights(kind: str = "geglu", head: int = 0) -> Weights:
    """By their published names."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    linear = {"pooler.dense": (WIDTH, WIDTH)}
    norms = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        parts = ("self.query", "self.key", "self.value", "output.dense")
        linear |= {f"{layer}.attention.{part}": (WIDTH, WIDTH) for part in parts}
        norms.append(f"{layer}.attention.output.LayerNorm")
        if kind == "original":
            linear |= {f"{layer}.intermediate.dense": (INNER, WIDTH), f"{layer}.output.dense": (WIDTH, INNER)}
            norms.append(f"{layer}.output.LayerNorm")
        else:
            shapes[f"{layer}.mlp.gated_layers.weight"] = (2 * INNER, WIDTH)
            linear[f"{layer}.mlp.wo"] = (WIDTH, INNER)
            norms.append(f"{layer}.mlp.layernorm")
    if head:
        linear["classifier"] = (head, WIDTH)
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes |= {f"{name}.{part}": (WIDTH,) for name in norms for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(4)
    return {
        name: 0.4 * torch.randn(shape, generator=generator) + (name.lower().endswith("norm.weight"))
        for name, shape in shapes.items()
    }


def save_jina(folder: Path, kind: str = "geglu", head: int = 0, prefix: str = "", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"feed_forward_type": kind} | changes))
    weights = random_weights(kind, head)
    named = {(name if name.startswith("classifier") else prefix + name): value for name, value in weights.items()}
    save_file(named, folder / "model.safetensors")
    return folder


# The independent form


def slope(head: int) -> np.float32:
    """Of one of six heads: 2^-2, 2^-4, 2^-6, 2^-8 as of four heads, then 2^-1, 2^-3 as of eight."""
    return np.float32(2.0 ** -[2, 4, 6, 8, 1, 3][head])


class Plain:
    """One row, `real` where it is not padding."""

    def __init__(self, weights: Weights, kind: str) -> None:
        self._weights = {name: value.double().numpy() for name, value in weights.items()}
        self._kind = kind

    def linear(self, name: str, x: Floats) -> Floats:
        sums: Floats = self._weights[f"{name}.weight"] @ x + self._weights.get(f"{name}.bias", 0.0)
        return sums

    def norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean()
        scaled = centred / np.sqrt((centred**2).mean() + CONFIG["layer_norm_eps"])
        normed: Floats = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed

    def attended(self, layer: str, tokens: list[Floats], i: int, real: list[bool]) -> Floats:
        query, heads = self.linear(f"{layer}.self.query", tokens[i]), []
        width = WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            weight, value = {}, {}
            for j, token in enumerate(tokens):
                if real[j]:
                    key = self.linear(f"{layer}.self.key", token)
                    score = query[part] @ key[part] / np.sqrt(width) - float(slope(head)) * abs(i - j)
                    weight[j], value[j] = np.exp(score), self.linear(f"{layer}.self.value", token)[part]
            heads.append(sum(weight[j] * value[j] for j in weight) / sum(weight.values()))
        return np.concatenate(heads)

    def feed_forward(self, layer: str, x: Floats) -> Floats:
        if self._kind == "original":
            hidden = gelu(self.linear(f"{layer}.intermediate.dense", x))
            return self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x)
        both = self.linear(f"{layer}.mlp.gated_layers", x)
        act = np.maximum(both[:INNER], 0) if self._kind == "reglu" else gelu(both[:INNER])
        return self.norm(f"{layer}.mlp.layernorm", self.linear(f"{layer}.mlp.wo", act * both[INNER:]) + x)

    def hidden(self, ids: list[int], real: list[bool]) -> list[Floats]:
        tables = [self._weights[f"embeddings.{table}_embeddings.weight"] for table in ("word", "token_type")]
        tokens = [self.norm("embeddings.LayerNorm", tables[0][each] + tables[1][each % 2]) for each in ids]
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            attended = [self.attended(f"{layer}.attention", tokens, i, real) for i in range(len(ids))]
            projected = [self.linear(f"{layer}.attention.output.dense", each) for each in attended]
            sums = [one + other for one, other in zip(projected, tokens, strict=True)]
            normed = [self.norm(f"{layer}.attention.output.LayerNorm", each) for each in sums]
            tokens = [self.feed_forward(layer, each) for each in normed]
        return tokens


def gelu(x: Floats) -> Floats:
    return np.array([each * (1 + math.erf(each / math.sqrt(2))) / 2 for each in x])


def inputs(length: int) -> tuple[Tensor, Tensor]:
    mask = padded(length)
    return random_ids(VOCABULARY, mask), mask


def answers(folder: Path, length: int, output: str = "last_hidden_state") -> Tensor:
    ids, mask = inputs(length)
    with torch.no_grad():
        answer: Tensor = load_checkpoint(folder).encoder.double()(ids, mask, token_type_ids=ids % 2)[output]
    return answer


def plain_answers(length: int, kind: str = "geglu", head: int = 0) -> list[list[Floats]]:
    ids, mask = inputs(length)
    plain = Plain(random_weights(kind, head), kind)
    return [plain.hidden(row.tolist(), real.bool().tolist()) for row, real in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(("length", "kind"), [(1, "geglu"), (2, "geglu"), (13, "geglu"), (6, "reglu"), (6, "original")])
def test_hidden_states(tmp_path: Path, length: int, kind: str) -> None:
    mask = inputs(length)[1].bool()
    expected = torch.from_numpy(np.array(plain_answers(length, kind)))
    assert error(answers(save_jina(tmp_path, kind), length)[mask], expected[mask]) < BUDGET


def test_a_reranker_reads_the_pooler(tmp_path: Path) -> None:
    architectures = ["JinaBertForSequenceClassification"]
    folder = save_jina(tmp_path, head=1, prefix="bert.", architectures=architectures, id2label={"0": "LABEL_0"})
    plain = Plain(random_weights(head=1), "geglu")
    scores = [
        plain.linear("classifier", np.tanh(plain.linear("pooler.dense", row[0]))) for row in plain_answers(6, head=1)
    ]
    assert error(answers(folder, 6, "logits"), torch.from_numpy(np.array(scores))) < BUDGET


def test_the_architectures_tell_it_from_bert(tmp_path: Path) -> None:
    folder = save_jina(tmp_path / "a")
    assert load_checkpoint(folder).family == "jina_bert"
    with pytest.raises(CheckpointError, match="position_embedding_type='alibi'"):
        load_checkpoint(edited(folder, tmp_path / "b", architectures=["BertModel"], auto_map=None))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"feed_forward_type": "swiglu"}, "feed_forward_type='swiglu'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type='absolute'"),
        ({"architectures": ["JinaBertForQuestionAnswering"]}, "position_embedding_type='alibi'"),
    ],
    ids=str,
)
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(save_jina(tmp_path / "a"), tmp_path / "b", **settings))


def test_models_whose_queries_and_keys_are_normed_are_refused(tmp_path: Path) -> None:
    """Those for code."""
    folder = save_jina(tmp_path)
    save_file(
        random_weights() | {"encoder.layer.0.attention.self.layer_norm_q.weight": torch.ones(WIDTH)},
        folder / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="layer_norm_q"):
        load_checkpoint(folder)


# ALiBi


def test_slopes_of_a_power_of_two_and_of_others() -> None:
    assert alibi_slopes(1) == [2**-8]
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(6) == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert np.allclose(alibi_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-15)


def test_the_bias_falls_with_the_distance_to_both_sides() -> None:
    columns = torch.arange(4)
    bias = LinearBias(2)(Pairs(i=columns[:, None][None, None], j=columns[None, :][None, None]))
    by_hand = -torch.tensor([[0.0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]])
    assert torch.equal(bias, torch.stack([by_hand / 16, by_hand / 256])[None])


def test_the_bias_takes_columns_of_blocks() -> None:
    bias = LinearBias(3)
    i, j = torch.randint(0, 90, (1, 1, 4, 5, 1)), torch.randint(0, 90, (1, 1, 4, 1, 7))
    expected = -torch.tensor(alibi_slopes(3)).reshape(3, 1, 1, 1) * (i - j).abs()
    assert torch.equal(bias(Pairs(i=i, j=j)), expected)


def test_another_slope_would_be_seen(tmp_path: Path) -> None:
    folder = save_jina(tmp_path)
    ids, mask = inputs(13)
    encoder = load_checkpoint(folder).encoder.double()
    assert isinstance(encoder.relative_bias, LinearBias)
    encoder.relative_bias.slopes[3] *= 2
    with torch.no_grad():
        changed = encoder(ids, mask, token_type_ids=ids % 2)["last_hidden_state"]
    assert error(changed, answers(folder, 13)) > VISIBLE
