"""The tokenizer of a folder: tokenizer.json, and what tokenizer_config.json says beside it.

`transformers` lets the two contradict each other, and its classes decide what counts: they take the vocabulary of
tokenizer.json and build the rest anew from tokenizer_config.json. What is served is what its `AutoTokenizer` gives.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heed.model.checkpoint_files import CheckpointError, check_is_here, read_json

Json = dict[str, Any]
_Numbered = tuple[str, int]  # a token's text and its number

TOKENIZER, SETTINGS, NAMES = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# The class of `transformers` that stands for a model whose folder names none. Others take tokenizer.json as it is.
CLASSES = {
    "bert": "BertTokenizer",
    "big_bird": "BigBirdTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "longformer": "RobertaTokenizer",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
AS_IT_IS = frozenset({"modernbert"})  # whatever class the folder names
WORDPIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"})
BYTE_LEVEL = frozenset({"RobertaTokenizer", "LongformerTokenizer"})
UNIGRAM = frozenset({"XLMRobertaTokenizer", "CamembertTokenizer", "BigBirdTokenizer"})
# The kind of model that a class builds its parts around; around another kind it takes tokenizer.json as it is.
KINDS = {
    **dict.fromkeys(WORDPIECE, "WordPiece"),
    **dict.fromkeys(BYTE_LEVEL, "BPE"),
    **dict.fromkeys(UNIGRAM, "Unigram"),
}
# The special tokens of a class, where tokenizer_config.json names no others.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"},
    **{"pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"},
}
DEFAULT_TOKENS: dict[str, Json] = {
    **dict.fromkeys(WORDPIECE, BERT_TOKENS),
    **dict.fromkeys(BYTE_LEVEL, ROBERTA_TOKENS),
    "MPNetTokenizer": ROBERTA_TOKENS | {"unk_token": "[UNK]"},
    "XLMRobertaTokenizer": ROBERTA_TOKENS,
    "CamembertTokenizer": ROBERTA_TOKENS | {"mask_token": {"content": "<mask>", "lstrip": True}},
    "BigBirdTokenizer": ROBERTA_TOKENS
    | {"sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": {"content": "[MASK]", "lstrip": True}},
}
MORE_TOKENS: dict[str, tuple[str, ...]] = {"CamembertTokenizer": ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
# What a folder without tokenizer.json has in its place, and the class that reads it whatever the model is.
READERS = {
    "vocab.txt": "BertTokenizer",
    "vocab.json": "RobertaTokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
    "spiece.model": "AlbertTokenizer",
    "spm.model": "DebertaV2Tokenizer",
}


@dataclass(frozen=True)
class TokenizerFiles:
    """A folder's tokenizer."""

    path: Path  # tokenizer.json
    changes: Mapping[str, Any] = field(default_factory=dict)  # the parts of it that count otherwise
    files: tuple[Path, ...] = ()  # all that was read
    notes: tuple[str, ...] = ()  # which parts those are, and why: for people


def read_tokenizer(folder: Path, config: Json, lower_case: bool) -> TokenizerFiles | None:
    """
    Args:
        config: what config.json says.
        lower_case: whether sentence-transformers lowers every text first.

    Returns:
        None: the folder has no tokenizer.

    Raises:
        CheckpointError: a file is damaged, or there is a vocabulary but no tokenizer.json.
    """
    path = folder / TOKENIZER
    if not path.exists():
        _refuse_other_files(folder, config)
        return None
    check_is_here(path)
    read = [each for each in (path, folder / SETTINGS, folder / NAMES) if each.exists()]
    tokenizer, settings, names = (
        read_json(each) if each in read else {} for each in (path, folder / SETTINGS, folder / NAMES)
    )
    if "added_tokens_decoder" not in settings:  # an older folder
        settings |= {key: names[key] for key in NAMED if names.get(key)}
    try:
        changes = dict(_changes(tokenizer, settings, _class_name(config, settings)))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}, or {SETTINGS} beside it, is not a tokenizer's: {error!r}") from None
    notes = [
        note
        for part, value in changes.items()
        for note in (_note_tokens if part == "added_tokens" else _note)(part, tokenizer.get(part), value)
    ]
    normalizer = changes.get("normalizer", tokenizer.get("normalizer"))
    if lower_case and not _lowers(normalizer):
        changes["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *_steps(normalizer)]}
    return TokenizerFiles(path, changes, tuple(read), tuple(notes))


def _refuse_other_files(folder: Path, config: Json) -> None:
    for name, reader in READERS.items():
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} has {name} but no {TOKENIZER}; make one with transformers, and compare what it gives with "
                f"what the publisher says: transformers.{reader}.from_pretrained(folder).save_pretrained(folder) "
                f"(AutoTokenizer would go by model_type={config.get('model_type')!r}, whatever the file holds)"
            )


def _class_name(config: Json, settings: Json) -> str:
    """The class of `transformers` that AutoTokenizer makes; empty: one that takes tokenizer.json as it is."""
    model_type = config.get("model_type")
    if model_type in AS_IT_IS:
        return ""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or CLASSES.get(str(model_type), "")
    return str(named).removesuffix("Fast")


