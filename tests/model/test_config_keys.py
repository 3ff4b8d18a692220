"""Which keys of a config.json can matter, and what becomes of the others."""

from importlib.metadata import version
from typing import Any

import pytest

from heed.model.families import FAMILIES
from heed.model.families.transformers_names import CONFIG_KEYS, VERSION
from tests import transformers_names

BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}
PLAIN = FAMILIES["bert"].read(BERT)
CODE = {"auto_map": {"AutoModel": "modeling.MyModel"}}


def refusal(**keys: object) -> str:
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        FAMILIES["bert"].read(BERT | keys)
    return str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"emb_size": 312, "my_note": "x", "custom_metrics": {"f1": 0.9}, "is_gpu": True}, id="nobody's"),
        pytest.param(
            {"export_model_type": "transformer", "language": "en", "tasks": [{"name": "nli"}]}, id="trainers'"
        ),
        pytest.param({"transformers.js_config": {"dtype": "fp32"}}, id="of JavaScript"),
        pytest.param(
            {"adapters": {"adapters": {}, "config_map": {}, "fusions": {}}, "cell": {}}, id="empty, deep down"
        ),
        pytest.param({"rope_theta": None, "quantization_config": None, "window_size": []}, id="empty, though known"),
        pytest.param({"attn_pdrop": 0.1, "attention_dropout": 0.2, "drop_path_rate": 0.1}, id="dropout"),
        pytest.param({"embedding_size": 32, "d_model": 32, "n_layers": 2}, id="sizes of weights"),
        pytest.param({"output_attentions": True, "output_hidden_states": True, "return_dict": False}, id="outputs"),
        pytest.param({"num_beams": 4, "temperature": 0.5}, id="generation"),
        pytest.param({"_commit_hash": "abc", "unsloth_version": "2026.1"}, id="bookkeeping"),
        pytest.param(CODE, id="code that adds no key"),
        pytest.param({"auto_map": {}, "my_note": "x"}, id="no code"),
    ],
)
def test_what_cannot_change_the_numbers_is_passed_over(keys: dict[str, object]) -> None:
    assert FAMILIES["bert"].read(BERT | keys) == PLAIN


def test_a_key_that_another_family_computes_by_is_refused_with_the_way_on() -> None:
    assert refusal(rope_theta=10_000) == (
        "config.json: rope_theta=10000 is not known to this version and might change the answers; "
        "if you know that it does not, go on with --ignore-key rope_theta"
    )


def test_all_that_is_wrong_with_a_config_is_told_at_once() -> None:
    message = refusal(is_decoder=True, rope_theta=1e4, quantization_config={"bits": 4}, position_embedding_type="alibi")
    assert "is_decoder=True is not supported, only False" in message
    assert "position_embedding_type='alibi' is not supported, only 'absolute'" in message
    assert "rope_theta=10000.0, quantization_config={'bits': 4} are not known to this version" in message
    assert message.endswith("--ignore-key rope_theta --ignore-key quantization_config")


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(quantization_config={"modules": ["layer"] * 1000})) < 400


def test_what_scales_at_inference_is_no_dropout() -> None:
    assert "token_dropout=True is not known" in refusal(token_dropout=True)


def test_what_code_that_came_with_the_folder_may_read_is_refused() -> None:
    message = refusal(alibi_starting_size=4096, **CODE)
    assert "alibi_starting_size=4096 is not known to this version, and may be read by the code that auto_map" in message
    assert "which is never run" in message
    assert "--ignore-key auto_map" in message
    assert "--ignore-key alibi_starting_size" in message


def test_an_architecture_of_nobody_is_the_encoder_unless_code_came_with_it() -> None:
    own = {"architectures": ["Contriever"]}
    assert FAMILIES["bert"].read(BERT | own) == PLAIN
    assert "architecture Contriever is not supported" in refusal(**own, **CODE)


def test_other_names_of_a_key_win_as_in_transformers() -> None:
    distilbert = {"activation": "gelu", "dim": 7, "hidden_dim": 48, "max_position_embeddings": 40, "n_heads": 2,
                  "n_layers": 1, "vocab_size": 100}  # fmt: skip
    read = FAMILIES["distilbert"].read(distilbert | {"hidden_size": 32, "num_attention_heads": 4})
    assert (read.width, len(read.layers)) == (32, 1)
    assert read == FAMILIES["distilbert"].read(distilbert | {"dim": 32, "n_heads": 4})


def test_the_names_are_those_of_the_installed_transformers() -> None:
    assert version("transformers") == VERSION, "run: python -m tests.transformers_names"
    assert {"hidden_size", "rope_theta", "quantization_config", "dim", "block_size"} <= CONFIG_KEYS
    assert not {"emb_size", "auto_map", "", "self", "kwargs"} & CONFIG_KEYS


@pytest.mark.long  # it imports every config class
def test_the_generated_names_are_current() -> None:
    assert transformers_names.generate() == transformers_names.FILE.read_text(), (
        "run: python -m tests.transformers_names"
    )
