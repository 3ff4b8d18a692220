"""Every text family and architecture against an independent implementation: `transformers`, in float64."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heed.bundle.contract import error_of
from heed.model import CheckpointError, load_checkpoint
from heed.model.classification_head import LabelsConfig
from heed.model.families import FAMILIES as REGISTRY
from heed.model.families.base import ACTIVATIONS
from heed.model.positions import LogBuckets
from tests.checkpoints import PUBLISHED, Task, oracle_answer, random_inputs, save_family
from tests.support import add_pooling

BUDGET = 1e-9  # both sides in float64
FAMILIES = list(PUBLISHED)
ARCHITECTURES = [(family, task) for family, published in PUBLISHED.items() for task in published.tasks]
CLASSIFIERS = [(family, task) for family, task in ARCHITECTURES if task != "encoder"]


def answer(folder: Path, task: Task, inputs: dict[str, Tensor]) -> Tensor:
    encoder = load_checkpoint(folder).encoder.double()
    with torch.no_grad():
        output: Tensor = encoder(**inputs)["last_hidden_state" if task == "encoder" else "logits"]
    return output


def assert_equal_to_transformers(folder: Path, task: Task, inputs: dict[str, Tensor]) -> None:
    """At real positions: `transformers` gives masked ones values that mean nothing, and here they are zeros."""
    ours, theirs = answer(folder, task, inputs), oracle_answer(folder, task, inputs)
    assert ours.shape == theirs.shape
    if task == "sequence":
        rows = rows_that_are_read_alike(folder, inputs)
        ours, theirs = ours[rows], theirs[rows]
    if task != "sequence":
        real = inputs["attention_mask"].bool()
        assert not ours[~real].any()
        ours, theirs = ours[real], theirs[real]
    assert error_of(ours.numpy(), theirs.numpy()) < BUDGET


def rows_that_are_read_alike(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    """All but those whose first column is padding, where the first real token is read and not that column."""
    return inputs["attention_mask"][:, 0].bool() | (not load_checkpoint(folder).encoder.config.reads_first_real)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Task], Path]:
    """One checkpoint of each family and architecture, not to be changed."""
    return {
        (family, task): save_family(tmp_path_factory.mktemp(f"{family}-{task}"), family, task)
        for family in FAMILIES
        for task in PUBLISHED[family].tasks
    }


Folders = dict[tuple[str, Task], Path]


def edited(source: Path, folder: Path, **changes: object) -> Path:
    """A copy with other values in its config."""
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("family", "task"), ARCHITECTURES)
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


# Configs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_that_transformers_knows_is_known(folders: Folders, tmp_path: Path, family: str) -> None:
    """Those that `save_pretrained` writes where they differ from a default, too, and those of generation."""
    import transformers

    source = folders[family, "encoder"]
    every = transformers.AutoConfig.from_pretrained(source).to_dict()
    generation: Any = transformers.GenerationConfig
    settings = generation._get_default_generation_params() | every
    assert len(settings) > 50
    encoder = load_checkpoint(edited(source, tmp_path, **settings)).encoder
    assert encoder.config == load_checkpoint(source).encoder.config


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_that_is_not_known_is_refused(folders: Folders, tmp_path: Path, family: str) -> None:
    edited(folders[family, "encoder"], tmp_path, num_buckets=10_000)
    with pytest.raises(CheckpointError, match="num_buckets=10000 is not known to this version"):
        load_checkpoint(tmp_path)


def test_the_documentation_lists_every_family_and_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text("utf-8")
    for family in REGISTRY.values():
        assert f"`{family.name}`" in page
        assert [name for name in family.heads if f"`{name}`" not in page] == []
    assert [name for name in ACTIVATIONS if f"`{name}`" not in page] == []


def test_mpnet_has_as_many_buckets_as_its_code(folders: Folders, tmp_path: Path) -> None:
    edited(folders["mpnet", "encoder"], tmp_path, relative_attention_num_buckets=64)
    with pytest.raises(CheckpointError, match="relative_attention_num_buckets=64 is not supported, only 32"):
        load_checkpoint(tmp_path)


# Labels


@pytest.mark.parametrize(("family", "task"), CLASSIFIERS)
def test_a_classifier_without_a_weight_of_its_head_is_refused(
    folders: Folders, tmp_path: Path, family: str, task: Task
) -> None:
    edited(folders[family, task], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    last = ("classifier.bias", "classifier.out_proj.bias", "score.bias", "score.weight")
    name = next(name for name in last if name in tensors)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"the weights lack head\.out\.{name.rpartition('.')[2]}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("family", "task"), CLASSIFIERS)
def test_a_classifier_is_not_taken_for_an_encoder(folders: Folders, tmp_path: Path, family: str, task: Task) -> None:
    edited(folders[family, task], tmp_path, architectures=None)
    with pytest.raises(CheckpointError, match=r"weight ((pre_)?classifier|score)\S+ has no place in the model"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"problem_type": "multi_label_classification"},
        {"classifier_dropout": 0.5},
        {"num_labels": 3},
        {"label2id": {"red": 2}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_what_does_not_change_logits_is_passed_over(folders: Folders, tmp_path: Path, config: dict[str, Any]) -> None:
    source = folders["bert", "sequence"]
    inputs = random_inputs("bert", 9)
    assert torch.equal(
        answer(edited(source, tmp_path, **config), "sequence", inputs), answer(source, "sequence", inputs)
    )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"1": "b", "2": "c", "0": "a"}}, ("a", "b", "c")),
        ({"id2label": {"0": 1, "1": 2, "2": 3}}, ("1", "2", "3")),
        ({"id2label": {"0": "crane", "1": "fox", "2": "crane"}}, ("crane (0)", "fox", "crane (2)")),
        ({"id2label": {"0": 1, "1": "1", "2": "a"}}, ("1 (0)", "1 (1)", "a")),
    ],
)
def test_names_of_labels_come_in_order(
    folders: Folders, tmp_path: Path, config: dict[str, Any], names: tuple[str, ...]
) -> None:
    checkpoint = load_checkpoint(edited(folders["bert", "token"], tmp_path, **config))
    head = checkpoint.encoder.config.head
    assert isinstance(head, LabelsConfig)
    assert head.names == names
    assert not any("rows" in note for note in checkpoint.notes)


LABEL_0_TO_2 = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("config", "names", "note"),
    [
        pytest.param({"id2label": {"0": "a", "1": "b"}}, ("a", "b", "LABEL_2"), "names 2 labels (0 to 1)", id="few"),
        pytest.param({"id2label": {"0": "a", "2": "c"}}, ("a", "LABEL_1", "c"), "names 2 labels (0 to 2)", id="a hole"),
        pytest.param({"id2label": {"0": "a", "1": None, "2": "c"}}, ("a", "LABEL_1", "c"), "names 2", id="no name"),
        pytest.param({"id2label": {str(n): "abcd"[n] for n in range(4)}}, ("a", "b", "c"), "names 4 labels", id="more"),
        pytest.param({"id2label": {"1": "a", "2": "b", "3": "c"}}, ("LABEL_0", "a", "b"), "(1 to 3)", id="from 1"),
        pytest.param({"num_labels": 7}, ("red", "green", "blue"), "and num_labels=7", id="another number"),
        pytest.param({"id2label": {"0": "a"}, "num_labels": 3}, LABEL_0_TO_2, "and num_labels=3", id="as transformers"),
        pytest.param({"id2label": None, "num_labels": 7}, LABEL_0_TO_2, "", id="a number alone"),
        pytest.param({"id2label": {}}, LABEL_0_TO_2, "", id="empty"),
    ],
)
def test_a_head_has_as_many_labels_as_rows(
    folders: Folders, tmp_path: Path, config: dict[str, Any], names: tuple[str, ...], note: str
) -> None:
    checkpoint = load_checkpoint(edited(folders["bert", "token"], tmp_path, **config))
    head = checkpoint.encoder.config.head
    assert isinstance(head, LabelsConfig)
    assert head.names == names
    said = [each for each in checkpoint.notes if "but the head has 3 rows, which decide" in each]
    assert bool(said) == bool(note)
    assert note in "".join(said)


def test_labels_that_contradict_each_other_are_called_as_transformers_calls_them(
    folders: Folders, tmp_path: Path
) -> None:
    """`num_labels` against `id2label`, as simpletransformers wrote it."""
    from transformers import AutoConfig

    config = {"id2label": {"0": "a", "1": "b"}, "num_labels": 3}
    folder = edited(folders["bert", "token"], tmp_path, **config)
    head = load_checkpoint(folder).encoder.config.head
    assert isinstance(head, LabelsConfig)
    assert dict(enumerate(head.names)) == AutoConfig.from_pretrained(folder).id2label


def test_two_labels_need_no_names(tmp_path: Path) -> None:
    """`transformers` writes nothing for two labels, which is its default."""
    save_family(tmp_path, "bert", "sequence", id2label=None)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    head = load_checkpoint(tmp_path).encoder.config.head
    assert isinstance(head, LabelsConfig)
    assert head.names == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": None, "num_labels": 0}, "num_labels=0 is not a positive integer"),
        ({"id2label": ["a", "b", "c"]}, "id2label=.* is not an object with the labels' names by their numbers"),
        ({"id2label": {"a": "0"}}, "id2label=.* is not an object with the labels' names by their numbers"),
        ({"id2label": {"0": "a", "1": "a (0)", "2": "a"}}, r"labels must have names of their own"),
        ({"id2label": {"0": ["a"], "1": "b", "2": "c"}}, r"id2label=.* names a label \['a'\]"),
        (
            {"architectures": ["BertForTokenClassification", "BertForSequenceClassification"]},
            "architectures BertForTokenClassification, BertForSequenceClassification have different heads",
        ),
        ({"architectures": ["BertForQuestionAnswering"]}, "architecture BertForQuestionAnswering is not supported"),
        ({"architectures": [["BertModel"]]}, "architectures=.* is no list of names of classes"),
    ],
)
def test_labels_are_refused_by_what_is_wrong(
    folders: Folders, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(edited(folders["bert", "token"], tmp_path, **config))


def test_a_classifier_is_pooled_without_its_head(folders: Folders, tmp_path: Path) -> None:
    encoder = load_checkpoint(add_pooling(edited(folders["bert", "sequence"], tmp_path), "mean")).encoder
    assert encoder.outputs == ["last_hidden_state", "sentence_embedding", "unnormalized_embedding"]


def test_a_cross_encoder_may_be_a_folder_of_sentence_transformers(folders: Folders, tmp_path: Path) -> None:
    """As it saves them today: a single module, and the activation beside it."""
    source = folders["bert", "sequence"]
    edited(source, tmp_path)
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    settings: dict[str, Any] = {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "default_prompt_name": None,
        "prompts": {},
    }
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings | {"model_type": "CrossEncoder"}))
    inputs = random_inputs("bert", 9)
    assert torch.equal(answer(tmp_path, "sequence", inputs), answer(source, "sequence", inputs))


@pytest.mark.parametrize(("family", "task"), CLASSIFIERS)
def test_labels_have_the_names_of_the_config(folders: Folders, family: str, task: Task) -> None:
    head = load_checkpoint(folders[family, task]).encoder.config.head
    assert isinstance(head, LabelsConfig)
    assert head.names == ("red", "green", "blue")
    assert head.per == task


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_label_is_a_score(tmp_path: Path, family: str) -> None:
    save_family(tmp_path, family, "sequence", id2label={0: "score"})
    inputs = random_inputs(family, 9)
    assert answer(tmp_path, "sequence", inputs).shape == (5, 1)
    assert_equal_to_transformers(tmp_path, "sequence", inputs)


# Controls: each of these differences would be found

QUERY_OF_LAYER_0 = r"0\.(attention\.(self\.query(_proj)?|q_lin|attn\.q|qkv_proj)|attn\.Wqkv|self_attn\.q_proj)\.weight$"


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
    changed = edited(source, tmp_path, **{PUBLISHED[family].epsilon: 1e-3})
    assert difference(source, changed, family) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_swapped_heads_would_be_found(folders: Folders, tmp_path: Path, family: str) -> None:
    source = folders[family, "encoder"]
    edited(source, tmp_path)
    tensors = load_file(source / "model.safetensors")
    (name,) = [name for name in tensors if re.search(QUERY_OF_LAYER_0, name)]
    rows = load_checkpoint(source).encoder.blocks[0].attention.query.out_features  # type: ignore[union-attr]
    queries = tensors[name][:rows]  # the first of three, where they are stored as one
    queries.copy_(queries.reshape(PUBLISHED[family].heads, -1, queries.shape[1]).roll(1, 0).flatten(0, 1))
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
