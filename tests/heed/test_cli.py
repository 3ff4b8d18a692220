"""The commands: what they print, what they write, and how they exit."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from heed import exporting
from heed.bundle import read_manifest
from heed.bundle.contract import read_contract, write_contract
from heed.bundle.digests import REPORT, bundle_digest, check_digests, write_digests
from heed.bundle.manifest import Graph
from heed.bundle.signature import check_signature, read_private_key, sign
from heed.client import Client
from heed.export.graph_writer import WEIGHTS
from tests.client.echo import Echo, running
from tests.client.test_security import Authority, secured
from tests.heed.support import heed
from tests.support import Running, allow_no_error, free_port, make_keys

COMMANDS = ["export", "verify", "serve", "call", "attend", "bench"]


def inside(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def contents(folder: Path) -> dict[str, bytes]:
    """All that is digested: the report tells of measurements."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != REPORT}


OPTIONS = {
    "export": ["SOURCE", "OUT", "--name", "--force", "--sign", "--ignore-key"],
    "verify": ["BUNDLE", "--device", "--json"],
    "serve": [
        "BUNDLE", "--host", "--port", "--device", "--precision", "--attentions", "--threads", "--max-queue-tokens",
        "--max-message-mib", "--linger-seconds", "--grace-seconds", "--require-signature", "--metrics-port",
        "--recheck-seconds", "HEED_PORT", "HEED_THREADS",
    ],
    "call": ["HOST:PORT", "MODEL", "--text", "--pair", "--truncate", "--timeout", "--json"],
    "attend": ["host:port", "model", "text", "--pair", "--layer", "--head", "--out", "--json", "--timeout"],
    "bench": [
        "host:port", "model", "--workload", "--seconds", "--callers", "--load", "--output", "--timeout", "--json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_its_options(command: str) -> None:
    done = heed(command, "--help")
    assert done.code == 0
    for option in OPTIONS[command]:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.out, re.IGNORECASE), option


def test_the_help_names_the_commands() -> None:
    done = heed("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"│ {command} ", done.out), done.out


def test_help_breaks_lines_only_where_they_are_full() -> None:
    lines = [line.strip() for line in heed("export", "--help").out.splitlines()]
    assert any(line.startswith("The bundle is written beside OUT") and "on every case of" in line for line in lines)
    examples = heed("diff", "--help").out.splitlines()
    assert [line.split()[:2] for line in examples if line.startswith(" heed diff build")] == [["heed", "diff"]] * 3


def test_the_version_is_told() -> None:
    done = heed("--version")
    assert (done.code, done.out) == (0, f"heed {version('heed-serve')}\n")


# What a command runs in, in a process of its own.
WITHOUT_ONNXRUNTIME = "import sys; sys.modules['onnxruntime'] = None; from heed.__main__ import main; main()"


def without_onnxruntime(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_ONNXRUNTIME, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["serve", "verify", "inspect"])
def test_without_onnxruntime_it_is_told_how_to_install_it(command: str, tiny_bundle: Path) -> None:
    done = without_onnxruntime(command, tiny_bundle)
    assert done.returncode == 2
    assert done.stderr.startswith("error: onnxruntime is not installed; ")
    assert "pip install 'heed-serve[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_a_bundle_can_be_inspected_quickly(tiny_bundle: Path) -> None:
    assert without_onnxruntime("inspect", tiny_bundle, "--quick").returncode == 0


@pytest.mark.parametrize(("verbosity", "is_quiet"), [(None, True), ("INFO", False)])
def test_grpc_itself_is_quiet_unless_it_is_asked(tmp_path: Path, verbosity: str | None, is_quiet: bool) -> None:
    authority = Authority(tmp_path)
    with running(Echo(), credentials=secured(authority, "127.0.0.1")) as address:
        arguments = ["call", address, "tiny", "-t", "a", "--timeout", "2", "--tls"]
        env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        done = subprocess.run(
            [sys.executable, "-m", "heed", *arguments],
            env=env | ({"GRPC_VERBOSITY": verbosity} if verbosity else {}),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert ("ssl_transport_security" not in done.stderr) is is_quiet
    assert (len(done.stderr.splitlines()) == 1) is is_quiet


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-W", "error", "-m", "heed", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "export" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["nonsense"], ["export"], ["verify", "--nonsense", "x"], ["call", "a:1", "m"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert heed(*arguments).code == 2


# What is wrong with a checkpoint folder, how to make it so, and what the message says.
Edit = Callable[[Path], object]


def set_config(**changes: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def truncate_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def empty_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 0)


def header_of_nonsense(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[8:40] = bytes(range(32))
    (folder / "model.safetensors").write_bytes(content)


def header_beyond_the_file(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + content[8:])


def leave_only_weights_of_jax(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "flax_model.msgpack")


def put_nan_in_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text)


def break_off_the_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 1000)


def sum_the_tokens(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "sum"}')


BAD_SOURCES: list[tuple[str, Edit, list[str]]] = [
    ("no_config", remove("config.json"), ["config.json is missing"]),
    ("config_no_json", write("config.json", "{"), ["config.json is not valid JSON"]),
    ("config_no_object", write("config.json", "[]"), ["config.json holds list"]),
    ("no_weights", remove("model.safetensors"), ["model.safetensors is missing"]),
    ("truncated_weights", truncate_weights, ["model.safetensors is damaged or truncated"]),
    ("empty_weights", empty_weights, ["model.safetensors is damaged or truncated"]),
    ("weights_of_jax", leave_only_weights_of_jax, ["for Flax only (flax_model.msgpack)", "hf download NAME"]),
    ("nan_in_the_weights", put_nan_in_a_weight, ["encoder.layer.1.output.dense.bias holds NaN"]),
    ("other_family", set_config(model_type="gpt2"), ["model_type='gpt2' is not supported", "bert"]),
    ("no_family", set_config(model_type=None, architectures=None), ["model_type=None is not supported"]),
    ("odd_family", set_config(model_type=["bert"]), ["model_type=['bert'] is not supported"]),
    ("width", set_config(hidden_size=64), ["has shape [32]", "config.json says [64]"]),
    ("width_and_heads", set_config(num_attention_heads=5), ["width 32 does not divide into 5 heads"]),
    ("one_layer_more", set_config(num_hidden_layers=3), ["weights lack blocks.2."]),
    ("one_layer_fewer", set_config(num_hidden_layers=1), ["encoder.layer.1.", "no place in the model"]),
    ("vocabulary", set_config(vocab_size=101), ["word_embeddings.weight has shape [100, 32]", "[101, 32]"]),
    ("a_vocabulary_beyond_memory", set_config(vocab_size=10**12), ["vocab_size=1000000000000", "could bear out"]),
    ("a_width_beyond_memory", set_config(hidden_size=10**12), ["hidden_size=1000000000000", "could bear out"]),
    ("more_layers_than_memory", set_config(num_hidden_layers=10**12), ["num_hidden_layers=1000000000000"]),
    ("more_layers_than_weights", set_config(num_hidden_layers=10**5), ["says 100000 layers", "weights"]),
    ("more_heads_than_memory", set_config(num_attention_heads=10**30), ["num_attention_heads=1000"]),
    ("more_labels_than_memory", set_config(num_labels=10**12), ["num_labels=1000000000000"]),
    ("negative_width", set_config(hidden_size=-1), ["hidden_size=-1 is not a positive integer"]),
    ("width_of_zero", set_config(hidden_size=0), ["hidden_size=0 is not a positive integer"]),
    ("width_that_is_no_integer", set_config(hidden_size=32.5), ["hidden_size=32.5 is not a positive integer"]),
    ("width_in_words", set_config(hidden_size="32"), ["hidden_size='32' is not a positive integer"]),
    ("infinite_epsilon", set_config(layer_norm_eps=float("inf")), ["norm_epsilon must lie between 0 and 1"]),
    ("header_of_nonsense", header_of_nonsense, ["model.safetensors is damaged or truncated"]),
    ("header_beyond_the_file", header_beyond_the_file, ["model.safetensors is damaged or truncated"]),
    ("unknown_key", set_config(rope_theta=10_000), ["rope_theta=10000 is not known", "--ignore-key rope_theta"]),
    ("unknown_activation", set_config(hidden_act="mish"), ["hidden_act='mish' is none of", "gelu"]),
    ("relative_positions", set_config(position_embedding_type="relative_key"), ["position_embedding_type"]),
    ("decoder", set_config(is_decoder=True), ["is_decoder=True is not supported"]),
    ("architectures", set_config(architectures=["BertModel", 1]), ["is no list of names of classes"]),
    ("pooling", sum_the_tokens, ["1_Pooling/config.json", "pooling", "not supported"]),
    ("modules", write("modules.json", "{}"), ["modules.json"]),
    ("broken_tokenizer", break_off_the_tokenizer, ["tokenizer.json"]),
]


@pytest.mark.parametrize(("edit", "parts"), [pytest.param(edit, parts, id=name) for name, edit, parts in BAD_SOURCES])
def test_a_bad_source_is_told_and_leaves_nothing(tiny: Path, tmp_path: Path, edit: Edit, parts: list[str]) -> None:
    source = copytree(tiny, tmp_path / "source")
    edit(source)
    (tmp_path / "bundles").mkdir()
    done = heed("export", source, tmp_path / "bundles" / "out")
    assert done.code == 2
    assert done.out == ""
    assert "error: " in done.said
    for part in parts:
        assert part in done.said
    assert inside(tmp_path / "bundles") == []


def test_a_missing_source_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    done = heed("export", tmp_path / "nothing", tmp_path / "out")
    assert done.code == 2
    assert f"error: {tmp_path}/nothing is not a folder, and heed downloads nothing" in done.said
    assert "hf download NAME --local-dir FOLDER" in done.said
    assert "PyTorch" not in done.said  # before it is started
    assert inside(tmp_path) == []


@pytest.fixture
def graph_at_hand(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting the same graphs again takes seconds; here they are copied."""

    def copy(_: object, graphs: list[Graph], folder: Path) -> None:
        for name in (*(graph.file for graph in graphs), WEIGHTS):
            copyfile(tiny_bundle / name, folder / name)

    monkeypatch.setattr(exporting, "write_graphs", copy)


@pytest.mark.usefixtures("graph_at_hand")
def test_a_bundle_that_does_not_hold_is_not_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_no_error(monkeypatch)
    done = heed("export", tiny, tmp_path / "out")
    assert done.code == 2
    assert "error: " in done.said
    assert "1e-12 is allowed" in done.said
    assert inside(tmp_path) == []


@pytest.mark.usefixtures("graph_at_hand")
def test_an_export_that_is_interrupted_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        assert inside(tmp_path) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_digests", interrupt)
    assert heed("export", tiny, tmp_path / "out").code == 130
    assert inside(tmp_path) == []


def test_a_model_name_that_no_caller_could_use_is_refused(tiny: Path, tmp_path: Path) -> None:
    done = heed("export", tiny, tmp_path / "out", "--name", "a/b")
    assert done.code == 2
    assert "a/b" in done.said
    assert inside(tmp_path) == []


def test_export_writes_a_bundle_under_the_folders_name(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = heed("export", tiny, tmp_path / "new" / "tiny")
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/new/tiny (")
    assert "equal to the reference" in done.said
    assert f"next: heed serve {tmp_path}/new/tiny" in done.said
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tiny"]
    check_digests(tmp_path / "new" / "tiny")
    assert contents(tmp_path / "new" / "tiny") == contents(tiny_bundle)  # the same export gives the same bundle


@pytest.mark.usefixtures("graph_at_hand")
def test_export_signs_what_it_proved(tiny: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    assert heed("export", tiny, tmp_path / "out", "--sign", keys.private).code == 0
    check_signature(tmp_path / "out", keys.public)


def test_verify_sees_who_signed_it_before_anything_else(tiny_bundle: Path, tmp_path: Path) -> None:
    keys, other = make_keys(tmp_path), make_keys(tmp_path, "other")
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    refused = heed("verify", bundle, "--signature", keys.public)
    assert (refused.code, refused.out) == (2, "")
    assert "is not signed" in refused.said
    sign(bundle, read_private_key(keys.private))
    assert heed("verify", bundle, "--signature", keys.public).code == 0
    assert "another key signed it" in heed("verify", bundle, "--signature", other.public).said


@pytest.mark.parametrize("content", [b"nonsense", b"", None])
def test_a_key_that_is_none_is_refused_before_any_work(tiny: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
    done = heed("export", tiny, tmp_path / "out", "--sign", tmp_path / "key.pem")
    assert done.code == 2
    assert f"error: key {tmp_path}/key.pem" in done.said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("graph_at_hand")
def test_the_name_for_callers_can_be_another(tiny: Path, tmp_path: Path) -> None:
    assert heed("export", tiny, tmp_path / "out", "--name", "mine").code == 0
    assert read_manifest(tmp_path / "out").name == "mine"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A bundle, by its files, that is there already."""
    folder = tmp_path / "bundles" / "out"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("mine")
    write_digests(folder)
    return folder


THERE = ["out", "out/SHA256SUMS", "out/bundle.json"]


def test_what_exists_is_not_replaced_unasked(tiny: Path, there: Path) -> None:
    done = heed("export", tiny, there)
    assert done.code == 2
    assert f"error: {there} exists; --force replaces it" in done.said
    assert inside(there.parent) == THERE


@pytest.mark.usefixtures("graph_at_hand")
def test_what_exists_is_replaced_on_request(tiny: Path, there: Path) -> None:
    assert heed("export", tiny, there, "--force").code == 0
    assert sorted(path.name for path in there.parent.iterdir()) == ["out"]
    check_digests(there)


@pytest.mark.usefixtures("graph_at_hand")
def test_what_exists_stays_when_its_replacement_fails(tiny: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_no_error(monkeypatch)
    assert heed("export", tiny, there, "--force").code == 2
    assert inside(there.parent) == THERE


@pytest.fixture
def wrong_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Its digests are right and its numbers are not: one reference value is 0.001 off."""
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    cases = read_contract(bundle)
    altered = cases[3].outputs["sentence_embedding"].copy()
    altered[0, 5] += 0.001
    cases[3] = replace(cases[3], outputs=cases[3].outputs | {"sentence_embedding": altered})
    write_contract(bundle, as_stored(cases))
    write_digests(bundle)
    return bundle


def as_stored(cases: list[Any]) -> list[Any]:
    """Texts as the contract stores them: plain unicode, no objects."""
    return [
        replace(case, inputs={name: np.array(array.tolist()) for name, array in case.inputs.items()}) for case in cases
    ]


def test_verify_exits_with_0_when_everything_holds(tiny_bundle: Path) -> None:
    done = heed("verify", tiny_bundle)
    assert done.code == 0
    assert "equal to the reference in" in done.out
    names = {case.name for case in read_contract(tiny_bundle)}
    assert names <= set(done.out.split())
    assert "✗" not in done.out


def test_verify_as_json_holds_every_comparison(tiny_bundle: Path) -> None:
    done = heed("verify", tiny_bundle, "--json")
    assert done.code == 0
    report = json.loads(done.out)
    assert (report["bundle"], report["holds"]) == ("tiny", True)
    assert report["digest"] == bundle_digest(tiny_bundle)
    compared = {(finding["case"], finding["output"]) for finding in report["findings"]}
    cases = read_contract(tiny_bundle)
    plain = {(case.name, output) for case in cases for output in case.outputs if output != "attentions"}
    with_attentions = {
        (f"{case.name} with attentions", output)
        for case in cases
        if "attentions" in case.outputs
        for output in case.outputs
    }
    assert compared == plain | with_attentions
    assert with_attentions
    for finding in report["findings"]:
        assert finding["holds"]
        assert 0 <= finding["error"] <= finding["budget"] == 1e-5


def test_verify_exits_with_1_and_names_what_does_not_hold(wrong_bundle: Path) -> None:
    case = read_contract(wrong_bundle)[3].name
    done = heed("verify", wrong_bundle)
    assert done.code == 1
    (line,) = (line for line in done.out.splitlines() if "✗" in line)
    assert line.split()[:2] == [case, "sentence_embedding"]
    assert "not equal to the reference in 1 of" in done.out


def test_verify_as_json_says_what_does_not_hold(wrong_bundle: Path) -> None:
    done = heed("verify", wrong_bundle, "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert not report["holds"]
    (broken,) = (finding for finding in report["findings"] if not finding["holds"])
    assert broken["output"] == "sentence_embedding"
    assert 0.0009 < broken["error"] < 0.0011


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_verify_as_json_is_json_even_where_there_is_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    cases = read_contract(bundle)
    inputs = {"input_ids": np.array([[5]]), "attention_mask": np.array([[0]])}
    write_contract(bundle, as_stored([replace(cases[0], inputs=inputs), *cases[1:]]))
    write_digests(bundle)
    done = heed("verify", bundle, "--json")
    assert done.code == 1
    first = json.loads(done.out, parse_constant=refuse_constant)["findings"][0]
    assert first["error"] is None
    assert "row 0 has no real token" in first["reason"]


def alter(bundle: Path) -> None:
    graph = bytearray((bundle / "model.fp32.onnx").read_bytes())
    graph[100] ^= 1
    (bundle / "model.fp32.onnx").write_bytes(graph)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        pytest.param(alter, "model.fp32.onnx is altered", id="altered"),
        pytest.param(remove("contract.npz"), "contract.npz is missing", id="missing"),
        pytest.param(write("extra.onnx", ""), "extra.onnx is not listed", id="additional"),
        pytest.param(remove("SHA256SUMS"), "has no SHA256SUMS", id="no digests"),
    ],
)
def test_verify_exits_with_2_when_the_bundle_cannot_be_used(
    tiny_bundle: Path, tmp_path: Path, edit: Edit, part: str
) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    edit(bundle)
    done = heed("verify", bundle)
    assert done.code == 2
    assert part in done.said
    assert done.out == ""


def test_verify_exits_with_2_when_there_is_no_bundle(tmp_path: Path) -> None:
    done = heed("verify", tmp_path / "nothing")
    assert done.code == 2
    assert f"error: {tmp_path}/nothing" in done.said


def test_verify_refuses_an_unknown_device(tiny_bundle: Path) -> None:
    done = heed("verify", tiny_bundle, "--device", "tpu")
    assert done.code == 2
    assert "--device tpu is none of auto, cpu, cuda" in done.said


def test_call_shows_each_text_with_its_cosines(tiny_server: Running) -> None:
    done = heed("call", tiny_server.address, "tiny", "-t", "the fox", "-t", "a [dog]", "-t", "the fox")
    assert done.code == 0
    assert "sentence_embedding [3, 32]" in done.out
    lines = {line.split()[0]: line for line in done.out.splitlines() if line[:1] in "123"}
    assert "the fox" in lines["1"]
    assert "a [dog]" in lines["2"]
    first, second, third = (line.split()[-3:] for line in (lines["1"], lines["2"], lines["3"]))
    assert first == third
    assert (first[0], first[2], second[1]) == ("1.00", "1.00", "1.00")
    assert float(first[1]) < 1
    assert "CPUExecutionProvider, fp32, bundle sha256:" in done.said


def test_call_shows_one_text_without_cosines(tiny_server: Running) -> None:
    done = heed("call", tiny_server.address, "tiny", "-t", "the fox")
    assert done.code == 0
    assert "sentence_embedding [1, 32]" in done.out
    assert "cos" not in done.out


def test_call_as_json_has_every_value(tiny_server: Running, tiny_bundle: Path) -> None:
    done = heed("call", tiny_server.address, "tiny", "-t", "the fox", "-t", "a dog", "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    assert (answer["model"], answer["digest"]) == ("tiny", bundle_digest(tiny_bundle))
    with Client(tiny_server.address, "tiny") as client:
        expected = client.embed(["the fox", "a dog"])
    np.testing.assert_array_equal(np.array(answer["sentence_embedding"], np.float32), expected)


def test_call_truncates_on_request(tiny_server: Running) -> None:
    text = "fox " * 50
    refused = heed("call", tiny_server.address, "tiny", "-t", text)
    assert refused.code == 2
    assert "error: INVALID_ARGUMENT: input text[0] has 52 tokens" in refused.said
    assert "give --truncate to have it cut" in refused.said
    assert heed("call", tiny_server.address, "tiny", "-t", text, "--truncate").code == 0


def test_call_for_an_unknown_model_names_those_there_are(tiny_server: Running) -> None:
    done = heed("call", tiny_server.address, "big", "-t", "a")
    assert done.code == 2
    assert "error: NOT_FOUND: model 'big' is not served here, only tiny" in done.said


@pytest.mark.parametrize(
    "command", [["call", "ADDRESS", "tiny", "-t", "\udcff"], ["attend", "ADDRESS", "tiny", "\udcff"]]
)
def test_arguments_that_are_no_text_are_told(tiny_server: Running, command: list[str]) -> None:
    done = heed(*(tiny_server.address if part == "ADDRESS" else part for part in command))
    assert (done.code, done.said) == (
        2,
        "error: a text cannot be sent as UTF-8: surrogates not allowed at 0, '\\udcff'",
    )


def test_call_to_nobody_says_so_within_its_timeout() -> None:
    address = f"127.0.0.1:{free_port()}"
    before = time.monotonic()
    done = heed("call", address, "tiny", "-t", "a", "--timeout", "3")
    assert time.monotonic() - before < 4
    assert done.code == 2
    assert done.out == ""
    assert "error: " in done.said
    assert address in done.said
