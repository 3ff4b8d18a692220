"""Small tokenizers of the three kinds that published text encoders have, each made in an instant and saved.

    save_wordpiece   BERT, DistilBERT, ELECTRA, MPNet     [CLS] a [SEP] b [SEP], token types 0 and 1
    save_byte_bpe    RoBERTa, Longformer                  <s> a </s></s> b </s>, no token types
    save_unigram     XLM-RoBERTa, CamemBERT, Big Bird     the same, with spaces marked as ▁

Each returns the size of the vocabulary.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "I saw a saw that could not see, and the quick brown fox jumped over the lazy dog.",
    "Attention is all you need: a query looks at the keys and takes of their values.",
    "Wovon man nicht sprechen kann, darüber muß man schweigen; naïve cafés, Ελληνικά, 東京 & 🦊.",
    "The saw lies beside the fox; the fox saw nothing. 3.14159, e-mail, don't, U.S.A.",
]


def save_wordpiece(folder: Path, *, types: bool = True) -> int:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = {letter for word in words for letter in word}
    pieces = sorted(word for word in words if len(word) > 3) + sorted(letters) + sorted(f"##{it}" for it in letters)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(vocabulary[:5])
    second = ":1" if types else ""
    tokenizer.post_processor = _pair_template(
        tokenizer, "[CLS] $A [SEP]", f"[CLS] $A [SEP] $B{second} [SEP]{second}", ["[CLS]", "[SEP]"]
    )
    return _save(tokenizer, folder)


def save_byte_bpe(folder: Path, size: int = 320) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    sep, cls = (("</s>", 2), ("<s>", 0))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    return _save(tokenizer, folder)


def save_unigram(folder: Path) -> int:
    normalizer = normalizers.NFKC()
    splitter = pre_tokenizers.Metaspace()
    words = {word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = {letter for word in words for letter in word}
    scores = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    scores |= dict.fromkeys(sorted(letters), -8.0)
    scores |= {word: -4.0 - len(word) / 8 for word in sorted(words - letters)}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = _pair_template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
    return _save(tokenizer, folder)


def _pair_template(tokenizer: Tokenizer, single: str, pair: str, special: list[str]) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
    )


def _save(tokenizer: Tokenizer, folder: Path) -> int:
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size(with_added_tokens=True))