def _changes(tokenizer: Json, settings: Json, name: str) -> Iterator[tuple[str, Any]]:
    """The parts that the class builds otherwise than tokenizer.json has them."""
    builds = name in KINDS and KINDS[name] == _kind(tokenizer.get("model"))
    tokens = (DEFAULT_TOKENS[name] if builds else {}) | {key: settings[key] for key in NAMED if settings.get(key)}
    added = _added_tokens(tokenizer, settings, tokens, name if builds else "")
    if builds:
        ids = _vocabulary(tokenizer) | {entry["content"]: entry["id"] for entry in added}
        for part, value in _built(tokenizer, settings, _Tokens(tokens, ids), name).items():
            if _plain(tokenizer.get(part)) != _plain(value):
                yield part, value
    if _by_content(added) != _by_content(tokenizer.get("added_tokens", [])):
        yield "added_tokens", added


@dataclass(frozen=True)
class _Tokens:
    """The special tokens of a class."""

    named: Json  # by their keys in tokenizer_config.json
    ids: Mapping[str, int]  # of all tokens

    def ends(self, first: str, last: str) -> "tuple[_Numbered, _Numbered] | None":
        """Text and number of two of them; None if one is no token."""
        texts = _text(self.named[first]), _text(self.named[last])
        if not all(text in self.ids for text in texts):
            return None
        return (texts[0], self.ids[texts[0]]), (texts[1], self.ids[texts[1]])


def _built(tokenizer: Json, settings: Json, tokens: _Tokens, name: str) -> Json:
    """The parts that a class makes of its settings."""
    if name in WORDPIECE:
        return _built_wordpiece(settings, tokens, name)
    if name in BYTE_LEVEL:
        return _built_byte_level(settings, tokens)
    return _built_unigram(tokenizer, settings, tokens, name)


def _built_wordpiece(settings: Json, tokens: _Tokens, name: str) -> Json:
    parts: Json = {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    if ends := tokens.ends("cls_token", "sep_token"):
        roberta = name == "MPNetTokenizer"
        parts["post_processor"] = _roberta_processor(*ends, False, True) if roberta else _bert_processor(*ends)
    return parts


def _built_byte_level(settings: Json, tokens: _Tokens) -> Json:
    prefix, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    parts: Json = {"normalizer": None, "pre_tokenizer": level}
    if ends := tokens.ends("cls_token", "sep_token"):
        parts["post_processor"] = _roberta_processor(*ends, prefix, trim)
    return parts


def _built_unigram(tokenizer: Json, settings: Json, tokens: _Tokens, name: str) -> Json:
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    model, pieces = tokenizer["model"], tokenizer["model"]["vocab"]
    unknown = _text(tokens.named["unk_token"])
    places = [number for number, (piece, _) in enumerate(pieces) if piece == unknown]
    if name == "BigBirdTokenizer":
        runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
        strip = {"type": "Strip", "strip_left": False, "strip_right": False}
        parts: Json = {
            "normalizer": {"type": "Sequence", "normalizers": [strip, runs]},
            "pre_tokenizer": spaces,
        }
        unk_id = next((number for number in places if pieces[number][1] == 0), 100)
        if ends := tokens.ends("cls_token", "sep_token"):
            parts["post_processor"] = _bert_processor(*ends)
    else:
        # The publisher's table of characters is kept, and nothing beside it.
        tables = [each for each in _steps(tokenizer.get("normalizer")) if _kind(each) == "Precompiled"]
        parts = {
            "normalizer": tables[0] if tables else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaces]},
        }
        unk_id = 3 if name == "XLMRobertaTokenizer" else next(iter(places), 0)
        if ends := tokens.ends("bos_token", "eos_token"):
            parts["post_processor"] = _xlm_processor(*ends)
    if (model.get("unk_id"), model.get("byte_fallback", False)) != (unk_id, False):
        parts["model"] = model | {"unk_id": unk_id, "byte_fallback": False}
    return parts


def _roberta_processor(cls: _Numbered, sep: _Numbered, prefix: bool, trim: bool) -> Json:
    return {
        **{"type": "RobertaProcessing", "sep": [*sep], "cls": [*cls]},
        **{"trim_offsets": trim, "add_prefix_space": prefix},
    }


def _special(token: _Numbered, kind: int = 0) -> Json:
    return {"SpecialToken": {"id": token[0], "type_id": kind}}


def _sequence(name: str, kind: int = 0) -> Json:
    return {"Sequence": {"id": name, "type_id": kind}}


def _template(single: list[Json], pair: list[Json], *tokens: _Numbered) -> Json:
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in tokens}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _bert_processor(cls: _Numbered, sep: _Numbered) -> Json:
    """[CLS] a [SEP] b [SEP], the second text and its end of type 1."""
    single = [_special(cls), _sequence("A"), _special(sep)]
    return _template(single, [*single, _sequence("B", 1), _special(sep, 1)], cls, sep)


