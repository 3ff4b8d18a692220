"""What a checkpoint folder may look like, and what each one that cannot be loaded is told."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heed.model import CheckpointError, load_checkpoint
from heed.model.config import PoolingConfig
from heed.model.sentence_transformers_folder import Prompts
from tests.support import add_pooling, save_bert, save_roberta

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
IDS = torch.arange(12).reshape(2, 6)

Tensors = dict[str, Tensor]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with mean pooling, not to be changed."""
    return add_pooling(save_bert(tmp_path_factory.mktemp("whole"), num_hidden_layers=1), "mean")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def edit_weights(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def answer(folder: Path) -> Tensor:
    with torch.no_grad():
        embedding: Tensor = load_checkpoint(folder).encoder(IDS)["sentence_embedding"]
    return embedding


def assert_refused(folder: Path, message: str) -> None:
    """`message` is a regular expression."""
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


# What is accepted


def test_an_encoder_comes_in_float32_without_gradients_and_in_evaluation_mode(whole: Path) -> None:
    checkpoint = load_checkpoint(whole)
    assert checkpoint.family == "bert"
    assert not checkpoint.encoder.training
    for parameter in checkpoint.encoder.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert not parameter.requires_grad


def test_everything_that_was_read_is_listed(whole: Path) -> None:
    read = {path.relative_to(whole).as_posix() for path in load_checkpoint(whole).files}
    assert read == {"modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json", WEIGHTS}


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda name: f"bert.{name}", id="the family's prefix"),
        pytest.param(
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
            id="gamma and beta",
        ),
    ],
)
def test_old_names_are_read(whole: Path, folder: Path, rename: Callable[[str], str]) -> None:
    edit_weights(folder, renamed(rename))
    assert load_file(folder / WEIGHTS).keys() != load_file(whole / WEIGHTS).keys()
    assert torch.equal(answer(folder), answer(whole))


def test_what_lies_beside_the_encoder_is_left_out(whole: Path, folder: Path) -> None:
    beside = {
        "embeddings.position_ids": torch.arange(40)[None],
        "pooler.dense.weight": torch.full((32, 32), torch.nan),
        "cls.predictions.bias": torch.zeros(100),
        "lm_head.bias": torch.zeros(100),
    }
    edit_weights(folder, lambda tensors: tensors | beside)
    assert torch.equal(answer(folder), answer(whole))


def test_what_is_left_out_is_told(whole: Path, folder: Path) -> None:
    beside = {
        "embeddings.position_ids": torch.arange(40)[None],
        "cls.predictions.bias": torch.zeros(100),
        "cls.predictions.transform.dense.weight": torch.zeros(32, 32),
    }
    edit_weights(folder, lambda tensors: tensors | beside)
    edit_json(folder / "config.json", architectures=["Contriever"])
    (folder / "adapter_config.json").write_text("{}")
    (folder / "tokenizer.json").unlink()
    notes = load_checkpoint(folder).notes
    assert [note for note in notes if note not in load_checkpoint(whole).notes] == [
        "architectures names Contriever, which is not known here: only the encoder is read",
        "left out: the head of the language model (weights: 2 of cls.*)",
        "left out: the adapter of adapter_config.json; to have it in the model, merge it first (peft: "
        "merge_and_unload())",
        "there is no tokenizer.json: the model takes token ids, no texts",
    ]


