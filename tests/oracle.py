"""`transformers` as an independent implementation: small random checkpoints, and what it answers in float64."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import make_noisy

BUDGET = 1e-9  # relative, both sides in float64
VISIBLE = 1e-4  # what a wrong answer differs by, at least
LABELS = {"id2label": {0: "red", 1: "green", 2: "blue"}}


def save(folder: Path, network: str, config: str, **settings: Any) -> Path:
    """A small random checkpoint, by the names of the classes of `transformers`."""
    import transformers

    labels = LABELS if "Classification" in network else {}
    model = getattr(transformers, network)(getattr(transformers, config)(**(labels | settings)))
    make_noisy(model)
    model.save_pretrained(folder)
    return folder


def edited(source: Path, folder: Path, *without: str, **changes: object) -> Path:
    """A copy with other settings in its config, or without them."""
    config = json.loads((source / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in without}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(kept))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


def renamed(source: Path, folder: Path, names: dict[str, str]) -> Path:
    """A copy with other names of weights: regular expressions, and what they become."""
    weights = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        for old, new in names.items():
            name = re.sub(old, new, name)  # noqa: PLW2901
        weights[name] = tensor
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((source / "config.json").read_text())
    save_file(weights, folder / "model.safetensors")
    return folder


def ask(folder: Path, network: str, **inputs: Tensor) -> Tensor:
    """What `transformers` answers, in float64 all the way: hidden states or logits.

    Each call makes an object of its own: Big Bird's changes for good with the first short row that it sees.
    """
    import transformers

    implementation = "sdpa" if network.startswith("ModernBert") else "eager"  # its eager softmax is in float32
    model = getattr(transformers, network).from_pretrained(
        folder, dtype=torch.float64, attn_implementation=implementation
    )
    with torch.no_grad(), unrounded():
        answer: Tensor = model.eval()(**inputs)[0]
    return answer


def ask_row_by_row(folder: Path, network: str, **inputs: Tensor) -> list[Tensor]:
    """What `transformers` answers to each row alone, from its first to its last real token, by a fresh object."""
    import transformers

    model = getattr(transformers, network).from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    answers = []
    for row, mask in enumerate(inputs["attention_mask"]):
        columns = mask.nonzero()[:, 0]
        real = slice(int(columns[0]), int(columns[-1]) + 1)
        alone = {name: tensor[row : row + 1, real] for name, tensor in inputs.items()}
        with torch.no_grad(), unrounded():
            answers.append(deepcopy(model).eval()(**alone)[0][0])
    return answers


@contextmanager
def unrounded() -> Iterator[None]:
    """Without the detours through float32 that some families take, whatever the type of their weights is."""
    from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta_v2
    from transformers.models.modernbert import modeling_modernbert as modernbert

    softmax = nn.functional.softmax

    def softmax_as_it_comes(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim=dim)

    def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        rotate_half: Any = modernbert.rotate_half
        return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin

    def scale(query: Tensor, terms: int) -> Tensor:
        return torch.tensor(query.shape[-1] * terms, dtype=torch.float64).sqrt()

    to, to_float = Tensor.to, Tensor.float

    def as_it_is(x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x if x.dtype == torch.float64 and args == (torch.float32,) else to(x, *args, **options)

    def float_as_it_is(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else to_float(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "softmax", softmax_as_it_comes)
        patch.setattr(Tensor, "to", as_it_is)
        patch.setattr(Tensor, "float", float_as_it_is)
        patch.setattr(deberta_v2, "scaled_size_sqrt", scale)
        patch.setattr(modernbert, "apply_rotary_pos_emb", turn)
        yield


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def padded(length: int) -> Tensor:
    """Masks without padding, padded right, left, on both sides, in holes, and with one real token: `[6, L]`."""
    mask = torch.ones(6, length, dtype=torch.long)
    mask[1, length // 2 + 1 :] = 0
    mask[2, : length // 2] = 0
    mask[3, : length // 4] = 0
    mask[3, length - length // 4 :] = 0
    mask[4, ::3] = 0
    mask[4, -1] = 1
    mask[5, : length // 2] = 0
    mask[5, length // 2 + 1 :] = 0
    return mask


def random_ids(vocabulary: int, mask: Tensor) -> Tensor:
    return torch.randint(0, vocabulary, mask.shape, generator=torch.Generator().manual_seed(mask.shape[1]))
