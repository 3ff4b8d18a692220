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

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# The class of `transformers` that stands for a model whose folder names none. Others take tokenizer.json as it is.
CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "longformer": "RobertaTokenizer",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
}
AS_IT_IS = frozenset({"modernbert"})  # whatever class the folder names
WORDPIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"})
BYTE_LEVEL = frozenset({"RobertaTokenizer", "LongformerTokenizer"})
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
DEFAULT_TOKENS = {
    **dict.fromkeys(WORDPIECE, BERT_TOKENS),
    **dict.fromkeys(BYTE_LEVEL, ROBERTA_TOKENS),
    "MPNetTokenizer": ROBERTA_TOKENS | {"unk_token": "[UNK]"},
}
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
    read = [each for each in (path, folder / SETTINGS) if each.exists()]
    tokenizer = read_json(path)
    settings = read_json(folder / SETTINGS) if len(read) > 1 else {}
    try:
        changes = dict(_changes(tokenizer, settings, _class_name(config, settings)))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}, or {SETTINGS} beside it, is not a tokenizer's: {error!r}") from None
    notes = [_note(part, tokenizer.get(part), value) for part, value in changes.items() if part != "added_tokens"]
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
    kind = _kind(tokenizer.get("model"))
    fits = (name in WORDPIECE and kind == "WordPiece") or (name in BYTE_LEVEL and kind == "BPE")
    tokens = (DEFAULT_TOKENS[name] if fits else {}) | {key: settings[key] for key in NAMED if settings.get(key)}
    if fits:
        for part, value in _built(tokenizer, settings, tokens, name).items():
            if _plain(tokenizer.get(part)) != _plain(value):
                yield part, value
    if added := _added_tokens(tokenizer, settings, tokens):
        yield "added_tokens", [*tokenizer.get("added_tokens", []), *added]


def _built(tokenizer: Json, settings: Json, tokens: Json, name: str) -> Json:
    """The parts that a class makes of its settings."""
    parts: Json
    if name in WORDPIECE:
        parts = {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
                "strip_accents": settings.get("strip_accents"),
                "lowercase": settings.get("do_lower_case", True),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
        }
        prefix, trim = False, True
    else:
        prefix, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
        level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
        parts = {"normalizer": None, "pre_tokenizer": level}
    ids, cls, sep = _ids(tokenizer), _text(tokens["cls_token"]), _text(tokens["sep_token"])
    if cls in ids and sep in ids:
        roberta = name in BYTE_LEVEL or name == "MPNetTokenizer"
        ends = (cls, ids[cls]), (sep, ids[sep])
        parts["post_processor"] = _roberta_processor(*ends, prefix, trim) if roberta else _bert_processor(*ends)
    return parts


def _roberta_processor(cls: tuple[str, Any], sep: tuple[str, Any], prefix: bool, trim: bool) -> Json:
    return {
        **{"type": "RobertaProcessing", "sep": [*sep], "cls": [*cls]},
        **{"trim_offsets": trim, "add_prefix_space": prefix},
    }


def _bert_processor(cls: tuple[str, Any], sep: tuple[str, Any]) -> Json:
    """[CLS] a [SEP] b [SEP], the second text and its end of type 1."""

    def special(token: tuple[str, Any], kind: int) -> Json:
        return {"SpecialToken": {"id": token[0], "type_id": kind}}

    def text(name: str, kind: int) -> Json:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special(cls, 0), text("A", 0), special(sep, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special(sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (cls, sep)},
    }


def _added_tokens(tokenizer: Json, settings: Json, tokens: Json) -> list[Json]:
    """Those that the settings and the class name and tokenizer.json does not list, as `transformers` adds them: with
    the vocabulary's number, or behind all others."""
    listed = {entry["content"] for entry in tokenizer.get("added_tokens", [])}
    ids, added = _ids(tokenizer), []
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    said = [
        *(
            entry
            for _, entry in sorted((settings.get("added_tokens_decoder") or {}).items(), key=lambda it: int(it[0]))
        ),
        *(tokens[key] for key in NAMED if key in tokens),
        *(extra.values() if isinstance(extra, dict) else extra),
    ]
    for token in said:
        text = _text(token)
        if text in listed:
            continue
        listed.add(text)
        number = ids.setdefault(text, max(ids.values(), default=-1) + 1)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        own = {key: token[key] for key in flags if key in token} if isinstance(token, dict) else {}
        added.append({"id": number, "content": text} | flags | own)
    return added


def _ids(tokenizer: Json) -> dict[str, int]:
    """The number of every token."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # of pieces and their scores
        vocabulary = {piece[0]: number for number, piece in enumerate(vocabulary)}
    return vocabulary | {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}


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
    if _kind(part) == "BertProcessing":
        return _bert_processor(tuple(part["cls"]), tuple(part["sep"]))
    if _kind(part) == "ByteLevel":
        return {"trim_offsets": True, "use_regex": True} | part
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


def _note(part: str, said: Any, counts: Any) -> str:
    said, counts = (value if isinstance(value, dict) else {"type": None} for value in (said, counts))
    differ = [key for key in counts if said.get(key) != counts[key]]

    def told(value: Json) -> str:
        return ", ".join(f"{key}={json.dumps(value.get(key), ensure_ascii=False):.60}" for key in differ)

    return (
        f"{TOKENIZER} and {SETTINGS} contradict each other: the {part} has {told(said)} in the first, "
        f"{told(counts)} by the second, which counts, as for AutoTokenizer"
    )