def test_code_that_came_with_a_folder_is_told(whole: Path, folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.MyModel"})
    assert "auto_map names code that came with the folder; it was not run, only the weights were read" in (
        load_checkpoint(folder).notes
    )
    assert torch.equal(answer(folder), answer(whole))


def test_a_config_of_before_model_types_is_read_by_its_architecture(whole: Path, folder: Path) -> None:
    edit_json(folder / "config.json", model_type=None)
    assert load_checkpoint(folder).family == "bert"
    assert torch.equal(answer(folder), answer(whole))


def test_keys_to_ignore_are_passed_over(whole: Path, folder: Path) -> None:
    edit_json(folder / "config.json", rope_theta=10_000, position_embedding_type="odd")
    checkpoint = load_checkpoint(folder, ["rope_theta", "position_embedding_type"])
    assert checkpoint.encoder.config == load_checkpoint(whole).encoder.config
    assert checkpoint.ignored_keys == ("rope_theta", "position_embedding_type")
    with pytest.raises(CheckpointError, match=r"config\.json has no rope_thetas to ignore, only .*rope_theta"):
        load_checkpoint(folder, ["rope_thetas"])


def shard(folder: Path) -> None:
    """Two files and an index, as transformers saves large models."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def test_rows_may_be_shorter_than_the_model_could_take(whole: Path) -> None:
    longest = load_checkpoint(whole).encoder
    shorter = load_checkpoint(whole, max_length=7)
    assert (shorter.encoder.config.max_length, shorter.max_text_length) == (7, 7)
    ids = torch.arange(7)[None]
    assert torch.equal(shorter.encoder(ids)["last_hidden_state"], longest(ids)["last_hidden_state"])
    with pytest.raises(ValueError, match="8 columns are more than the model takes, 7"):
        shorter.encoder(torch.arange(8)[None])
    for length in (0, longest.config.max_length + 1):
        with pytest.raises(CheckpointError, match=f"max_length {length} cannot be: .* up to"):
            load_checkpoint(whole, max_length=length)


def test_sharded_weights_are_read(whole: Path, folder: Path) -> None:
    shard(folder)
    assert torch.equal(answer(folder), answer(whole))
    names = {path.name for path in load_checkpoint(folder).files}
    assert {INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= names


def pickle_weights(folder: Path, name: str = "pytorch_model.bin", **options: Any) -> None:
    """The weights as `torch.save` writes them."""
    torch.save(load_file(folder / WEIGHTS), folder / name, **options)
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors_are_read(whole: Path, folder: Path, zipped: bool) -> None:
    """As torch writes them, and as it did before 1.6."""
    pickle_weights(folder, _use_new_zipfile_serialization=zipped)
    assert torch.equal(answer(folder), answer(whole))
    assert folder / "pytorch_model.bin" in load_checkpoint(folder).files


def test_sharded_pickles_are_read(whole: Path, folder: Path) -> None:
    shard(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    for file in set(weight_map.values()):
        torch.save(load_file(folder / file), (folder / file).with_suffix(".bin"))
        (folder / file).unlink()
    (folder / INDEX).unlink()
    in_bin = {name: file.replace(".safetensors", ".bin") for name, file in weight_map.items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": in_bin}))
    assert torch.equal(answer(folder), answer(whole))


def test_what_transformers_loads_counts_where_weights_are_there_twice(whole: Path, folder: Path) -> None:
    """A single safetensors, before its shards, before a pickle."""
    shard(folder)
    for file in {*json.loads((folder / INDEX).read_text())["weight_map"].values()}:
        edited = {name: tensor + 1 for name, tensor in load_file(folder / file).items()}
        save_file(edited, folder / file)
    beside = answer(folder)
    torch.save({}, folder / "pytorch_model.bin")
    assert torch.equal(answer(folder), beside)
    shutil.copyfile(whole / WEIGHTS, folder / WEIGHTS)
    assert torch.equal(answer(folder), answer(whole))
    assert not torch.equal(answer(folder), beside)
    assert folder / INDEX not in load_checkpoint(folder).files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(whole: Path, folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    published = load_file(whole / WEIGHTS)["embeddings.word_embeddings.weight"]
    loaded = load_checkpoint(folder).encoder.get_parameter("embeddings.inputs.tokens.weight")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, published.to(dtype).float())


@pytest.mark.parametrize(("mode", "unit_length"), [("mean", True), ("cls", False), ("max", True)])
def test_pooling_is_read_from_sentence_transformers_files(folder: Path, mode: Any, unit_length: bool) -> None:
    add_pooling(folder, mode, unit_length=unit_length)
    assert load_checkpoint(folder).encoder.config.head == PoolingConfig(mode, unit_length)


def test_pooling_by_name_is_read(folder: Path) -> None:
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    assert load_checkpoint(folder).encoder.config.head == PoolingConfig("cls", unit_length=True)


def test_the_transformer_may_lie_in_a_folder_of_its_own(whole: Path, folder: Path) -> None:
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert torch.equal(answer(folder), answer(whole))
    assert load_checkpoint(folder).tokenizer == folder / "0_Transformer/tokenizer.json"


def test_a_path_with_dots_in_it_may_lead_to_the_folder(
    whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert torch.equal(answer(Path("../checkpoint")), answer(whole))


def test_a_folder_without_modules_has_no_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    assert load_checkpoint(folder).encoder.config.head is None


def test_a_folder_without_a_tokenizer_takes_no_text(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert load_checkpoint(folder).tokenizer is None


@pytest.mark.parametrize(
    ("sentence_limit", "tokenizer_limit", "expected"),
    [
        (None, None, 40),
        (17, None, 17),
        (17, 25, 17),
        (25, 17, 25),
        (None, 11, 11),
        (512, 512, 40),
        (None, 10**30, 40),
        (None, 1e30, 40),
        (None, float("inf"), 40),
        (float("nan"), None, 40),
        (1, None, 1),
    ],
)
def test_the_limit_on_texts_is_sentence_transformers_own(
    folder: Path, sentence_limit: float | None, tokenizer_limit: float | None, expected: int
) -> None:
    edit_json(folder / "sentence_bert_config.json", max_seq_length=sentence_limit, do_lower_case=False)
    edit_json(folder / "tokenizer_config.json", model_max_length=tokenizer_limit)
    assert load_checkpoint(folder).max_text_length == expected


def test_a_counted_family_s_texts_leave_room_for_the_padding_id(tmp_path: Path) -> None:
    assert load_checkpoint(save_roberta(tmp_path)).max_text_length == 40


@pytest.mark.parametrize("name", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_the_limit_on_texts_may_have_an_old_name(folder: Path, name: str) -> None:
    settings = folder / f"sentence_{name}_config.json"
    edit_json(settings, max_seq_length=17)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.max_text_length == 17
    assert settings in checkpoint.files
    edit_json(folder / "sentence_bert_config.json", max_seq_length=25)
    assert load_checkpoint(folder).max_text_length == 25


def add_dense(folder: Path, number: int, width: int, out: int, **config: object) -> Path:
    """A dense layer behind what is there, as sentence-transformers saves it."""
    path = folder / f"{number}_Dense"
    path.mkdir()
    tanh = "torch.nn.modules.activation.Tanh"
    edit_json(path / "config.json", **({"in_features": width, "out_features": out, "bias": True} | config))
    edit_json(path / "config.json", **({"activation_function": tanh} | config))
    generator = torch.Generator().manual_seed(number)
    weights = {"linear.weight": torch.randn(out, width, generator=generator)}
    if config.get("bias", True):
        weights["linear.bias"] = torch.randn(out, generator=generator)
    save_file(weights, path / WEIGHTS)
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(number, {"path": path.name, "type": "sentence_transformers.models.Dense.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return path


def test_dense_layers_follow_the_pooling(whole: Path, folder: Path) -> None:
    identity = "torch.nn.modules.linear.Identity"
    layers = [add_dense(folder, 2, 32, 12), add_dense(folder, 3, 12, 5, bias=False, activation_function=identity)]
    first, second = (load_file(path / WEIGHTS) for path in layers)
    with torch.no_grad():
        hidden = load_checkpoint(whole).encoder(IDS)["last_hidden_state"].mean(1)
        expected = (hidden @ first["linear.weight"].T + first["linear.bias"]).tanh() @ second["linear.weight"].T
    torch.testing.assert_close(answer(folder), torch.nn.functional.normalize(expected, dim=-1))
    read = {path.relative_to(folder).as_posix() for path in load_checkpoint(folder).files}
    assert {"2_Dense/config.json", f"2_Dense/{WEIGHTS}", "3_Dense/config.json", f"3_Dense/{WEIGHTS}"} <= read


def test_keys_that_cannot_matter_are_passed_over(whole: Path, folder: Path) -> None:
    edit_json(folder / "config.json", hidden_dropout_prob=0.5, id2label={"0": "a"}, pooler_type="first_token_transform")
    assert torch.equal(answer(folder), answer(whole))


def test_what_the_family_means_stands_in_for_what_the_config_leaves_out(whole: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    left_out = ("layer_norm_eps", "pad_token_id", "type_vocab_size", "architectures")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in left_out}))
    assert load_checkpoint(folder).encoder.config == load_checkpoint(whole).encoder.config


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is not supported, only bert, roberta, xlm-roberta, "),
        ({"model_type": None, "architectures": None}, "model_type=None is not supported"),
        (
            {"model_type": None, "architectures": ["Own"]},
            r"model_type=None and architectures=\['Own'\] is not supported",
        ),
        ({"model_type": ["bert"]}, "model_type=.* is not supported"),
        ({"architectures": ["BertLMHeadModel"]}, "architecture BertLMHeadModel is not supported, only BertModel, "),
        ({"architectures": 5}, "architectures=5 is no list of names of classes"),
        ({"rope_theta": 10000}, "rope_theta=10000 is not known to this version and might change the answers"),
        ({"is_decoder": True}, "is_decoder=True is not supported, only False"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported, only False"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported, only False"),
        ({"position_embedding_type": "relative_key"}, "='relative_key' is not supported, only 'absolute'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported, only {}"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is none of gelu, .*, relu, silu, swish, tanh"),
        ({"hidden_act": ["gelu"]}, "hidden_act=.* is none of gelu, "),
        ({"vocab_size": "100"}, "vocab_size='100' is not a positive integer"),
        ({"vocab_size": True}, "vocab_size=True is not a positive integer"),
        ({"num_attention_heads": 5}, "width 32 does not divide into 5 heads"),
        ({"layer_norm_eps": "1e-12"}, "norm_epsilon must lie between 0 and 1, got '1e-12'"),
        ({"layer_norm_eps": None}, "norm_epsilon must lie between 0 and 1, got None"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers='1' is not a positive integer"),
        ({"num_hidden_layers": 2}, r"the weights lack blocks\.1\..* and 15 more"),
        ({"hidden_size": 64}, r"weight \S+ has shape .*32.*, config\.json says .*64"),
        ({"max_position_embeddings": 41}, r"position_embeddings\.weight has shape \[40, 32\], .* says \[41, 32\]"),
    ],
)
def test_a_config_is_refused_by_the_key_that_is_wrong(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    assert_refused(folder, message)


REQUIRED = [
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_config_that_lacks_a_key_is_refused_by_its_name(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, f"config.json lacks {key}")


@pytest.mark.parametrize("value", [None, "0", True, -1, 100])
def test_the_counted_rule_needs_a_padding_id_of_the_vocabulary(tmp_path: Path, value: object) -> None:
    edit_json(save_roberta(tmp_path) / "config.json", pad_token_id=value)
    assert_refused(tmp_path, f"pad_token_id={value!r} is not in the vocabulary of 100")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not valid JSON"), (b"\xff", "is not valid JSON"), (b"[1]", "holds list, expected an object")],
)
@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "tokenizer_config.json", INDEX])
def test_a_file_that_is_no_object_is_refused_by_name(folder: Path, name: str, content: bytes, message: str) -> None:
    if name == INDEX:
        shard(folder)
    (folder / name).write_bytes(content)
    assert_refused(folder, f"{name} {message}")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "nothing is not a folder; give a checkpoint folder")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "config.json is missing")


KEY = "encoder.layer.0.attention.self.key.weight"


def with_value(value: float) -> Callable[[Tensors], Tensors]:
    def edit(tensors: Tensors) -> Tensors:
        tensors[KEY][3, 5] = value
        return tensors

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda tensors: {name: tensors[name] for name in tensors if name != KEY},
            r"lack blocks\.0\.attention\.key\.w",
        ),
        (lambda tensors: {}, r"the weights lack \S+ and 20 more"),
        (
            lambda tensors: tensors | {"adapter.weight": torch.zeros(1)},
            "weight adapter.weight has no place in the model",
        ),
        (renamed(lambda name: f"roberta.{name}"), r"weight roberta\.\S+ has no place"),
        (lambda tensors: tensors | {KEY: torch.zeros(32, 31)}, r"key\.weight has shape \[32, 31\], .* says \[32, 32\]"),
        (lambda tensors: tensors | {KEY: torch.zeros(32)}, r"key\.weight has shape \[32\], .* says \[32, 32\]"),
        (lambda tensors: tensors | {KEY: torch.zeros(32, 32, dtype=torch.int8)}, "key.weight has type torch.int8"),
        (with_value(torch.nan), "key.weight holds NaN or infinity"),
        (with_value(-torch.inf), "key.weight holds NaN or infinity"),
        (with_value(-1e25), r"key.weight holds -1.0e\+25, expected numbers up to 1e\+10"),
    ],
)
def test_weights_are_refused_by_the_name_of_the_one_that_is_wrong(
    folder: Path, edit: Callable[[Tensors], Tensors], message: str
) -> None:
    edit_weights(folder, edit)
    assert_refused(folder, message)


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_truncated_weights_are_refused(folder: Path, length: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])
    assert_refused(folder, f"{WEIGHTS} is damaged or truncated")


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert_refused(folder, f"{WEIGHTS} is missing")


class RunsCode:
    """What a pickle can do when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_code_in_a_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({KEY: torch.zeros(32, 32), "code": RunsCode(tmp_path / "trace")}, folder / "pytorch_model.bin")
    assert_refused(folder, r"pytorch_model.bin holds more than weights: it names \w+\.mkdir, which is never")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("length", [0, 5, 2000, -100])
def test_a_truncated_pickle_is_refused(folder: Path, length: int) -> None:
    pickle_weights(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:length])
    assert_refused(folder, "pytorch_model.bin is damaged or truncated, or was not written by torch.save")


