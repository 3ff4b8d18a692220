"""Big Bird against an independent implementation: `transformers`, in float64, row by row.

A row alone, without the padding around it, is what the family computes: the padding of a batch would move its blocks,
and one short batch makes an object attend in full for good.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heed.model import CheckpointError, Encoder, load_checkpoint
from heed.model.attention_plan import plan_for_padded_rows
from heed.model.big_bird_attention import BigBirdAttention, BigBirdConfig
from heed.model.config import EncoderConfig
from heed.model.layout import Padded
from tests.oracle import BUDGET, VISIBLE, ask, ask_row_by_row, edited, error, padded, random_ids, renamed, save
from tests.support import make_noisy

BLOCK, RANDOM = 4, 1
FULL = (5 + 2 * RANDOM) * BLOCK  # columns of the longest row that is attended to in full
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 120,
    "block_size": BLOCK,
    "num_random_blocks": RANDOM,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 3,
}
SHORT = [1, 2, BLOCK, BLOCK + 1, FULL - 1, FULL]
LONG = [FULL + 1, FULL + BLOCK - 1, FULL + BLOCK, FULL + BLOCK + 1, 2 * FULL - 1, 2 * FULL, 101, 120]


def save_big_bird(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"BigBird{task}", "BigBirdConfig", **(SIZES | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_big_bird(tmp_path_factory.mktemp("big-bird"))


@pytest.fixture(params=["dense", "in blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All pairs, or blocks at every length."""
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 512 if request.param == "dense" else 0)
    return str(request.param)


def barely_padded(length: int) -> Tensor:
    """Masks of rows that stay long: without padding, padded left, right, in holes: `[5, L]`."""
    mask = torch.ones(5, length, dtype=torch.long)
    mask[1, :3] = 0
    mask[2, -3:] = 0
    mask[3, 1 : 2 * BLOCK : 2] = 0
    mask[3, 1 - 2 * BLOCK : -1 : 2] = 0
    mask[4, length // 2 : length // 2 + 2 * BLOCK] = 0  # a whole block at least
    return mask


def inputs_of(mask: Tensor) -> dict[str, Tensor]:
    return {
        "input_ids": random_ids(SIZES["vocab_size"], mask),
        "token_type_ids": random_ids(2, mask),
        "attention_mask": mask,
    }


def answer(encoder: Encoder, output: str, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        tensor: Tensor = encoder.double()(**inputs)[output]
    return tensor


def assert_equal(folder: Path, inputs: dict[str, Tensor], task: str = "Model") -> None:
    """Of tokens at real positions, and zeros elsewhere."""
    ours = answer(load_checkpoint(folder).encoder, "last_hidden_state" if task == "Model" else "logits", inputs)
    theirs = ask_row_by_row(folder, f"BigBird{task}", **inputs)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        if task == "ForSequenceClassification":
            assert error(ours[row], theirs[row]) < BUDGET
            continue
        columns = mask.nonzero()[:, 0]
        assert error(ours[row, mask], theirs[row][columns - columns[0]]) < BUDGET
        assert not ours[row, ~mask].any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", SHORT + LONG)
def test_hidden_states(plain: Path, length: int) -> None:
    """Short and long rows in one batch: stripped, some of the long ones are short."""
    assert_equal(plain, inputs_of(padded(length)))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [length for length in LONG if length > FULL + 3])
def test_hidden_states_of_long_rows(plain: Path, length: int) -> None:
    assert_equal(plain, inputs_of(barely_padded(length)))


def test_long_rows_are_computed_in_blocks(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is about blocks, and short rows among long ones are not."""
    encoder: Any = load_checkpoint(plain).encoder
    attention = encoder.blocks[0].attention
    assert isinstance(attention, BigBirdAttention)
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 0)
    monkeypatch.setattr(BigBirdAttention, "_weights_of_all_pairs", None)
    answer(encoder, "last_hidden_state", inputs_of(barely_padded(2 * FULL)))
    with pytest.raises(TypeError, match="NoneType"):
        answer(encoder, "last_hidden_state", inputs_of(padded(2 * FULL)))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("block", "random"), [(1, 1), (2, 3), (3, 2), (16, 1)])
def test_other_blocks(tmp_path: Path, block: int, random: int) -> None:
    folder = save_big_bird(
        tmp_path, block_size=block, num_random_blocks=random, max_position_embeddings=240, num_hidden_layers=2
    )
    full = (5 + 2 * random) * block
    for length in (full, full + 1, full + 5 * block, min(240, 3 * full)):
        assert_equal(folder, inputs_of(padded(length)))


@pytest.mark.parametrize("length", [1000, 1024])
def test_the_lengths_with_plans_of_their_own(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`transformers` draws the random blocks of 1024, 3072 and 4096 columns elsewhere."""
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 0)
    folder = save_big_bird(
        tmp_path, block_size=16, num_random_blocks=3, max_position_embeddings=1024, num_hidden_layers=1
    )
    mask = torch.ones(1, length, dtype=torch.long)
    mask[0, 100:120] = 0
    assert_equal(folder, inputs_of(mask))


def test_padding_around_a_row_does_not_matter(plain: Path) -> None:
    """On either side, and however much, to the bit where it stays in the same form."""
    encoder = load_checkpoint(plain).encoder
    alone = inputs_of(torch.ones(1, 40, dtype=torch.long))
    right = answer(encoder, "last_hidden_state", alone)
    for before, after in ((0, 1), (5, 0), (7, 9), (40, 40)):
        around = {name: torch.nn.functional.pad(tensor, (before, after)) for name, tensor in alone.items()}
        ours = answer(encoder, "last_hidden_state", around)[:, before : before + 40]
        assert error(ours, right) < 1e-13


@pytest.mark.parametrize("settings", [{}, {"hidden_act": "relu"}])
@pytest.mark.parametrize("length", [9, FULL + 1, 60])
def test_sequence_classification(tmp_path: Path, settings: dict[str, Any], length: int) -> None:
    folder = save_big_bird(tmp_path, "ForSequenceClassification", **settings)
    assert_equal(folder, inputs_of(padded(length)), "ForSequenceClassification")


@pytest.mark.parametrize("length", [9, FULL + 1, 60])
def test_token_classification(tmp_path: Path, length: int) -> None:
    folder = save_big_bird(tmp_path, "ForTokenClassification")
    assert_equal(folder, inputs_of(padded(length)), "ForTokenClassification")


@pytest.mark.parametrize("length", [9, 60])
@pytest.mark.parametrize(
    "settings", [{"use_bias": False}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-2}, {"type_vocab_size": 3}]
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any], length: int) -> None:
    assert_equal(save_big_bird(tmp_path, **settings), inputs_of(padded(length)))


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForPreTraining"])
def test_the_encoder_of_a_language_model(tmp_path: Path, task: str) -> None:
    folder = save_big_bird(tmp_path, task)
    inputs = inputs_of(torch.ones(2, 60, dtype=torch.long))
    ours = answer(load_checkpoint(folder).encoder, "last_hidden_state", inputs)
    assert error(ours, ask(folder, "BigBirdModel", **inputs)) < BUDGET


