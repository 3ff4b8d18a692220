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

def load(path):
    return path.read_bytes()

def unlucky():
    return load(Path("no_weights"))
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


def test_a_function_that_raises_is_told_by_the_lines_that_led_there(module: str) -> None:
    """An OSError too, which the command would take for one of its own."""
    with pytest.raises(ExportError) as caught:
        own_model(f"{module}:unlucky")
    first, *frames = str(caught.value).splitlines()
    assert first == (f"{module}:unlucky raised FileNotFoundError: [Errno 2] No such file or directory: 'no_weights'")
    assert [line.strip() for line in frames if "own_module_of_a_test.py" in line] == [
        f'File "{Path.cwd()}/own_module_of_a_test.py", line 22, in unlucky',
        f'File "{Path.cwd()}/own_module_of_a_test.py", line 19, in load',
    ]
    assert "exporting.py" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_library", "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def (", r"cannot be imported: File \".*own_module_of_a_test.py\", line 1"),
    ],
)
def test_a_module_that_raises_is_told_by_its_own_lines(module: str, tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "own_module_of_a_test.py").write_text(code)
    with pytest.raises(ExportError, match=message) as caught:
        own_model(f"{module}:encoder")
    assert "own_module_of_a_test.py" in str(caught.value)
    assert "importlib" not in str(caught.value)


def test_the_path_of_modules_is_left_as_it_was(module: str) -> None:
    before = list(sys.path)
    own_model(f"{module}:encoder")
    assert sys.path == before