def _xlm_processor(bos: _Numbered, eos: _Numbered) -> Json:
    """<s> a </s></s> b </s>, all of type 0."""
    single = [_special(bos), _sequence("A"), _special(eos)]
    return _template(single, [*single, _special(eos), _sequence("B"), _special(eos)], bos, eos)


def _added_tokens(tokenizer: Json, settings: Json, tokens: Json, name: str) -> list[Json]:
    """All added tokens, with their numbers and flags, as `transformers` has them.

    A class that builds its parts (`name`) takes those of tokenizer_config.json, where that lists any, in the place of
    tokenizer.json's; others take both, and the flags of the first. What is named there and not listed comes behind.
    """
    listed = settings.get("added_tokens_decoder")
    replaced = bool(name) and listed is not None
    added: Json = {} if replaced else {entry["content"]: entry for entry in tokenizer.get("added_tokens", [])}
    ids = _vocabulary(tokenizer) | {text: entry["id"] for text, entry in added.items()}
    more = (
        settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or MORE_TOKENS.get(name, ())
    )
    named = [*(tokens[key] for key in NAMED if key in tokens), *(more.values() if isinstance(more, dict) else more)]
    special = {_text(token) for token in named}

    def add(token: Any) -> None:
        text = _text(token)
        number = ids.setdefault(text, max(ids.values(), default=-1) + 1)
        flags = dict.fromkeys(FLAGS, False) | {"special": text in special}
        own = {key: token[key] for key in FLAGS if key in token} if isinstance(token, dict) else {}
        if "normalized" not in own:
            own["normalized"] = not (own.get("special") or text in special)
        added[text] = {"id": number, "content": text} | flags | own | ({"special": True} if text in special else {})

    for _, token in sorted((listed or {}).items(), key=lambda item: int(item[0])):
        add(token)
    for token in named:
        if _text(token) not in added:
            add(token)
    return sorted(added.values(), key=lambda entry: int(entry["id"]))


def _by_content(added: list[Json]) -> dict[str, Json]:
    return {entry["content"]: dict.fromkeys(FLAGS, False) | entry for entry in added}


def _vocabulary(tokenizer: Json) -> dict[str, int]:
    """The number of every token but the added ones."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # of pieces and their scores
        return {piece[0]: number for number, piece in enumerate(vocabulary)}
    return dict(vocabulary)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _kind(part: Any) -> str:
    """A part's type. Early files leave it out of the model, which is then known by its keys."""
    if not isinstance(part, dict):
        return ""
    return str(
        part.get("type") or ("BPE" if "merges" in part else "WordPiece" if "max_input_chars_per_word" in part else "")
    )


def _plain(part: Any) -> Any:
    """A part in one form, where there are several for the same."""
    kind = _kind(part)
    if kind == "BertProcessing":
        return _bert_processor(tuple(part["cls"]), tuple(part["sep"]))
    if kind == "ByteLevel":
        return {"trim_offsets": True, "use_regex": True} | part
    if kind == "Metaspace":
        scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
        return {
            "type": kind,
            "replacement": part["replacement"],
            "prepend_scheme": scheme,
            "split": part.get("split", True),
        }
    if kind == "Sequence" and "pretokenizers" in part:
        return {"type": kind, "pretokenizers": [_plain(each) for each in part["pretokenizers"]]}
    if kind == "Sequence" and len(part.get("normalizers", ())) == 1:
        return part["normalizers"][0]
    return part


def _steps(normalizer: Any) -> list[Json]:
    if not normalizer:
        return []
    return list(normalizer["normalizers"]) if _kind(normalizer) == "Sequence" else [normalizer]


def _lowers(normalizer: Any) -> bool:
    return any(
        _kind(each) == "Lowercase" or (_kind(each) == "BertNormalizer" and each.get("lowercase"))
        for each in _steps(normalizer)
    )


def _note(part: str, said: Any, counts: Any) -> Iterator[str]:
    said, counts = (value if isinstance(value, dict) else {"type": None} for value in (said, counts))
    differ = [key for key in counts if said.get(key) != counts[key]]

    def told(value: Json) -> str:
        return ", ".join(f"{key}={json.dumps(value.get(key), ensure_ascii=False):.60}" for key in differ)

    yield (
        f"{TOKENIZER} and {SETTINGS} contradict each other: the {part} has {told(said)} in the first, "
        f"{told(counts)} by the second, which counts, as for AutoTokenizer"
    )


def _note_tokens(_: str, said: list[Json] | None, counts: list[Json]) -> Iterator[str]:
    """Added tokens that are others by the second file; what it only adds is no contradiction."""
    listed, counted = _by_content(said or []), _by_content(counts)
    for text, entry in listed.items():
        other = counted.get(text)
        differ = [key for key in FLAGS if other and entry[key] != other[key]]
        if other and not differ:
            continue
        told = " and ".join(f"{key}={json.dumps(entry[key])}" for key in differ) or "is listed"
        yield (
            f"{TOKENIZER} and {SETTINGS} contradict each other: the added token {text!r} {'has ' * bool(differ)}{told} "
            "in the first and not by the second, which counts, as for AutoTokenizer"
        )