# attention_type="original_full"


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("length", [1, 9, 60, 120])
def test_full_attention_is_that_of_bert(tmp_path: Path, length: int, use_bias: bool) -> None:
    """Positions by column, whatever the padding."""
    folder = save_big_bird(tmp_path, attention_type="original_full", use_bias=use_bias)
    inputs = inputs_of(padded(length))
    real = inputs["attention_mask"].bool()
    ours = answer(load_checkpoint(folder).encoder, "last_hidden_state", inputs)
    assert error(ours[real], ask(folder, "BigBirdModel", **inputs)[real]) < BUDGET


# The longest row


@pytest.mark.parametrize(("positions", "longest"), [(120, 120), (121, 120), (123, 120), (29, 28), (27, 27), (28, 28)])
def test_a_row_filled_up_to_whole_blocks_has_positions_for_all(tmp_path: Path, positions: int, longest: int) -> None:
    folder = save_big_bird(tmp_path, max_position_embeddings=positions)
    assert load_checkpoint(folder).encoder.config.max_length == longest
    inputs = inputs_of(torch.ones(1, longest, dtype=torch.long))
    assert_equal(folder, inputs)
    with pytest.raises((RuntimeError, IndexError)):
        ask(folder, "BigBirdModel", input_ids=torch.ones(1, longest + 1, dtype=torch.long))


def test_short_rows_need_all_pairs() -> None:
    assert BigBirdConfig(heads=3, block=64, random=3).dense_up_to == 11 * 64


# Earlier folders


