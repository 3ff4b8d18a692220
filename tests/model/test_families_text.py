"""Every text family and architecture against an independent implementation: `transformers`, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bundle.contract import error_of
from model import load_checkpoint
from model.families.base import ACTIVATIONS
from model.positions import LogBuckets
from tests.checkpoints import PUBLISHED, TASKS, Task, oracle_answer, random_inputs, save_family

BUDGET = 1e-9  # both sides in float64
FAMILIES = list(PUBLISHED)


def answer(folder: Path, task: Task, inputs: dict[str, Tensor]) -> Tensor:
    encoder = load_checkpoint(folder).encoder.double()
    with torch.no_grad():
        output: Tensor = encoder(**inputs)["last_hidden_state" if task == "encoder" else "logits"]
    return output


def assert_equal_to_transformers(folder: Path, task: Task, inputs: dict[str, Tensor]) -> None:
    """At real positions: `transformers` gives masked ones values that mean nothing, and here they are zeros."""
    ours, theirs = answer(folder, task, inputs), oracle_answer(folder, task, inputs)
    assert ours.shape == theirs.shape
    if task != "sequence":
        real = inputs["attention_mask"].bool()
        assert not ours[~real].any()
        ours, theirs = ours[real], theirs[real]
    assert error_of(ours.numpy(), theirs.numpy()) < BUDGET


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Task], Path]:
    """One checkpoint of each family and architecture, not to be changed."""
    return {
        (family, task): save_family(tmp_path_factory.mktemp(f"{family}-{task}"), family, task)
        for family in FAMILIES
        for task in TASKS
    }


Folders = dict[tuple[str, Task], Path]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_equal_to_transformers(folders: Folders, family: str, task: Task) -> None:
    for length in (1, 2, 9, 40):
        assert_equal_to_transformers(folders[family, task], task, random_inputs(family, length))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mask_and_types_a_family_is_equal_to_transformers(folders: Folders, family: str) -> None:
    ids = random_inputs(family, 9)["input_ids"]
    ours = answer(folders[family, "encoder"], "encoder", {"input_ids": ids})
    theirs = oracle_answer(folders[family, "encoder"], "encoder", {"input_ids": ids})
    assert error_of(ours.numpy(), theirs.numpy()) < BUDGET


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_an_activation_is_that_of_transformers(tmp_path: Path, family: str, activation: str) -> None:
    settings: dict[str, Any] = {PUBLISHED[family].activation: activation}
    save_family(tmp_path, family, **settings)
    assert_equal_to_transformers(tmp_path, "encoder", random_inputs(family, 9))


def test_sinusoidal_tables_are_read_as_they_were_saved(tmp_path: Path) -> None:
    """Noise and all: how a table was made does not matter."""
    save_family(tmp_path, "distilbert", sinusoidal_pos_embds=True)
    assert_equal_to_transformers(tmp_path, "encoder", random_inputs("distilbert", 9))


def test_tables_as_wide_as_the_encoder_have_no_projection(tmp_path: Path) -> None:
    save_family(tmp_path, "electra", embedding_size=30)
    assert_equal_to_transformers(tmp_path, "encoder", random_inputs("electra", 9))


@pytest.mark.parametrize("padding_id", [None, 0, 5])
def test_mpnet_counts_from_one_whatever_its_config_says(tmp_path: Path, padding_id: int | None) -> None:
    save_family(tmp_path, "mpnet", pad_token_id=padding_id)
    assert_equal_to_transformers(tmp_path, "encoder", random_inputs("mpnet", 9))


def test_distances_lie_in_the_buckets_of_transformers() -> None:
    """At every distance that two of 514 columns can have; `transformers` takes the logarithm in float32."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = torch.arange(-513, 514)
    oracle: Any = MPNetEncoder
    theirs = oracle.relative_position_bucket(distances)
    assert torch.equal(LogBuckets(32, farthest=128)(distances), theirs)
    assert len(theirs.unique()) == 32 - 1  # distance 0 has no other direction


@pytest.mark.parametrize("length", [200, 512])
def test_far_columns_share_their_biases_as_in_transformers(tmp_path: Path, length: int) -> None:
    save_family(tmp_path, "mpnet", num_hidden_layers=1, max_position_embeddings=514)
    assert_equal_to_transformers(tmp_path, "encoder", random_inputs("mpnet", length))


# Labels


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_have_the_names_of_the_config(folders: Folders, family: str, task: Task) -> None:
    head = load_checkpoint(folders[family, task]).encoder.config.head
    assert head.names == ("red", "green", "blue")  # type: ignore[union-attr]
    assert head.per == task  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_label_is_a_score(tmp_path: Path, family: str) -> None:
    save_family(tmp_path, family, "sequence", id2label={0: "score"})
    inputs = random_inputs(family, 9)
    assert answer(tmp_path, "sequence", inputs).shape == (5, 1)
    assert_equal_to_transformers(tmp_path, "sequence", inputs)


# Controls: each of these differences would be found


def edited(source: Path, folder: Path, **changes: object) -> Path:
    """A copy with other values in its config."""
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


def difference(source: Path, other: Path, family: str) -> float:
    inputs = random_inputs(family, 9)
    return error_of(answer(other, "encoder", inputs).numpy(), answer(source, "encoder", inputs).numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_another_activation_would_be_found(folders: Folders, tmp_path: Path, family: str) -> None:
    source = folders[family, "encoder"]
    assert difference(source, edited(source, tmp_path, **{PUBLISHED[family].activation: "gelu_new"}), family) > 1e-4


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "distilbert"])
def test_another_epsilon_would_be_found(folders: Folders, tmp_path: Path, family: str) -> None:
    source = folders[family, "encoder"]
    assert difference(source, edited(source, tmp_path, layer_norm_eps=1e-3), family) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_swapped_heads_would_be_found(folders: Folders, tmp_path: Path, family: str) -> None:
    source = folders[family, "encoder"]
    edited(source, tmp_path)
    tensors = load_file(source / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith(("0.attention.self.value.weight", "0.attention.v_lin.weight",
                                                          "0.attention.attn.v.weight"))]  # fmt: skip
    tensors[name] = tensors[name].reshape(3, 10, 30)[[1, 0, 2]].flatten(0, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    assert difference(source, tmp_path, family) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_matters(folders: Folders, family: str) -> None:
    """But for the last key's bias: it moves all scores of a query alike."""
    encoder = load_checkpoint(folders[family, "sequence"]).encoder.double()
    inputs = random_inputs(family, 9)
    with torch.no_grad():
        before = encoder(**inputs)["logits"]
        for name, parameter in encoder.named_parameters():
            if name.endswith("key.bias"):
                continue
            generator = torch.Generator().manual_seed(0)
            change = torch.randn(parameter.shape, generator=generator).double()
            parameter.add_(change)
            assert error_of(encoder(**inputs)["logits"].numpy(), before.numpy()) > 1e-4, name
            parameter.sub_(change)
