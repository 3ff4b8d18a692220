"""ModernBERT, Longformer, Big Bird and ViT, exported and served: over gRPC, in both forms of attention, they answer as
`transformers` does in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from heed.bundle import read_manifest
from heed.bundle.sequence_packing import Arrays
from heed.client import Client
from tests.bundles import export_bundle
from tests.contract.support import BUDGET
from tests.long_families import DENSE_COLUMNS, VOCABULARY, WIDTH, export_long
from tests.oracle import ask, ask_row_by_row, padded, random_ids, save
from tests.support import run_server

LENGTHS = (1, DENSE_COLUMNS, DENSE_COLUMNS + 1, 120)


@contextmanager
def served(source: Path, bundle: Path) -> Iterator[Client]:
    with run_server(bundle, source.parent / "log") as server, Client(server.address, "bundle") as client:
        yield client


def rows(length: int, types: int = 0) -> dict[str, torch.Tensor]:
    """Without padding, padded right, left and in holes."""
    mask = padded(length)
    inputs = {"input_ids": random_ids(VOCABULARY, mask), "attention_mask": mask}
    return inputs | ({"token_type_ids": random_ids(types, mask)} if types else {})


def arrays(inputs: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def assert_close(answer: np.ndarray, reference: np.ndarray) -> None:
    assert answer.dtype == np.float32
    assert answer.shape == reference.shape
    budget = BUDGET * max(1.0, float(np.abs(reference).max()))
    assert float(np.abs(answer - reference).max()) <= budget


def assert_bits_do_not_depend_on_neighbours(client: Client, inputs: Arrays, output: str) -> None:
    together = client.infer(inputs, [output])[output]
    for row in range(len(together)):
        alone = client.infer({name: array[row : row + 1] for name, array in inputs.items()}, [output])[output]
        assert np.array_equal(alone[0], together[row])


def test_modernbert(tmp_path: Path) -> None:
    source, bundle = export_long("modernbert", tmp_path)
    with served(source, bundle) as client:
        for length in LENGTHS:
            inputs = rows(length)
            reference = ask(source, "ModernBertForTokenClassification", **inputs).numpy()
            real = inputs["attention_mask"].bool().numpy()
            answer = client.infer(arrays(inputs))
            assert_close(answer["logits"], np.where(real[:, :, None], reference, 0.0))
            names = np.array(["red", "green", "blue"])[reference.argmax(-1)]
            assert np.array_equal(answer["labels"], np.where(real, names, ""))
            assert_bits_do_not_depend_on_neighbours(client, arrays(inputs), "logits")


def test_longformer(tmp_path: Path) -> None:
    """With the global tokens of a request, and with those of the classifier, `[CLS]`, where a request names none."""
    source, bundle = export_long("longformer", tmp_path)
    with served(source, bundle) as client:
        for length in LENGTHS:
            inputs = rows(length, types=2)
            some = {"global_attention_mask": (random_ids(9, inputs["attention_mask"]) == 0).long()}
            none = {"global_attention_mask": torch.zeros_like(inputs["attention_mask"])}
            for request in (inputs, inputs | some, inputs | none):
                reference = ask(source, "LongformerForSequenceClassification", **request).numpy()
                answer = client.infer(arrays(request))
                assert_close(answer["logits"], reference)
                assert list(answer["labels"]) == [("red", "green", "blue")[best] for best in reference.argmax(-1)]
            assert_bits_do_not_depend_on_neighbours(client, arrays(inputs | some), "last_hidden_state")


def test_big_bird(tmp_path: Path) -> None:
    """Row by row: the padding of a batch does not matter here. Rows up to (5 + 2) blocks are attended to in full."""
    source, bundle = export_long("big-bird", tmp_path)
    with served(source, bundle) as client:
        assert [graph.longest for graph in read_manifest(bundle).graphs][:2] == [35, None]
        for length in (1, 35, 36, 41, 120):
            inputs = rows(length, types=2)
            reference = torch.zeros(*inputs["input_ids"].shape, WIDTH, dtype=torch.float64)
            references = ask_row_by_row(source, "BigBirdModel", **inputs)
            for row, mask in enumerate(inputs["attention_mask"].bool()):
                columns = mask.nonzero()[:, 0]
                reference[row, mask] = references[row][columns - columns[0]]
            answer = client.infer(arrays(inputs), ["last_hidden_state"])["last_hidden_state"]
            assert_close(answer, reference.numpy())
            assert_bits_do_not_depend_on_neighbours(client, arrays(inputs), "last_hidden_state")


def test_vit(tmp_path: Path) -> None:
    pixels = torch.randn(5, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    images = {"image_size": [6, 9], "patch_size": 3, "num_channels": 2}
    source = save(tmp_path / "source", "ViTForImageClassification", "ViTConfig", **(sizes | images))
    with served(source, export_bundle(source, tmp_path / "bundle")) as client:
        reference = ask(source, "ViTForImageClassification", pixel_values=pixels.double()).numpy()
        inputs = {"pixel_values": pixels.numpy()}
        answer = client.infer(inputs)
        assert_close(answer["logits"], reference)
        assert list(answer["labels"]) == [("red", "green", "blue")[best] for best in reference.argmax(-1)]
        hidden = ask(source, "ViTModel", pixel_values=pixels.double()).numpy()
        assert_close(client.infer(inputs, ["last_hidden_state"])["last_hidden_state"], hidden)
        assert_bits_do_not_depend_on_neighbours(client, inputs, "logits")