def test_an_earlier_folder(plain: Path, tmp_path: Path) -> None:
    folder = edited(
        renamed(plain, tmp_path / "prefixed", {"^": "bert."}),
        tmp_path / "earlier",
        architectures=["BigBirdForPreTraining"],
        position_embedding_type="absolute",
        gradient_checkpointing=False,
        rescale_embeddings=False,
        transformers_version="4.4.0.dev0",
    )
    inputs = inputs_of(padded(60))
    ours, theirs = (answer(load_checkpoint(each).encoder, "last_hidden_state", inputs) for each in (folder, plain))
    assert torch.equal(ours, theirs)


# What is not computed is refused by name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"attention_type": "sparse"}, "attention_type='sparse'"),
        ({"attention_type": None}, "attention_type=None"),
        ({"block_size": 0}, "block_size=0"),
        ({"num_random_blocks": 0}, "num_random_blocks=0"),  # transformers cannot compute it
        ({"rescale_embeddings": True}, "rescale_embeddings=True"),
        ({"use_bias": 1}, "use_bias=1"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"architectures": ["BigBirdForQuestionAnswering"]}, "BigBirdForQuestionAnswering"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(plain, tmp_path / "copy", **settings))


@pytest.mark.parametrize(("field", "value"), [("heads", 0), ("block", 0), ("random", -1), ("block", 1.5)])
def test_a_config_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        replace(BigBirdConfig(heads=3, block=4, random=1), **{field: value})


# The weights between tokens


@pytest.mark.parametrize("length", [9, 60])
def test_the_weights_are_what_the_values_are_taken_with(length: int) -> None:
    attention = BigBirdConfig(heads=2, block=4, random=1).build(8, 120).double()
    make_noisy(attention)
    x = torch.randn(6, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layout = Padded(padded(length).bool(), torch.arange(length))
    with torch.no_grad():
        weights = attention.weights(x, plan_for_padded_rows(layout))
        value = layout.to_heads(attention.value(x), 2)
        assert (
            error(attention.out(layout.from_heads(weights @ value)), attention(x, plan_for_padded_rows(layout)))
            < BUDGET
        )
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_a_bias_is_added_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = BigBirdConfig(heads=2, block=4, random=1).build(8, 120).double()
    make_noisy(attention)
    x = torch.randn(5, 60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layout = Padded(barely_padded(60).bool(), torch.arange(60))

    def bias(pairs: Any) -> Tensor:
        near: Tensor = torch.cos(pairs.i.double() - 0.3 * pairs.j.double())
        return near.expand(-1, 2, *[-1] * (near.dim() - 2))

    with torch.no_grad():
        dense = attention(x, plan_for_padded_rows(layout), bias)
        monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 0)
        real = layout.real_BL
        assert error(attention(x, plan_for_padded_rows(layout), bias)[real], dense[real]) < BUDGET
        assert error(attention(x, plan_for_padded_rows(layout))[real], dense[real]) > VISIBLE


# Controls: each of these faults would be seen


def with_attention(config: EncoderConfig, **changes: int) -> EncoderConfig:
    layers = [replace(layer, attention=replace(layer.attention, **changes)) for layer in config.layers]  # type: ignore[type-var]
    return replace(config, layers=tuple(layers))


def difference(plain: Path, config: EncoderConfig) -> float:
    encoder = load_checkpoint(plain).encoder
    changed = Encoder(config)
    changed.load_state_dict(encoder.state_dict())
    inputs = inputs_of(padded(60))
    right = answer(encoder, "last_hidden_state", inputs)
    return error(answer(changed, "last_hidden_state", inputs), right)


@pytest.mark.parametrize("changes", [{"random": 0}, {"random": 2}, {"block": 3}, {"block": 5}])
def test_other_blocks_or_multiples_would_be_seen(plain: Path, changes: dict[str, int]) -> None:
    assert difference(plain, with_attention(load_checkpoint(plain).encoder.config, **changes)) > VISIBLE


def test_positions_by_column_would_be_seen(plain: Path) -> None:
    config = load_checkpoint(plain).encoder.config
    assert difference(plain, replace(config, position_rule=replace(config.position_rule, kind="column"))) > VISIBLE


def test_full_attention_would_be_seen(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_checkpoint(plain).encoder.config
    inputs = inputs_of(padded(60))
    right = answer(load_checkpoint(plain).encoder, "last_hidden_state", inputs)
    monkeypatch.setattr(BigBirdConfig, "full_blocks", 100)
    assert config.layers[0].attention.dense_up_to == 100 * BLOCK
    assert error(answer(load_checkpoint(plain).encoder, "last_hidden_state", inputs), right) > VISIBLE
