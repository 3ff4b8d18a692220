"""What is said of a folder that has nothing to serve."""

from pathlib import Path

import pytest

from heed.server.repository.folders import why_nothing_is_there


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "model.safetensors"], "{} is a checkpoint, not yet a bundle: `heed export {} BUNDLE`"),
        (["modules.json"], "{} is a checkpoint"),
        (["1/bundle.json", "2/bundle.json"], "{} has the versions of one model; serve one, `heed serve {}/2`"),
        (["a/bundle.json", "b/bundle.json"], "{} has bundles that are no versions: a, b; serve one, `heed serve {}/a`"),
        (["models/a/1/bundle.json"], "{} holds a repository: `heed serve {}/models`"),
        (["README.md"], "{} has no bundle.json; `heed export SOURCE BUNDLE` makes a bundle"),
    ],
)
def test_a_folder_is_told_as_what_it_is(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert why_nothing_is_there(tmp_path).startswith(said.replace("{}", str(tmp_path)))


def test_what_is_not_there_and_what_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file is a file; a bundle is a folder with a bundle.json" in why_nothing_is_there(tmp_path / "file")
    assert "nothing does not exist; `heed export SOURCE" in why_nothing_is_there(tmp_path / "nothing")
