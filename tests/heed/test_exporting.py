import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heed.exporting import ExportError, own_model
from heed.model import Checkpoint, Encoder

MODULE = """
from pathlib import Path
from heed.model import Checkpoint, Encoder
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, VectorsConfig

CONFIG = EncoderConfig(VectorsConfig(4), 4, (LayerConfig(AttentionConfig(2), FeedForwardConfig(4)),), 8)
number = 3

def encoder():
    return Encoder(CONFIG)

def with_tokenizer():
    return Checkpoint(Encoder(CONFIG), tokenizer=Path("tokenizer.json"))

def nothing():
    return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_module_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_module_of_a_test"
    sys.modules.pop("own_module_of_a_test", None)


def test_a_function_may_return_an_encoder(module: str) -> None:
    made = own_model(f"{module}:encoder")
    assert isinstance(made.encoder, Encoder)
    assert made.tokenizer is None
    assert not made.encoder.training


def test_a_function_may_return_a_checkpoint_with_a_tokenizer(module: str) -> None:
    made = own_model(f"{module}:with_tokenizer")
    assert isinstance(made, Checkpoint)
    assert made.tokenizer == Path("tokenizer.json")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module_anywhere:encoder", "no_such_module_anywhere cannot be imported"),
        ("own_module_of_a_test:missing", "own_module_of_a_test has no function 'missing'"),
        ("own_module_of_a_test:number", "own_module_of_a_test has no function 'number'"),
        ("own_module_of_a_test:nothing", "own_module_of_a_test:nothing made NoneType, expected a heed.model.Encoder"),
    ],
)
def test_what_is_no_model_is_refused(module: str, reference: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        own_model(reference)


def test_the_path_of_modules_is_left_as_it_was(module: str) -> None:
    before = list(sys.path)
    own_model(f"{module}:encoder")
    assert sys.path == before
