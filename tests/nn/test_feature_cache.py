"""Features on disk: computed once, whatever kills, damages or shares their folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig

from metaopt.nn.feature_cache import SHARD, FeatureCache, fingerprint
from metaopt.nn.word_tokenizer import word_tokenizer

ITEMS = [(f"question {i // 3}", f"answer {i}") for i in range(SHARD + 40)]


class Reader:
    """Features of the shape (letters of the answer, 2), and how many items it has read."""

    def __init__(self, scale: float = 1 / 3) -> None:
        self.read: list[tuple[str, str]] = []
        self.scale = scale

    def __call__(self, items: Sequence[Any]) -> list[Tensor]:
        self.read += items
        codes = [torch.tensor([[ord(c), ord(q[-1])] for c in a]) for q, a in items]
        return [self.scale * x.float() for x in codes]


def test_a_second_run_computes_nothing_and_gets_the_same_bits(tmp_path: Path) -> None:
    reader, nobody = Reader(), Reader()
    first = FeatureCache(tmp_path, {"layer": 1})([*ITEMS, ITEMS[0]], reader)
    assert reader.read == ITEMS  # in their order, the repeated one once
    again = FeatureCache(tmp_path, {"layer": 1})(ITEMS[::-1], nobody)
    assert not nobody.read
    for item, row, other in zip(ITEMS, first, again[::-1], strict=False):
        expected = reader([item])[0]
        assert row.dtype == torch.float32
        assert torch.equal(row, other)
        assert torch.equal(row, expected.half().float())
    FeatureCache(tmp_path, {"layer": 2})(ITEMS[:5], nobody)
    assert nobody.read == ITEMS[:5]


def test_what_a_killed_run_left_is_completed(tmp_path: Path) -> None:
    def killed(items: Sequence[Any]) -> list[Tensor]:
        if len(items) < SHARD:
            raise KeyboardInterrupt
        return Reader()(items)

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, {})(ITEMS, killed)
    reader = Reader()
    FeatureCache(tmp_path, {})(ITEMS, reader)
    assert reader.read == ITEMS[SHARD:]


@pytest.mark.parametrize("at", [20, -20])  # in the header, which no longer parses, and in the data
def test_a_torn_file_is_named_and_computed_again(tmp_path: Path, at: int) -> None:
    cache = FeatureCache(tmp_path, {})
    before = cache(ITEMS, Reader())
    file = max(cache.folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:at])
    reader = Reader()
    with pytest.warns(UserWarning, match=f"{file} is damaged"):
        after = FeatureCache(tmp_path, {})(ITEMS, reader)
    assert len(reader.read) == SHARD
    assert all(map(torch.equal, before, after))
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the right length
    with pytest.warns(UserWarning, match="not the hash of its content"):
        assert all(map(torch.equal, before, FeatureCache(tmp_path, {})(ITEMS, reader)))


def test_features_that_float16_does_not_hold_are_refused(tmp_path: Path) -> None:
    for scale in (1e4, float("nan")):
        cache = FeatureCache(tmp_path, {"scale": str(scale)})
        with pytest.raises(ValueError, match=r"features of 2 of 2 items .* cache=null"):
            cache(ITEMS[:2], Reader(scale))
        assert not list(cache.folder.glob("*.safetensors*"))


def test_two_at_once_compute_each_item_once(tmp_path: Path) -> None:
    readers = [Reader(), Reader()]
    with ThreadPoolExecutor() as pool:  # the lock keeps threads apart as it does processes
        results = list(pool.map(lambda r: FeatureCache(tmp_path, {})(ITEMS, r), readers))
    assert sorted(readers[0].read + readers[1].read) == sorted(ITEMS)
    assert all(map(torch.equal, *results))


SCRIPT = """
import sys, time, torch
from metaopt.nn.feature_cache import FeatureCache
def slow(items):
    time.sleep(0.2)
    print(len(items), flush=True)
    return [torch.full((2,), float(text)) for text, in items]
items = [(str(i),) for i in range(int(sys.argv[2]), int(sys.argv[2]) + 600)]
assert [int(x[0]) for x in FeatureCache(sys.argv[1], {})(items, slow)] == [int(t) for t, in items]
"""


@pytest.mark.slow
def test_two_processes_whose_items_overlap(tmp_path: Path) -> None:
    def start(first: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(first)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    programs = [start(0), start(300)]
    said = [program.communicate(timeout=100)[0] for program in programs]
    assert not any(program.returncode for program in programs)
    assert sum(int(line) for text in said for line in text.split()) == 900


def tiny(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    return AutoModel.from_config(BertConfig(**shape, intermediate_size=4, vocab_size=8, **more))


@pytest.mark.slow
def test_a_fingerprint_is_of_all_that_features_depend_on(tmp_path: Path) -> None:
    words = word_tokenizer(["a b"])
    folder = tmp_path / "a"
    tiny().save_pretrained(folder)
    words.save_pretrained(folder)

    def read(folder: Path) -> str:
        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        return fingerprint(model, tokenizer)

    expected = read(folder)
    shutil.move(folder, tmp_path / "b")
    assert read(tmp_path / "b") == expected
    # How a text was cut and padded last is of a call, and not of the tokenizer.
    words.backend_tokenizer.enable_truncation(3)
    words.backend_tokenizer.enable_padding(length=3)
    words.save_pretrained(tmp_path / "b")
    assert "Fixed" in (tmp_path / "b" / "tokenizer.json").read_text()
    assert read(tmp_path / "b") == expected
    others = [
        (tiny(1), words),
        (tiny(layer_norm_eps=1e-3), words),
        (tiny().bfloat16(), words),
        (tiny(), word_tokenizer(["a c"])),
    ]
    assert len({expected, *(fingerprint(*pair) for pair in others)}) == 5
