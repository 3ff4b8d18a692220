"""Folders as sentence-transformers 2.x to 6.x leave them, and what its version 6.2 answers to texts.

sentence-transformers brings scikit-learn and scipy along, which nothing else here uses, so it is no dependency of the
tests: its answers are in `sentence_transformers_answers.json`. To make them anew, with a Python that has it:

    .venv/bin/python -m tests.sentence_transformers_folders PYTHON_WITH_SENTENCE_TRANSFORMERS
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support import save_bert

ANSWERS = Path(__file__).with_suffix("").with_name("sentence_transformers_answers.json")
TEXTS = ["The quick fox saw a dog.", "I", "Foxes, dogs; the fox saw the quick dog. The dog saw I."]
WIDTH = 32

Edit = Callable[[Path], None]


def write(path: Path, **settings: Any) -> None:
    """Changes an object in a file, which need not be there."""
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | settings))


def flags(*modes: str, **more: Any) -> dict[str, Any]:
    """A pooling as versions before 5.4 wrote it."""
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {f"pooling_mode_{name}": name in modes for name in names}
    return {"word_embedding_dimension": WIDTH} | chosen | more


def weights(path: Path, seed: int, **shapes: tuple[int, ...]) -> None:
    """Random ones, for a module's folder; `_` stands for a dot."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name.replace("_", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")


def dense(path: Path, width: int, out: int, **settings: Any) -> None:
    write(path / "config.json", in_features=width, out_features=out, bias=True, **settings)
    shapes: dict[str, tuple[int, ...]] = {"linear_weight": (out, width), "linear_bias": (out,)}
    if settings.get("use_residual") and width != out:
        shapes["residual_weight"] = (out, width)
    weights(path, out, **shapes)


def pooled(pooling: dict[str, Any], *others: tuple[str, str]) -> Edit:
    """modules.json with a Pooling, and with other modules behind it: their kinds and folders."""

    def edit(folder: Path) -> None:
        listed = [("Transformer", ""), ("Pooling", "1_Pooling"), *others]
        entries = [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (kind, path) in enumerate(listed)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
        write(folder / "1_Pooling/config.json", **pooling)

    return edit


MEAN = pooled(flags("mean_tokens"), ("Normalize", "2_Normalize"))


def mean(name: str, **settings: Any) -> Edit:
    """Mean pooling, and settings in one of the files."""

    def edit(folder: Path) -> None:
        MEAN(folder)
        write(folder / name, **settings)

    return edit


def residual_and_norm(folder: Path) -> None:
    kinds = [("Dense", "2_Dense"), ("Dropout", "3_Dropout"), ("LayerNorm", "4_LayerNorm"), ("Dense", "5_Dense")]
    pooled(flags("mean_tokens"), *kinds, ("Normalize", "6_Normalize"))(folder)
    dense(folder / "2_Dense", WIDTH, 12, use_residual=True, activation_function="torch.nn.modules.activation.ReLU")
    write(folder / "3_Dropout/config.json", dropout=0.4)
    write(folder / "4_LayerNorm/config.json", dimension=12)
    weights(folder / "4_LayerNorm", 7, norm_weight=(12,), norm_bias=(12,))
    dense(folder / "5_Dense", 12, 12, use_residual=True)


def dense_behind_unit_length(folder: Path) -> None:
    pooled(flags("cls_token"), ("Normalize", "2_Normalize"), ("Dense", "3_Dense"))(folder)
    dense(folder / "3_Dense", WIDTH, 5, activation_function="torch.nn.modules.linear.Identity")


def classifier(folder: Path) -> None:
    """modules.json beside a classifier: the head is left out."""
    from transformers import BertConfig, BertForSequenceClassification

    settings = json.loads((folder / "config.json").read_text())
    torch.manual_seed(3)
    BertForSequenceClassification(BertConfig(**(settings | {"num_labels": 3}))).save_pretrained(folder)
    MEAN(folder)


def own_folder(folder: Path) -> None:
    """The transformer in a folder of its own, as in version 0.4, with an old name for its settings."""
    MEAN(folder)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    write(folder / "0_Transformer/sentence_bert_config.json")
    write(folder / "0_Transformer/sentence_roberta_config.json", max_seq_length=9)


def tokenizer_limit(folder: Path) -> None:
    """max_seq_length counts, though the tokenizer's limit is lower."""
    MEAN(folder)
    write(folder / "sentence_bert_config.json", max_seq_length=12, do_lower_case=False)
    write(folder / "tokenizer_config.json", model_max_length=7, tokenizer_class="BertTokenizer")


def lower_case(folder: Path) -> None:
    """A tokenizer of another class that keeps capitals, and sentence-transformers that does not."""
    MEAN(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write(folder / "sentence_bert_config.json", max_seq_length=40, do_lower_case=True)
    write(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]")


def with_each_text(folder: Path) -> None:
    tokenizer_limit(folder)
    text = {"max_length": 5, "truncation": True, "padding": "longest"}
    write(folder / "sentence_bert_config.json", processing_kwargs={"text": text})


FOLDERS: dict[str, Edit] = {
    "cls": pooled(flags("cls_token"), ("Normalize", "2_Normalize")),
    "max": pooled(flags("max_tokens")),
    "mean_sqrt_len": pooled(flags("mean_sqrt_len_tokens")),
    "weightedmean": pooled(flags("weightedmean_tokens")),
    "lasttoken": pooled({"embedding_dimension": WIDTH, "pooling_mode": "lasttoken"}),
    "all flags false": pooled(flags()),
    "no mode": pooled({"embedding_dimension": WIDTH, "include_prompt": True}),
    "a list of one": pooled({"embedding_dimension": WIDTH, "pooling_mode": ["max"]}),
    "a list of two": pooled({"embedding_dimension": WIDTH, "pooling_mode": ["weightedmean", "cls"]}),
    "two flags": pooled(flags("max_tokens", "lasttoken", "cls_token")),
    "mode and flags": pooled(flags("max_tokens", pooling_mode="cls")),
    "truncate_dim": mean("config_sentence_transformers.json", truncate_dim=6, prompts={}),
    "processing_kwargs": with_each_text,
    "max_seq_length": tokenizer_limit,
    "model_max_length": mean("tokenizer_config.json", model_max_length=7, tokenizer_class="BertTokenizer"),
    "tokenizer_args": mean("sentence_bert_config.json", max_seq_length=9, tokenizer_args={"model_max_length": 6}),
    "do_lower_case": mean("sentence_bert_config.json", max_seq_length=40, do_lower_case=True),
    "do_lower_case counts": lower_case,
    "residual and norm": residual_and_norm,
    "dense behind unit length": dense_behind_unit_length,
    "classifier": classifier,
    "own folder": own_folder,
}


def save(folder: Path, name: str) -> Path:
    """Makes one of the folders above."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    FOLDERS[name](save_bert(folder, num_hidden_layers=1))
    return folder


ASK = """
import json, sys, torch
from sentence_transformers import SentenceTransformer
texts = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    model = SentenceTransformer(folder, device="cpu").double().eval()
    answers = [model.encode([text])[0].tolist() for text in texts]
    print(json.dumps([[round(value, 7) for value in answer] for answer in answers]), flush=True)
"""


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = [save(Path(scratch) / str(number), name) for number, name in enumerate(FOLDERS)]
        command = [python, "-c", ASK, json.dumps(TEXTS), *map(str, folders)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    answers = dict(zip(FOLDERS, lines, strict=True))
    entries = (f"{json.dumps(name)}: {answer}" for name, answer in answers.items())
    ANSWERS.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