@pytest.mark.parametrize("content", [{"model": {KEY: torch.zeros(2)}}, [torch.zeros(2)], torch.zeros(2), {"step": 3}])
def test_a_pickle_of_something_else_is_refused(folder: Path, content: object) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert_refused(folder, r"pytorch_model.bin holds something else than tensors by name; .*model.state_dict\(\)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.onnx",
            r"has its weights for ONNX only \(model.onnx\), and heed exports PyTorch's: .* hf download NAME",
        ),
        ("onnx/model_int8.onnx", r"for ONNX only \(onnx/model_int8.onnx\)"),
        ("openvino/openvino_model.xml", "for OpenVINO only"),
        ("tf_model.h5", "for TensorFlow only"),
        ("model-q4.gguf", "for GGUF only"),
        ("weights.pt", "if weights.pt holds the model's weights, rename it to pytorch_model.bin"),
        (
            "model.fp16.safetensors",
            "if model.fp16.safetensors holds the model's weights, rename it to model.safetensors",
        ),
    ],
)
def test_a_folder_without_its_weights_is_told_what_to_fetch(folder: Path, name: str, message: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    assert_refused(folder, message)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_told_with_the_command(folder: Path, name: str) -> None:
    if name == "pytorch_model.bin":
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(POINTER)
    assert_refused(folder, rf"{name} is a pointer of Git LFS, not the file itself; .*: git -C {folder} lfs pull")


def test_an_adapter_without_its_model_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "intfloat/e5-base"}')
    assert_refused(folder, r"an adapter \(adapter_config.json\) without its model, intfloat/e5-base; merge the two")


