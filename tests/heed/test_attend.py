"""`heed attend`: what it asks for, what it shows and draws, and how it exits."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from heed.cli.main import app
from heed.cli.token_text import readable_tokens
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from tests.support import Running, free_port

LAYERS, HEADS = 2, 3
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return " ".join(self.err.split())


def attend(*arguments: object, columns: int = 200) -> Done:
    """Runs the command in this process. What is raised and not caught is raised here too."""
    env = {"COLUMNS": str(columns), "TERM": "dumb"}
    result = CliRunner().invoke(app, ["attend", *map(str, arguments)], env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def made_up_weights(tokens: int) -> np.ndarray:
    """Layer k and head n look at token k + n: 0.9 there, the rest evenly. `[1, LAYERS, HEADS, tokens, tokens]`."""
    weights = np.full((1, LAYERS, HEADS, tokens, tokens), 0.1 / (tokens - 1), np.float32)
    for layer in range(LAYERS):
        for head in range(HEADS):
            weights[0, layer, head, :, (layer + head) % tokens] = 0.9
    return weights


def words_of(text: str) -> tuple[list[str], list[list[int]]]:
    spans = [list(match.span()) for match in re.finditer(r"\S+", text)]
    return [text[start:end] for start, end in spans], spans


def raw_bytes(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


@dataclass
class FakeModel(GRPCInferenceServiceServicer):
    """Splits at blanks, and answers with made-up weights."""

    requests: list[pb.ModelInferRequest] = field(default_factory=list)

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.requests.append(request)
        if request.model_name != "fake":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "its bundle has no graph of attentions: export it anew")
        tokens, offsets = ["[CLS]"], [[0, 0]]
        for raw in request.raw_input_contents:
            words, spans = words_of(raw[4:].decode())
            tokens, offsets = [*tokens, *words, "[SEP]"], [*offsets, *spans, [0, 0]]
        weights = made_up_weights(len(tokens))
        response = pb.ModelInferResponse(model_name="fake", model_version="1")
        response.outputs.add(name="attentions", datatype="FP32", shape=weights.shape)
        response.outputs.add(name="tokens", datatype="BYTES", shape=[1, len(tokens)])
        response.outputs.add(name="offsets", datatype="INT64", shape=[1, len(tokens), 2])
        response.raw_output_contents.extend(
            [weights.tobytes(), raw_bytes(tokens), np.array(offsets, np.int64).tobytes()]
        )
        response.parameters["digest"].string_param = "sha256:" + "a" * 64
        response.parameters["provider"].string_param = "FakeExecutionProvider"
        response.parameters["precision"].string_param = "fp32"
        return response


@dataclass(frozen=True)
class Fake:
    address: str
    model: FakeModel


@pytest.fixture
def fake() -> Iterator[Fake]:
    server, model = grpc.server(ThreadPoolExecutor(1)), FakeModel()
    add_GRPCInferenceServiceServicer_to_server(model, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Fake(f"127.0.0.1:{port}", model)
    server.stop(None).wait()


def test_the_help_names_the_options_and_says_that_counting_starts_at_1() -> None:
    done = attend("--help")
    assert done.code == 0
    for option in (
        "HOST:PORT",
        "MODEL",
        "TEXT",
        "--pair",
        "--truncate",
        "--layer",
        "--head",
        "--out",
        "--json",
        "--timeout",
    ):
        assert option.lower() in done.out.lower()
    assert done.out.count("counted from 1") == 2


def test_it_asks_for_one_text_by_name(fake: Fake) -> None:
    assert attend(fake.address, "fake", "早上 好").code == 0
    (request,) = fake.model.requests
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [("text", "BYTES", [1])]
    assert list(request.raw_input_contents) == [raw_bytes(["早上 好"])]
    assert [tensor.name for tensor in request.outputs] == ["attentions", "tokens", "offsets"]


def test_it_has_a_text_cut_on_request(fake: Fake) -> None:
    attend(fake.address, "fake", "a b")
    attend(fake.address, "fake", "a b", "--truncate")
    assert [request.parameters["truncate"].bool_param for request in fake.model.requests] == [False, True]


def test_a_pair_is_two_inputs(fake: Fake) -> None:
    assert attend(fake.address, "fake", "a", "--pair", "b c").code == 0
    assert [tensor.name for tensor in fake.model.requests[0].inputs] == ["text", "text_pair"]
    assert list(fake.model.requests[0].raw_input_contents) == [raw_bytes(["a"]), raw_bytes(["b c"])]


def rows(done: Done) -> list[list[str]]:
    return [line.split() for line in done.out.splitlines()]


def test_one_head_is_a_table_of_queries_by_keys(fake: Fake) -> None:
    done = attend(fake.address, "fake", "the fox", "--layer", "2", "--head", "2")
    assert done.code == 0
    assert rows(done) == [
        ["fake", "layer", "2,", "head", "2", "(row:", "query,", "column:", "key)"],
        ["1", "2", "3", "4"],
        ["[CLS]", "the", "fox", "[SEP]"],
        ["1", "[CLS]", "0.03", "0.03", "0.90", "0.03"],
        ["2", "the", "0.03", "0.03", "0.90", "0.03"],
        ["3", "fox", "0.03", "0.03", "0.90", "0.03"],
        ["4", "[SEP]", "0.03", "0.03", "0.90", "0.03"],
    ]
    assert "left out" not in done.err
    assert "FakeExecutionProvider, fp32, bundle sha256:aaaaaaaaaaaa" in done.said


def test_without_a_choice_it_is_the_mean_of_the_last_layers_heads(fake: Fake) -> None:
    done = attend(fake.address, "fake", "the fox")
    assert rows(done)[0][:12] == ["fake", "the", "mean", "of", "3", "heads:", "layer", "2,", "heads", "1", "to", "3"]
    assert rows(done)[3] == ["1", "[CLS]", "0.03", "0.32", "0.32", "0.32"]
    assert "--layer and --head choose one or all, --out FILE.png draws each head" in done.said


def test_all_layers_can_be_chosen(fake: Fake) -> None:
    done = attend(fake.address, "fake", "the fox", "--layer", "all")
    assert "the mean of 6 heads: layers 1 to 2, heads 1 to 3" in done.out
    assert rows(done)[3] == ["1", "[CLS]", "0.18", "0.32", "0.32", "0.18"]


def test_the_greater_a_weight_the_darker_its_cell(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, color_system="truecolor", width=80, file=StringIO())
    monkeypatch.setattr("heed.cli.commands.attend.out", terminal)
    assert attend(fake.address, "fake", "the fox", "--layer", "1", "--head", "1").code == 0
    cells = re.findall(r"48;2;(\d+);\d+;\d+m *(\d\.\d\d)", terminal.file.getvalue())  # type: ignore[attr-defined]
    assert len(cells) == 16
    assert max(int(red) for red, weight in cells if weight == "0.90") < 20
    assert min(int(red) for red, weight in cells if weight == "0.03") > 220


def test_a_long_text_fits_the_terminal_and_says_what_is_left_out(fake: Fake) -> None:
    done = attend(fake.address, "fake", "extraordinarily long " * 40, "--layer", "1", "--head", "3", columns=80)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "left out: 70 of 82 keys, those that get the least attention" in done.said
    assert "left out: queries 65 to 82" in done.said
    assert "--out draws all of them" in done.said
    assert rows(done)[1][2] == "3"  # the key that this head looks at
    assert rows(done)[3][:2] == ["1", "[CLS]"]
    assert rows(done)[4][:2] == ["2", "extraordinarily"]
    assert rows(done)[-1][0] == "64"


def test_wide_letters_keep_their_columns(fake: Fake) -> None:
    done = attend(fake.address, "fake", "早上好早上好 世界 " + "x " * 40, "--layer", "1", "--head", "1", columns=45)
    assert ["[CL…", "早…", "世界", "x", "x"] in rows(done)
    assert max(map(cell_len, done.out.splitlines())) <= 45


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--layer", "3", "--layer 3: this model has layers 1 to 2"),
        ("--layer", "0", "--layer 0: this model has layers 1 to 2"),
        ("--layer", "-1", "--layer -1: this model has layers 1 to 2"),
        ("--head", "4", "--head 4: this model has heads 1 to 3"),
        ("--head", "first", "--head first: this model has heads 1 to 3; choose one of them, or all"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(fake: Fake, flag: str, value: str, says: str) -> None:
    done = attend(fake.address, "fake", "a", flag, value)
    assert (done.code, done.out) == (2, "")
    assert f"error: {says}" in done.said


def test_as_json_it_is_every_chosen_weight(fake: Fake) -> None:
    done = attend(fake.address, "fake", "早上 好", "--layer", "all", "--head", "2", "--json")
    answer = json.loads(done.out)
    assert {key: answer[key] for key in ("model", "tokens", "offsets", "layers", "heads")} == {
        "model": "fake",
        "tokens": ["[CLS]", "早上", "好", "[SEP]"],
        "offsets": [[0, 0], [0, 2], [3, 4], [0, 0]],
        "layers": [1, 2],
        "heads": [2],
    }
    np.testing.assert_array_equal(np.array(answer["attentions"], np.float32), made_up_weights(4)[0, :, 1:2])


def test_a_picture_is_drawn_on_request(fake: Fake, tmp_path: Path) -> None:
    done = attend(fake.address, "fake", "早上好 🚀 مرحبا", "--out", tmp_path / "a.png")
    assert done.code == 0
    assert f"drawn: {tmp_path}/a.png" in done.said
    assert "font" not in done.err
    assert imread(tmp_path / "a.png").std() > 0.05
    assert "the mean of 3 heads" in done.out


def test_a_script_without_a_font_is_named_once(fake: Fake, tmp_path: Path) -> None:
    done = attend(fake.address, "fake", "𒀀𒀁 𒀂 བོད", "--out", tmp_path / "a.png")
    assert done.code == 0
    assert done.said.count("no font at hand has all of: Cuneiform, Tibetan") == 1
    assert "pip install 'heed-serve[plots]'" in done.said


def test_a_picture_that_cannot_be_drawn_is_told_before_the_server_is_asked(fake: Fake, tmp_path: Path) -> None:
    done = attend(fake.address, "fake", "a", "--out", tmp_path / "a.doc")
    assert done.code == 2
    assert "a.doc ends in no kind of picture" in done.said
    assert fake.model.requests == []


def test_a_picture_that_cannot_be_written_is_told(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    done = attend(fake.address, "fake", "a", "--out", tmp_path / "a.png")
    assert done.code == 2
    assert "a.png cannot be written: Is a directory" in done.said


def test_without_matplotlib_a_table_is_shown_and_a_picture_refused(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heed.cli.drawing.find_spec", lambda _: None)
    assert attend(fake.address, "fake", "a").code == 0
    done = attend(fake.address, "fake", "a", "--out", tmp_path / "a.png")
    assert done.code == 2
    assert "pip install 'heed-serve[plots]'" in done.said


def test_matplotlib_is_imported_only_to_draw(fake: Fake) -> None:
    program = f"import sys; sys.argv = ['heed', 'attend', {fake.address!r}, 'fake', 'a', '--json']\n"
    program += "from heed.cli.main import app\napp(standalone_mode=False)\nassert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_server_refuses_is_passed_on(fake: Fake) -> None:
    done = attend(fake.address, "other", "a")
    assert (done.code, done.out) == (2, "")
    assert "error: FAILED_PRECONDITION: its bundle has no graph of attentions: export it anew" in done.said


def test_nobody_there_is_told_within_the_timeout() -> None:
    done = attend(f"127.0.0.1:{free_port()}", "fake", "a", "--timeout", "2")
    assert done.code == 2
    assert re.search("error: (UNAVAILABLE|DEADLINE_EXCEEDED)", done.said)


# The real thing.


@pytest.mark.parametrize("pair", [None, "Money back is what I want."])
def test_the_weights_of_a_real_model_are_those_of_transformers(
    minilm: Path, minilm_server: Running, pair: str | None
) -> None:
    text = "Unbelievably, how do I get my money back? 世上"
    chosen = ["--layer", "all", "--json", *(["--pair", pair] if pair else [])]
    done = attend(minilm_server.address, "minilm", text, *chosen)
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    network = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    inputs = AutoTokenizer.from_pretrained(minilm)(text, pair, return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        offsets = inputs.pop("offset_mapping")
        expected = torch.cat(network(**inputs, output_attentions=True).attentions).numpy()
    assert answer["layers"] == [1, 2, 3, 4, 5, 6]
    assert answer["heads"] == list(range(1, 13))
    assert answer["offsets"] == offsets[0].tolist()
    assert answer["tokens"][:5] == ["[CLS]", "un", "##bel", "##ie", "##va"]
    found = np.array(answer["attentions"])
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_layer_of_a_real_model_is_drawn(minilm_server: Running, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    assert attend(minilm_server.address, "minilm", "世上 is the world", "--layer", "2", "--out", picture).code == 0
    assert imread(picture).std() > 0.05


# How tokens are read.


def wordpiece() -> Tokenizer:
    words = ["[UNK]", "[CLS]", "[SEP]", "un", "##bel", "##ievable", "早", "好", "fox", "#", "don", "'", "t"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def byte_level() -> Tokenizer:
    """Merges the beginnings of a few words, as GPT-2 writes them, until each is one token."""
    words = ["morning", "Ġwor", "ld", "æĹ©ä¸Ĭ"]
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", "▁", "▁un", "believable", "早上", "好", "▁fox", "."]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "texts", "expected"),
    [
        (wordpiece, ["Unbelievable fox"], ["[CLS]", "un", "·bel", "·ievable", "fox", "[SEP]"]),
        (wordpiece, ["早好"], ["[CLS]", "早", "好", "[SEP]"]),
        (wordpiece, ["fox#", "cat"], ["[CLS]", "fox", "#", "[SEP]", "[UNK] cat", "[SEP]"]),
        (wordpiece, ["don't"], ["[CLS]", "don", "'", "t", "[SEP]"]),
        (byte_level, ["morning world"], ["<s>", "morning", "wor", "·ld", "</s>"]),
        (byte_level, ["早上"], ["<s>", "早上", "</s>"]),
        (byte_level, ["🦊"], ["<s>", "🦊", "·🦊", "·🦊", "·🦊", "</s>"]),
        (byte_level, ["  \n"], ["<s>", "␣", "␣", "⏎", "</s>"]),
        (byte_level, ["morning ", "é"], ["<s>", "morning", "␣", "</s>", "</s>", "é", "·é", "</s>"]),
        (sentencepiece, ["unbelievable fox."], ["un", "·believable", "fox", "."]),
        (sentencepiece, ["早上好"], ["▁", "早上", "好"]),
    ],
)
def test_tokens_are_read_without_their_marks(tokenizer: object, texts: list[str], expected: list[str]) -> None:
    assert callable(tokenizer)
    encoding = tokenizer().encode(*texts)
    assert readable_tokens(encoding.tokens, encoding.offsets, texts) == expected
