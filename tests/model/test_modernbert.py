"""ModernBERT against an independent implementation: `transformers`, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heed.model import CheckpointError, Encoder, load_checkpoint
from heed.model.config import AttentionConfig
from heed.model.patterns import Full, Window
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, renamed, save
from tests.support import add_pooling

RADIUS = 5
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 200,
    "local_attention": 2 * RADIUS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
AROUND_THE_WINDOW = [1, 2, RADIUS - 1, RADIUS, RADIUS + 1, 2 * RADIUS, 2 * RADIUS + 1]
AROUND_THE_BLOCKS = [15, 16, 17, 33, 64, 101, 200]


def save_modernbert(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"ModernBert{task}", "ModernBertConfig", **(SIZES | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modernbert(tmp_path_factory.mktemp("modernbert"))


@pytest.fixture(params=["dense", "in blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All pairs, or blocks at every length."""
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 512 if request.param == "dense" else 0)
    return str(request.param)


def assert_equal(folder: Path, length: int, task: str = "Model") -> None:
    mask = padded(length)
    ids = random_ids(SIZES["vocab_size"], mask)
    ours = ours_of(load_checkpoint(folder).encoder, "last_hidden_state" if task == "Model" else "logits", ids, mask)
    theirs = ask(folder, f"ModernBert{task}", input_ids=ids, attention_mask=mask)
    if task != "ForSequenceClassification":
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
    assert error(ours, theirs) < BUDGET


def ours_of(encoder: Encoder, output: str, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = encoder.double()(ids, mask)[output]
    return answer


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", AROUND_THE_WINDOW + AROUND_THE_BLOCKS)
def test_hidden_states(plain: Path, length: int) -> None:
    assert_equal(plain, length)


def test_one_layer_in_three_sees_all(plain: Path) -> None:
    full = [
        isinstance(layer.attention, AttentionConfig) and layer.attention.pattern == Full()
        for layer in load_checkpoint(plain).encoder.config.layers
    ]
    assert full == [True, False, False, True, False]


@pytest.mark.parametrize("length", [2, 40])
@pytest.mark.parametrize(
    "settings",
    [
        {"norm_bias": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_activation": "silu", "norm_eps": 1e-2},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"] + ["sliding_attention"] * 2},
        {"local_attention": 7},  # an odd one: three to either side
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.5},
            }
        },
    ],
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any], length: int) -> None:
    assert_equal(save_modernbert(tmp_path, **settings), length)


@pytest.mark.parametrize("length", [2, 40])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "settings", [{}, {"classifier_bias": True, "norm_bias": True}, {"classifier_activation": "relu"}]
)
def test_sequence_classification(tmp_path: Path, settings: dict[str, Any], pooling: str, length: int) -> None:
    """A masked first column, too, which sees no token at all where the padding is wider than the window."""
    task = "ForSequenceClassification"
    assert_equal(save_modernbert(tmp_path, task, classifier_pooling=pooling, **settings), length, task)