def test_a_missing_shard_is_refused(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert_refused(folder, "model-00002-of-00002.safetensors is missing")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_file_names_is_refused(folder: Path, index: dict[str, object]) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, f"{INDEX} has no weight_map of file names")


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model"])
def test_a_tokenizer_in_an_old_format_is_refused_with_a_way_out(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").rename(folder / name)
    assert_refused(folder, f"has {name} but no tokenizer.json; make one with transformers")


def module(kind: str, path: object = "") -> dict[str, object]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [module("Transformer"), module("Pooling", "1_Pooling"), module("WordWeights", "2_WordWeights")],
            "modules Transformer → Pooling → WordWeights are not supported, only Transformer → Pooling → any of Dense",
        ),
        ([module("Transformer"), module("Dense", "2_Dense")], "modules Transformer → Dense are not supported"),
        (
            [module("Transformer"), module("Pooling", "1_Pooling"), module("Dense", "2_Dense")],
            "2_Dense/config.json is missing",
        ),
        ([module("Transformer"), module("Normalize")], "modules Transformer → Normalize are not supported"),
        ([module("CLIPModel")], "modules CLIPModel are not supported"),
        ([], "are not supported"),
        ({"a": 1}, "is not a list of sentence-transformers modules"),
        ([1], "is not a list of sentence-transformers modules"),
        ([{"type": "Transformer"}], "is not a list of sentence-transformers modules: KeyError"),
        ([module("Transformer", 1)], "is not a list of sentence-transformers modules"),
        ([module("Transformer", "../other")], r"\.\./other is not inside the folder"),
        ([module("Transformer", "/other")], "/other is not inside the folder"),
        ([module("Transformer"), module("Pooling", "nowhere")], "nowhere/config.json is missing"),
    ],
)
def test_modules_that_are_not_computed_here_are_refused(folder: Path, modules: object, message: str) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    assert_refused(folder, message)


