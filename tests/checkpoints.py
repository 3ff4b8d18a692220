"""Small random checkpoints of the text families, saved by `transformers`, and its own answers to compare with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.oracle import unrounded
from tests.support import make_noisy

Task = Literal["encoder", "sequence", "token"]
TASKS: tuple[Task, ...] = ("encoder", "sequence", "token")
CLASS_OF_TASK: dict[Task, str] = {
    "encoder": "Model",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
}

# Sizes that no two dimensions share, so that none can stand in for another.
BERT_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}
DECODER_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-5,
}
COUNTED = {"max_position_embeddings": 42, "pad_token_id": 1}


@dataclass(frozen=True)
class Published:
    """A family of `transformers` by the beginning of its classes' names."""

    prefix: str
    sizes: dict[str, Any]
    types: bool = True  # whether it takes token types
    max_length: int = 40
    activation: str = "hidden_act"  # the key
    epsilon: str = "layer_norm_eps"  # the key
    ends_at_padding: bool = False  # whether padding ids say where a row ends
    tasks: tuple[Task, ...] = TASKS

    @property
    def heads(self) -> int:
        key = "n_heads" if "n_heads" in self.sizes else "num_attention_heads"
        return int(self.sizes[key])


PUBLISHED = {
    "bert": Published("Bert", BERT_SIZES),
    "roberta": Published("Roberta", BERT_SIZES | COUNTED),
    "xlm-roberta": Published("XLMRoberta", BERT_SIZES | COUNTED | {"type_vocab_size": 1}),
    "camembert": Published("Camembert", BERT_SIZES | COUNTED | {"type_vocab_size": 1, "pad_token_id": 3,
                                                               "max_position_embeddings": 44}),
    "distilbert": Published(
        "DistilBert",
        {
            "vocab_size": 101,
            "dim": 30,
            "n_layers": 3,
            "n_heads": 3,
            "hidden_dim": 37,
            "max_position_embeddings": 40,
        },
        types=False,
        activation="activation",
    ),
    "electra": Published("Electra", BERT_SIZES | {"embedding_size": 17}),
    "mpnet": Published(
        "MPNet",
        {name: size for name, size in BERT_SIZES.items() if name != "type_vocab_size"} | COUNTED,
        types=False,
    ),
    "nomic_bert": Published("NomicBert", BERT_SIZES),
    "gte": Published("Gte", BERT_SIZES | {"type_vocab_size": 1}),
    "deberta-v2": Published(
        "DebertaV2",
        BERT_SIZES
        | {
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 8,
            "relative_attention": True,
            "share_att_key": True,
        },
    ),
    "qwen2": Published(
        "Qwen2",
        DECODER_SIZES | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": None},
        types=False, epsilon="rms_norm_eps", ends_at_padding=True,
    ),
    "qwen3": Published("Qwen3", DECODER_SIZES, types=False, epsilon="rms_norm_eps", ends_at_padding=True),
    "eurobert": Published("EuroBert", DECODER_SIZES, types=False, epsilon="rms_norm_eps"),
    "gemma3_text": Published(
        "Gemma3Text",
        DECODER_SIZES
        | {
            "hidden_activation": "gelu",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 13,
            "sliding_window": 9,
            "use_bidirectional_attention": True,
        },
        types=False, activation="hidden_activation", epsilon="rms_norm_eps", ends_at_padding=True,
        tasks=("encoder", "sequence"),
    ),
}  # fmt: skip


def save_family(folder: Path, family: str, task: Task = "encoder", *, seed: int = 0, **overrides: Any) -> Path:
    """A small random checkpoint of a family; classifiers have three labels."""
    import transformers

    published = PUBLISHED[family]
    labels = {} if task == "encoder" else {"id2label": {0: "red", 1: "green", 2: "blue"}}
    settings = {name: value for name, value in (published.sizes | labels | overrides).items() if value is not None}
    config = getattr(transformers, f"{published.prefix}Config")(**settings)
    network = getattr(transformers, f"{published.prefix}{CLASS_OF_TASK[task]}")(config)
    make_noisy(network, seed)
    network.save_pretrained(folder)
    return folder


LARGE_SIZES: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def save_large(folder: Path, family: str, *, spread: float = 0.02, **sizes: Any) -> Path:
    """BERT-large or XLM-R-large of random weights, as `transformers` would save it, without a tokenizer.

    Args:
        family: "bert" or "xlm-roberta", whose encoders' weights have the same names.
        spread: the weights' standard deviation.
    """
    config = LARGE_SIZES | sizes
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"] = spread * torch.randn(rows, columns, generator=generator)

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(name, outputs, inputs)
        weights[f"{name}.bias"] = spread * torch.randn(outputs, generator=generator)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    width, inner = config["hidden_size"], config["intermediate_size"]
    for table, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        matrix(f"embeddings.{table}_embeddings", config[rows], width)
    norm("embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{layer}.{name}", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    architecture = f"{PUBLISHED[family].prefix}Model"
    (folder / "config.json").write_text(json.dumps(config | {"model_type": family, "architectures": [architecture]}))
    return folder


def oracle_answer(folder: Path, task: Task, inputs: dict[str, Tensor]) -> Tensor:
    """What `transformers` answers in float64: `[B, L, D]`, or logits."""
    import transformers

    auto: Any = {
        "encoder": transformers.AutoModel,
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
    }[task]
    network = auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad(), unrounded():
        answer: Tensor = network(**inputs)[0]
    return answer


def masks(length: int) -> Tensor:
    """Rows without padding, padded right, left, in holes (the first column too), and with one real token: `[5, L]`."""
    mask = torch.ones(5, length, dtype=torch.long)
    mask[1, length // 2 + 1 :] = 0
    mask[2, : length // 2] = 0
    mask[3, :-1:3] = 0
    mask[4, :-1] = 0
    return mask


def random_inputs(family: str, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Ids (the padding id may be among them, unless it says where a row ends), token types where the family takes
    them, and masks."""
    sizes = PUBLISHED[family].sizes
    generator = torch.Generator().manual_seed(1000 * seed + length)
    mask = masks(length)
    inputs = {
        "input_ids": torch.randint(0, sizes["vocab_size"], mask.shape, generator=generator),
        "attention_mask": mask,
    }
    if PUBLISHED[family].ends_at_padding:
        padding = sizes["pad_token_id"]
        ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == padding, padding + 1)
        inputs["input_ids"] = torch.where(mask.bool(), ids, padding)
    if PUBLISHED[family].types:
        inputs["token_type_ids"] = torch.randint(0, sizes["type_vocab_size"], mask.shape, generator=generator)
    return inputs
