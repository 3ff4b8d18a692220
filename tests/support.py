"""What several tests need: small real checkpoints, bundles made of them, and servers that are always stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from heed.bundle import contract
from heed.bundle.contract import Report
from heed.export.passes.pipeline import Pass
from heed.server.engine.model import Model

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "saw",
    "i",
    "a",
    "fox",
    "dog",
    "quick",
    "##s",
    "##ed",
    ".",
]
LETTERS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
VOCABULARY = WORDS + [letter for letter in LETTERS if letter not in WORDS] + [f"##{letter}" for letter in LETTERS]


def make_noisy(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights at their initial scale prove little: noise of 0.15 makes every part matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer as BERT has it, over the words and letters above."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def save_bert(folder: Path, *, text: bool = True, seed: int = 0, **overrides: Any) -> Path:
    """A small random BERT, saved by `transformers`."""
    from transformers import BertConfig, BertModel

    settings: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
    }
    network = BertModel(BertConfig(**(settings | overrides)))
    make_noisy(network, seed)
    network.save_pretrained(folder)
    if text:
        save_tokenizer(folder)
    return folder


def save_roberta(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A small random RoBERTa without a tokenizer, saved by `transformers`."""
    from transformers import RobertaConfig, RobertaModel

    settings: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 42,
        "pad_token_id": 1,
    }
    network = RobertaModel(RobertaConfig(**(settings | overrides)))
    make_noisy(network, seed)
    network.save_pretrained(folder)
    return folder


def add_pooling(folder: Path, mode: str, *, unit_length: bool = True) -> Path:
    """Makes a checkpoint folder a sentence-transformers folder."""
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * unit_length
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{key}": name == mode for name, key in keys.items()}
    config = {"word_embedding_dimension": width} | flags
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def rewrite_graph(path: Path, *passes: Pass) -> None:
    """Runs passes over a graph in its file; its weights stay where they are."""
    model = onnx.load(path, load_external_data=False)
    for run in passes:
        model = run(model)
    onnx.save(model, path)


def allow_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets that nothing computed in float32 stays within."""
    monkeypatch.setitem(contract.BUDGETS, ("fp32", contract.CPU), contract.Budgets.uniform(1e-12))
    monkeypatch.setattr(contract, "FLOAT32_FACTOR", 0)


def prove(folder: Path) -> Report:
    return Report(list(Model(folder, "cpu").check_contract(everything=True)))


@dataclass(frozen=True)
class Keys:
    """The files of a key pair."""

    private: Path
    public: Path


def make_keys(folder: Path, name: str = "key", kind: type[Any] = Ed25519PrivateKey) -> Keys:
    """A new key pair, as openssl writes it."""
    keys = Keys(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    key = kind.generate()
    keys.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    keys.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return keys


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_serving(address: str) -> bool:
    """What the health service says, without waiting for a server that is not there yet."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    address: str
    process: subprocess.Popen[str]
    log: Path  # stdout and stderr together


def start_server(bundle: Path, log: Path, *flags: str, env: dict[str, str] | None = None) -> Running:
    """Starts `heed serve` and does not wait for it. Its metrics are on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "heed", "serve", str(bundle), "--port", str(port), *flags]
    variables = os.environ | {"HEED_METRICS_PORT": "0"} | (env or {})
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, env=variables)
    return Running(f"127.0.0.1:{port}", process, log)


def wait_until_serving(server: Running, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_serving(server.address):
        if server.process.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"the server is not ready:\n{server.log.read_text()}")
        time.sleep(0.05)


def stop(server: Running, seconds: float = 60) -> int:
    """SIGTERM, and the exit code."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(seconds)


@contextmanager
def run_server(bundle: Path, log: Path, *flags: str) -> Iterator[Running]:
    """A server that is ready, and that is always stopped; it must exit with 0."""
    server = start_server(bundle, log, "--linger-seconds", "0", *flags)
    try:
        wait_until_serving(server)
        yield server
        assert stop(server) == 0, log.read_text()
    finally:
        server.process.kill()
        server.process.wait()
