"""ViT against an independent implementation: `transformers`, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heed.model import CheckpointError, Encoder, load_checkpoint
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, renamed, save

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 12,
    "patch_size": 3,
    "num_channels": 2,
}
# What transformers 5 calls in memory what folders call as they always did.
NEW_NAMES = {
    r"encoder\.layer\.": "layers.",
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"(\d)\.output\.dense": r"\1.mlp.fc2",
}


def save_vit(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"ViT{task}", "ViTConfig", **(SIZES | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


def pixels(batch: int = 3, channels: int = 2, height: int = 12, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator)


def answer(encoder: Encoder, images: Tensor, output: str = "last_hidden_state") -> Tensor:
    with torch.no_grad():
        tensor: Tensor = encoder.double()(pixel_values=images)[output]
    return tensor


def assert_equal(folder: Path, images: Tensor, task: str = "Model") -> None:
    output = "last_hidden_state" if task == "Model" else "logits"
    ours = answer(load_checkpoint(folder).encoder, images, output)
    assert error(ours, ask(folder, f"ViT{task}", pixel_values=images)) < BUDGET


@pytest.mark.parametrize("batch", [1, 3])
def test_hidden_states(plain: Path, batch: int) -> None:
    assert_equal(plain, pixels(batch))


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"qkv_bias": False}, pixels()),
        ({"hidden_act": "gelu_new"}, pixels()),
        ({"layer_norm_eps": 1e-2}, pixels()),
        ({"num_channels": 3}, pixels(channels=3)),
        ({"num_channels": 1, "patch_size": 12}, pixels(channels=1)),  # a single patch
        ({"patch_size": 1, "image_size": 5}, pixels(height=5, width=5)),
        ({"image_size": [6, 15]}, pixels(height=6, width=15)),
        ({"patch_size": [3, 3]}, pixels()),
    ],
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any], images: Tensor) -> None:
    assert_equal(save_vit(tmp_path, **settings), images)


@pytest.mark.parametrize("settings", [{}, {"id2label": {0: "a score"}}])
def test_image_classification(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_equal(save_vit(tmp_path, "ForImageClassification", **settings), pixels(), "ForImageClassification")


def test_the_encoder_of_a_model_of_masked_images(tmp_path: Path) -> None:
    folder = save_vit(tmp_path, "ForMaskedImageModeling", encoder_stride=3)
    assert error(answer(load_checkpoint(folder).encoder, pixels()), ask(folder, "ViTModel", pixel_values=pixels())) < (
        BUDGET
    )


# Both forms of folders


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_published_names(plain: Path, tmp_path: Path, prefix: str) -> None:
    """Those of 2020, which transformers 5 still writes; `vit.` stands before them where there is a head."""
    folder = renamed(plain, tmp_path / "copy", {"^": prefix})
    assert f"{prefix}encoder.layer.0.attention.attention.query.weight" in load_file(folder / "model.safetensors")
    assert torch.equal(*(answer(load_checkpoint(each).encoder, pixels()) for each in (folder, plain)))


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_names_as_they_are_in_memory(plain: Path, tmp_path: Path, prefix: str) -> None:
    import transformers

    folder = renamed(plain, tmp_path / "copy", NEW_NAMES | {"^": prefix})
    names = {name.removeprefix(prefix) for name in load_file(folder / "model.safetensors")}
    assert names == transformers.ViTModel.from_pretrained(plain).state_dict().keys()
    assert torch.equal(*(answer(load_checkpoint(each).encoder, pixels()) for each in (folder, plain)))


def test_an_earlier_config(plain: Path, tmp_path: Path) -> None:
    folder = edited(
        plain, tmp_path / "earlier", "pooler_act", "pooler_output_size", "dtype",
        encoder_stride=16, torch_dtype="float32", transformers_version="4.13.0.dev0",
    )  # fmt: skip
    assert_equal(folder, pixels())


# What is not computed is refused by name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_size": 13}, "13 x 13"),
        ({"image_size": "big"}, "image_size='big'"),
        ({"image_size": [12, 12, 12]}, "image_size"),
        ({"patch_size": [3, 4]}, "patch_size"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"qkv_bias": None}, "qkv_bias=None"),
        ({"head_dim": 4}, "head_dim"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(plain, tmp_path / "copy", **settings))


@pytest.mark.parametrize("name", ["embeddings.cls_token", "embeddings.position_embeddings"])
def test_a_weight_of_another_shape_is_refused_by_name(plain: Path, tmp_path: Path, name: str) -> None:
    folder = edited(plain, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.cat([weights[name], weights[name]])
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


# Controls: each of these faults would be seen


def test_patches_column_by_column_would_be_seen(plain: Path) -> None:
    encoder = load_checkpoint(plain).encoder
    tiles = pixels().reshape(3, 2, 4, 3, 4, 3)  # rows and columns of patches of 3 x 3
    assert error(answer(encoder, tiles.transpose(2, 4).reshape(3, 2, 12, 12)), answer(encoder, pixels())) > VISIBLE


def test_pixels_in_another_order_would_be_seen(plain: Path) -> None:
    """Channels last, as some cut their patches."""
    encoder: Any = load_checkpoint(plain).encoder
    right = answer(encoder, pixels())
    weight = encoder.embeddings.inputs.project.weight
    weight.data = weight.reshape(-1, 2, 3, 3).permute(0, 2, 3, 1).flatten(1)
    assert error(answer(encoder, pixels()), right) > VISIBLE


def test_a_class_token_behind_the_patches_would_be_seen(plain: Path) -> None:
    encoder: Any = load_checkpoint(plain).encoder
    right = answer(encoder, pixels())
    table = encoder.embeddings.positions.table
    table.weight.data = table.weight.roll(-1, 0)
    assert error(answer(encoder, pixels()), right) > VISIBLE
