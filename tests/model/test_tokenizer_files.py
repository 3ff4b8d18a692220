"""Tokenizers whose files say different things, read as `transformers`' AutoTokenizer reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from heed.model import CheckpointError
from heed.model.checkpoint import Checkpoint
from heed.model.tokenizer_files import read_tokenizer
from tests.tokenizers import save_byte_bpe, save_unigram, save_wordpiece

TEXTS = [
    "",
    "The Quick Brown Fox saw the saw.",
    "  naïve CAFÉS, Ελληνικά:   東京 & 🦊  ",
    "fox[MASK]fox <mask>fox, [CLS] <s>and</s> [SEP]",
    "İstanbul ẞ ΣΊΣΥΦΟΣ e\u0301 versus é, don't, U.S.A. 3.14",
    "a new word: saw<new>fox NEWWORD newword",
    "tab\tand\nline \u200b\ufeff\x00 end",
]
PAIRS = [("the fox", "saw it"), ("é", "É")]
Edit = Callable[[dict[str, Any]], object]


def same(tokenizer: dict[str, Any]) -> None:
    pass


def part(name: str, **changes: Any) -> Edit:
    return lambda tokenizer: tokenizer[name].update(changes)


def without(*names: str) -> Edit:
    return lambda tokenizer: tokenizer.update(dict.fromkeys(names))


def unlisted(tokenizer: dict[str, Any]) -> None:
    """No token is marked as added, though they are in the vocabulary."""
    tokenizer["added_tokens"] = []


NEW = {
    "content": "<new>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}
WORD = NEW | {"content": "newword", "normalized": True}


def flagged(text: str, **flags: bool) -> dict[str, Any]:
    return NEW | {"content": text} | flags


def listed(*tokens: dict[str, Any]) -> Edit:
    """Added tokens of tokenizer.json, behind all others."""

    def edit(tokenizer: dict[str, Any]) -> None:
        last = max(entry["id"] for entry in tokenizer["added_tokens"])
        vocabulary = tokenizer["model"]["vocab"]
        first = max(last + 1, len(vocabulary))
        tokenizer["added_tokens"] += [token | {"id": first + number} for number, token in enumerate(tokens)]

    return edit


# The model_type, what tokenizer.json has, and what tokenizer_config.json says; None: there is none.
WORDPIECES: dict[str, tuple[str, Edit, dict[str, Any] | None]] = {
    "nothing but tokenizer.json": ("bert", same, None),
    "lower case in the settings alone": (
        "bert", part("normalizer", lowercase=False), {"do_lower_case": True, "tokenizer_class": "BertTokenizer"},
    ),
    "lower case in tokenizer.json alone": (
        "bert", same, {"do_lower_case": False, "tokenizer_class": "BertTokenizerFast"},
    ),
    "lower case by default": ("electra", part("normalizer", lowercase=False), {}),
    "no class": ("distilbert", part("normalizer", lowercase=False), {"do_lower_case": False}),
    "another class": (
        "bert", part("normalizer", lowercase=False),
        {"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"},
    ),
    "accents": ("bert", same, {"strip_accents": False, "tokenizer_class": "BertTokenizer"}),
    "Chinese": ("bert", same, {"tokenize_chinese_chars": False, "tokenizer_class": "DistilBertTokenizer"}),
    "no normalizer": ("bert", without("normalizer", "pre_tokenizer"), {"do_lower_case": False}),
    "no template": ("bert", without("post_processor"), None),
    "one type": ("bert", lambda it: it["post_processor"]["pair"][3]["Sequence"].update(type_id=0), None),
    "special tokens that are not listed": ("bert", unlisted, None),
    "an added token": ("bert", same, {"added_tokens_decoder": {"900": NEW, "901": WORD}}),
    "an added token of another class": (
        "bert", same, {"added_tokens_decoder": {"900": NEW}, "tokenizer_class": "PreTrainedTokenizerFast"},
    ),
    "extra special tokens": ("bert", same, {"additional_special_tokens": ["<new>", "fox"]}),
    "a special token of its own": ("bert", same, {"mask_token": "<mask>", "pad_token": "[PAD]"}),
    "flags of an added token": (
        "bert", same, {"added_tokens_decoder": {"4": flagged("[MASK]", lstrip=True, rstrip=True, special=True)}},
    ),
    "flags for another class": (
        "bert", listed(NEW, WORD),
        {
            "added_tokens_decoder": {"900": flagged("newword", single_word=True), "4": flagged("[MASK]", rstrip=True)},
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    ),
    "normalized against not": (
        "bert", listed(WORD), {"added_tokens_decoder": {"900": flagged("newword", normalized=False)}},
    ),
    "tokens of tokenizer.json that the settings do not list": (
        "bert", listed(NEW, WORD), {"added_tokens_decoder": {"900": WORD}},
    ),
    "modernbert": ("modernbert", part("normalizer", lowercase=False), {"tokenizer_class": "BertTokenizer"}),
}  # fmt: skip
BYTE_LEVELS: dict[str, tuple[str, Edit, dict[str, Any] | None]] = {
    "RoBERTa": ("roberta", same, None),
    "a space before": ("roberta", same, {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}),
    "no space before": ("longformer", part("pre_tokenizer", add_prefix_space=True), {}),
    "a normalizer": ("roberta", lambda it: it.update(normalizer={"type": "Lowercase"}), None),
    "kept as it is": (
        "roberta", lambda it: it.update(normalizer={"type": "Lowercase"}),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ),
}  # fmt: skip
WIDE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
UNIGRAMS: dict[str, tuple[str, Edit, dict[str, Any] | None]] = {
    "XLM-R": ("xlm-roberta", same, None),
    "XLM-R as it is": ("xlm-roberta", same, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "XLM-R without a space before": ("xlm-roberta", same, {"add_prefix_space": False}),
    "XLM-R without a template": (
        "xlm-roberta", without("post_processor"),
        {"mask_token": flagged("<mask>", lstrip=True) | {"__type": "AddedToken"}},
    ),
    "XLM-R with flags": (
        "xlm-roberta", listed(NEW), {"added_tokens_decoder": {"1": flagged("<mask>", lstrip=True), "2": WORD}},
    ),
    "XLM-R of old spaces": (
        "xlm-roberta",
        lambda it: it.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}),
        {"tokenizer_class": "XLMRobertaTokenizer"},
    ),
    "CamemBERT": ("camembert", same, {}),
    "CamemBERT of a class": ("camembert", part("model", unk_id=2), {"tokenizer_class": "CamembertTokenizerFast"}),
    "Big Bird": ("big_bird", same, None),
    "Big Bird of RoBERTa's tokens": ("big_bird", same, {"cls_token": "<s>", "sep_token": "</s>"}),
    "Big Bird as it is": (
        "big_bird", lambda it: it.update(normalizer=WIDE), {"tokenizer_class": "PreTrainedTokenizerFast"},
    ),
}  # fmt: skip
SAVED: list[tuple[Callable[[Path], int], str, tuple[str, Edit, dict[str, Any] | None]]] = [
    *((save_wordpiece, name, case) for name, case in WORDPIECES.items()),
    *((save_byte_bpe, name, case) for name, case in BYTE_LEVELS.items()),
    *((save_unigram, name, case) for name, case in UNIGRAMS.items()),
]


def saved(folder: Path, save: Callable[[Path], int], case: tuple[str, Edit, dict[str, Any] | None]) -> dict[str, Any]:
    """Returns what config.json says."""
    save(folder)
    model_type, edit, settings = case
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def served(folder: Path, config: dict[str, Any], lower_case: bool = False) -> Tokenizer:
    found = read_tokenizer(folder, config, lower_case)
    assert found
    checkpoint = Checkpoint(None, tokenizer=found.path, tokenizer_changes=found.changes)  # type: ignore[arg-type]
    return Tokenizer.from_buffer(checkpoint.tokenizer_json())


@pytest.mark.parametrize(("save", "case"), [pytest.param(save, case, id=name) for save, name, case in SAVED])
def test_what_is_served_is_what_auto_tokenizer_gives(
    tmp_path: Path, save: Callable[[Path], int], case: tuple[str, Edit, dict[str, Any] | None]
) -> None:
    import transformers

    tokenizer = served(tmp_path, saved(tmp_path, save, case))
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert [tokenizer.id_to_token(id) for id in ids] == expected.convert_ids_to_tokens(expected(text)["input_ids"])
        assert ids == expected(text)["input_ids"]
    for pair in PAIRS:
        right = expected(*pair, return_token_type_ids=True)
        encoding = tokenizer.encode(*pair)
        assert (encoding.ids, encoding.type_ids) == (right["input_ids"], right["token_type_ids"])


def test_a_tokenizer_that_is_not_changed_is_served_byte_by_byte(tmp_path: Path) -> None:
    config = saved(tmp_path, save_wordpiece, ("bert", same, {"do_lower_case": True, "model_max_length": 40}))
    found = read_tokenizer(tmp_path, config, lower_case=True)
    assert found
    assert (found.changes, found.notes) == ({}, ())
    assert [path.name for path in found.files] == ["tokenizer.json", "tokenizer_config.json"]


def test_a_contradiction_is_told_with_both_files(tmp_path: Path) -> None:
    case = WORDPIECES["lower case in tokenizer.json alone"]
    found = read_tokenizer(tmp_path, saved(tmp_path, save_wordpiece, case), lower_case=False)
    assert found
    assert found.notes == (
        "tokenizer.json and tokenizer_config.json contradict each other: the normalizer has lowercase=true in the "
        "first, lowercase=false by the second, which counts, as for AutoTokenizer",
    )


def test_flags_that_contradict_each_other_are_told_by_the_token(tmp_path: Path) -> None:
    settings = {"added_tokens_decoder": {"4": flagged("[MASK]", lstrip=True, special=True)}}
    found = read_tokenizer(tmp_path, saved(tmp_path, save_wordpiece, ("bert", listed(NEW), settings)), lower_case=False)
    assert found
    said = "tokenizer.json and tokenizer_config.json contradict each other: the added token {} in the first and not by "
    assert [note.split("the second")[0] for note in found.notes] == [
        said.format("'[MASK]' has lstrip=false"), said.format("'<new>' is listed"),
    ]  # fmt: skip


def test_names_of_special_tokens_in_a_file_of_their_own_count_where_no_list_does(tmp_path: Path) -> None:
    import transformers

    config = saved(tmp_path, save_wordpiece, ("bert", same, {}))
    (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "fox", "mask_token": "[MASK]"}')
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert served(tmp_path, config).encode("the saw").ids == expected("the saw")["input_ids"]
    settings = {"added_tokens_decoder": {"4": flagged("[MASK]", special=True)}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert served(tmp_path, config).encode("the saw").ids == expected("the saw")["input_ids"]


def test_lower_casing_comes_first_where_the_tokenizer_keeps_capitals(tmp_path: Path) -> None:
    config = saved(tmp_path, save_unigram, ("xlm-roberta", same, None))
    plain, lower = served(tmp_path, config), served(tmp_path, config, lower_case=True)
    assert lower.encode("The Quick FOX").ids == plain.encode("the quick fox").ids != plain.encode("The Quick FOX").ids


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("vocab.txt", "BertTokenizer"),
        ("vocab.json", "RobertaTokenizer"),
        ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
    ],
)
def test_a_vocabulary_alone_is_refused_with_what_reads_it(tmp_path: Path, file: str, reader: str) -> None:
    assert read_tokenizer(tmp_path, {}, lower_case=False) is None
    (tmp_path / file).write_text("")
    with pytest.raises(
        CheckpointError, match=rf"{file} but no tokenizer\.json; .*transformers\.{reader}\.from_pretrained"
    ):
        read_tokenizer(tmp_path, {"model_type": "bert"}, lower_case=False)


def save_vocabulary(folder: Path, save: Callable[[Path], int]) -> Tokenizer:
    """A folder without tokenizer.json, as published before there was one; and what its texts become."""
    save(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    in_order = sorted(model["vocab"], key=model["vocab"].get)
    if model["type"] == "WordPiece":
        (folder / "vocab.txt").write_text("\n".join(in_order) + "\n")
    else:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    return tokenizer


@pytest.mark.parametrize(
    ("save", "model_type"), [(save_wordpiece, "bert"), (save_wordpiece, "roberta"), (save_byte_bpe, "roberta")]
)
def test_the_advice_gives_the_publishers_ids(tmp_path: Path, save: Callable[[Path], int], model_type: str) -> None:
    import transformers

    publishers, config = save_vocabulary(tmp_path, save), {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refused:
        read_tokenizer(tmp_path, config, lower_case=False)
    (reader,) = (word for word in str(refused.value).split() if word.startswith("transformers."))
    name = reader.split(".")[1]
    getattr(transformers, name).from_pretrained(tmp_path).save_pretrained(tmp_path)
    tokenizer = served(tmp_path, config)
    for text in TEXTS:
        assert tokenizer.encode(text).tokens == publishers.encode(text).tokens
        assert tokenizer.encode(text).ids == publishers.encode(text).ids