@pytest.mark.parametrize("settings", [{}, {"classifier_bias": True, "norm_bias": True}])
def test_token_classification(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_equal(save_modernbert(tmp_path, "ForTokenClassification", **settings), 40, "ForTokenClassification")


def test_labels_have_their_names(tmp_path: Path) -> None:
    head = load_checkpoint(save_modernbert(tmp_path, "ForTokenClassification")).encoder.config.head
    assert getattr(head, "names", None) == ("red", "green", "blue")


def test_the_encoder_of_a_language_model(tmp_path: Path) -> None:
    folder = save_modernbert(tmp_path, "ForMaskedLM", classifier_bias=True)
    ids, mask = torch.arange(40)[None], torch.ones(1, 40, dtype=torch.long)
    ours = ours_of(load_checkpoint(folder).encoder, "last_hidden_state", ids, mask)
    assert error(ours, ask(folder, "ModernBertModel", input_ids=ids)) < BUDGET


def test_pooled_by_sentence_transformers(plain: Path, tmp_path: Path) -> None:
    folder = add_pooling(edited(plain, tmp_path / "copy"), "mean", unit_length=False)
    mask = padded(40)
    ids = random_ids(SIZES["vocab_size"], mask)
    hidden = ask(plain, "ModernBertModel", input_ids=ids, attention_mask=mask)
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    assert error(ours_of(load_checkpoint(folder).encoder, "sentence_embedding", ids, mask), mean) < BUDGET


# Folders as they were published before transformers 5


def test_an_earlier_config(plain: Path, tmp_path: Path) -> None:
    folder = edited(
        plain,
        tmp_path / "earlier",
        "layer_types",
        "rope_parameters",
        global_attn_every_n_layers=2,
        global_rope_theta=700.0,
        local_rope_theta=20.0,
        layer_norm_eps=1e-5,
        position_embedding_type="absolute",
        reference_compile=None,
        repad_logits_with_grad=False,
        torch_dtype="float32",
        transformers_version="4.48.0",
    )
    assert_equal(folder, 40)
    bases = [getattr(layer.attention, "rotary_base", None) for layer in load_checkpoint(folder).encoder.config.layers]
    assert bases == [700.0, 20.0, 700.0, 20.0, 700.0]


def test_an_earlier_config_without_bases(plain: Path, tmp_path: Path) -> None:
    assert_equal(edited(plain, tmp_path / "earlier", "layer_types", "rope_parameters"), 40)


def test_one_kind_of_layer_without_parameters(plain: Path, tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
    assert_equal(edited(plain, tmp_path / "copy", rope_parameters=rope, local_rope_theta=55.0), 40)


def test_weights_with_and_without_the_prefix(plain: Path, tmp_path: Path) -> None:
    prefixed = renamed(plain, tmp_path / "copy", {"^": "model."})
    ids, mask = torch.arange(40)[None], torch.ones(1, 40, dtype=torch.long)
    ours, theirs = (
        ours_of(load_checkpoint(each).encoder, "last_hidden_state", ids, mask) for each in (prefixed, plain)
    )
    assert torch.equal(ours, theirs)


# What is not computed is refused by name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}}, "yarn"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "factor": 2.0}}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters"),
        ({"rope_parameters": None, "local_rope_theta": None}, "sliding_attention is None"),
        ({"layer_types": ["full_attention"] * 4 + ["chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"local_attention": -1}, "local_attention"),
        ({"norm_bias": "yes"}, "norm_bias"),
        ({"hidden_activation": "mish"}, "mish"),
        ({"head_dim": 8}, "head_dim"),
        ({"is_decoder": True}, "is_decoder"),
        ({"architectures": ["ModernBertForQuestionAnswering"]}, "ModernBertForQuestionAnswering"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(plain, tmp_path / "copy", **settings))


def test_an_unknown_pooling_of_the_classifier_is_refused(tmp_path: Path) -> None:
    folder = save_modernbert(tmp_path / "a", "ForSequenceClassification")
    with pytest.raises(CheckpointError, match="classifier_pooling='max'"):
        load_checkpoint(edited(folder, tmp_path / "b", classifier_pooling="max"))


# Controls: each of these faults would be seen


def difference(folder: Path, changed: Encoder) -> float:
    ids, mask = random_ids(SIZES["vocab_size"], torch.ones(2, 40)), torch.ones(2, 40, dtype=torch.long)
    right = ours_of(load_checkpoint(folder).encoder, "last_hidden_state", ids, mask)
    return error(ours_of(changed, "last_hidden_state", ids, mask), right)


@pytest.mark.parametrize(
    "settings",
    [
        {"local_attention": 2 * RADIUS + 2},
        {"local_attention": 2 * RADIUS - 2},
        {"layer_types": ["full_attention"] * 5},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 160_000.0}}},
        {"norm_eps": 1e-2},
    ],
)
def test_a_wrong_setting_would_be_seen(plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert difference(plain, load_checkpoint(edited(plain, tmp_path / "copy", **settings)).encoder) > VISIBLE


def test_a_gate_in_the_wrong_half_would_be_seen(plain: Path) -> None:
    encoder: Any = load_checkpoint(plain).encoder
    feed_forward = encoder.blocks[2].feed_forward
    feed_forward.up, feed_forward.gate = feed_forward.gate, feed_forward.up
    assert difference(plain, encoder) > VISIBLE


def test_a_norm_before_the_first_layer_would_be_seen(plain: Path) -> None:
    encoder: Any = load_checkpoint(plain).encoder
    encoder.blocks[0].attention_norm = nn.LayerNorm(SIZES["hidden_size"])
    assert difference(plain, encoder) > VISIBLE


def test_windows_of_half_the_setting(plain: Path) -> None:
    attention = load_checkpoint(plain).encoder.config.layers[1].attention
    assert isinstance(attention, AttentionConfig)
    assert attention.pattern == Window(RADIUS)
