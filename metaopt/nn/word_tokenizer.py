"""Tokenizers of pretrained models, or of the words of some texts, which needs no download."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from metaopt.nn.adapters import refuse_adapter

SPECIAL = ("[PAD]", "[UNK]", "[STEP]")


def tokenizer_of(
    source: object, tokenizer: str | Path | PreTrainedTokenizerBase | None, texts: Iterable[str]
) -> PreTrainedTokenizerBase:
    """Return the given tokenizer, or that of a model, or one of the words of texts.

    Args:
        source: folder or id of a model; anything else, such as a configuration, has no tokenizer.
        tokenizer: the tokenizer, its folder or its id; `None` for the source's.
        texts: read where neither names a tokenizer.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    refuse_adapter(source)  # first, since an adapter brings no tokenizer
    named = source if tokenizer is None else tokenizer
    if isinstance(named, (str, Path)):
        return AutoTokenizer.from_pretrained(named, trust_remote_code=False)
    return word_tokenizer(texts)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word between white space, in sorted order.

    [PAD] is 0, [UNK] is any other word, and [STEP] can serve as a separator.

    Raises:
        ValueError: the texts have no word.
    """
    split = WhitespaceSplit()
    words = {word for text in set(texts) for word, _ in split.pre_tokenize_str(text)}
    if not words:
        raise ValueError("a word tokenizer needs texts with at least one word; got none.")
    names = [*SPECIAL, *sorted(words - set(SPECIAL))]
    model = WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        extra_special_tokens=["[STEP]"],
    )
