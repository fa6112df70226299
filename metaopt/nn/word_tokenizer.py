"""A tokenizer whose vocabulary is the words of some texts: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[STEP]")


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