PROMPTS = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}


def test_prompts_are_read(folder: Path) -> None:
    assert not load_checkpoint(folder).prompts.texts
    (folder / "config_sentence_transformers.json").write_text(json.dumps(PROMPTS))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.prompts == Prompts({"query": "query: ", "document": ""}, "query")
    assert folder / "config_sentence_transformers.json" in checkpoint.files


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"default_prompt_name": "passage"},
            r"default_prompt_name='passage' is none of the prompts \['document', 'query'\]",
        ),
        ({"prompts": {"query": 1}}, "prompts must be texts by name"),
        ({"prompts": ["query: "]}, "prompts must be texts by name"),
    ],
)
def test_prompts_that_cannot_be_are_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps(PROMPTS | settings))
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.ELU"},
            "activation_function='torch.*ELU' is not supported",
        ),
        ({"activation_function": "mine.Own"}, "activation_function='mine.Own' is not supported, only 'torch.nn"),
        ({"use_residual": True}, r"the weights lack head\.layers\.0\.residual\.weight"),
        ({"use_residual": 1.5}, "use_residual=1.5 is not supported, only True, False"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings' is not supported"),
        ({"module_output_name": "other"}, "module_output_name='other' is not supported"),
        ({"bias": "yes"}, "bias='yes' is not supported, only True, False"),
        ({"out_features": "12"}, "width of a dense layer must be a positive integer, got '12'"),
        ({"out_features": 13}, r"weight 2_Dense/linear.\w+ has shape \[12.*, config.json says \[13"),
        ({"bias": False}, "weight 2_Dense/linear.bias has no place"),
    ],
)
def test_a_dense_layer_is_refused_by_what_is_wrong(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_json(add_dense(folder, 2, 32, 12) / "config.json", **changes)
    assert_refused(folder, message)


@pytest.mark.parametrize("shape", [(), (3,), (36,)])
def test_a_weight_that_cannot_be_taken_apart_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """ModernBERT keeps the projections to queries, keys and values as one."""
    from transformers import ModernBertConfig, ModernBertModel

    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 14}
    ModernBertModel(ModernBertConfig(num_hidden_layers=1, pad_token_id=0, **sizes)).save_pretrained(tmp_path)
    load_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors | {"layers.0.attn.Wqkv.weight": torch.zeros(shape)})
    assert_refused(tmp_path, r"weight layers\.0\.attn\.Wqkv\.weight has shape \[")


def test_a_weight_under_two_names_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors | {f"bert.{KEY}": tensors[KEY] + 1})
    assert_refused(folder, "key.weight is there twice, under two names")
