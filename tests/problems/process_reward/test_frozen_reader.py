"""Frozen features against separate forward passes of transformers itself."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_models import BERT, CHAINS, GPT2, LLAMA, saved
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from metaopt.nn import precision
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.frozen_reader import FrozenReader
from metaopt.problems.process_reward.model.scorer import TransformerScorer


def separate(folder: Path, chain: Chain, layers: list[int], upto: int | None = None) -> Any:
    """Return hidden states by layer, log p of each token, and the ends of steps: one plain pass."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = (chain.prompt, *chain.steps[:upto])
    pieces = [tokenizer(f"{t} [STEP]", add_special_tokens=False)["input_ids"] for t in texts]
    ids = torch.tensor([[token for piece in pieces for token in piece]])
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    kind: Any = (
        AutoModel if "bert" in (folder / "config.json").read_text() else AutoModelForCausalLM
    )
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    states = [out.hidden_states[k][0] for k in layers]
    if kind is AutoModel:
        return states, None, ends
    log_p = out.logits[0, :-1].log_softmax(-1)
    return states, log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]], ends


def expected(folder: Path, chain: Chain, layers: list[int]) -> torch.Tensor:
    states, log_p, ends = separate(folder, chain, layers)
    rows = []
    for start, end in pairwise(ends.tolist()):
        pooled = [x for h in states for x in (h[end - 1], h[start:end].mean(0))]
        means = [log_p[start - 1 : end - 1].mean(), log_p[ends[0] - 1 : end - 1].mean()]
        rows.append(torch.cat([*pooled, torch.stack(means)]))
    return torch.stack(rows)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("batch", [4096, 1])
def test_shared_rows_equal_separate_passes(
    tmp_path: Path, config: dict[str, Any], batch: int
) -> None:
    folder, layers = saved(tmp_path, config), [0, 2, -1]
    reader = FrozenReader(
        folder, layers, ("end", "mean"), likelihood=True, dtype="float64", batch=batch
    )
    assert reader.shares_rows
    rows, _ = reader._rows([(chain.prompt, *chain.steps) for chain in CHAINS[::2] + CHAINS[3:]])
    assert [len(row.branches) for row in rows] == [3]
    for chain, x in zip(CHAINS, reader(CHAINS), strict=True):
        assert x.shape == (len(chain.steps), reader.width)
        torch.testing.assert_close(x, expected(folder, chain, layers), rtol=0, atol=1e-10)


def test_an_encoder_reads_each_step_without_those_after_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, BERT)
    reader = FrozenReader(folder, [1, -1], ("mean",), layout="prefix", dtype="float64")
    for chain, x in zip(CHAINS, reader(CHAINS), strict=True):
        for i in range(len(chain.steps)):
            states, _, ends = separate(folder, chain, [1, 3], upto=i + 1)
            pooled = torch.cat([h[ends[i] : ends[i + 1]].mean(0) for h in states])
            torch.testing.assert_close(x[i], pooled, rtol=0, atol=1e-10)


def test_a_step_beyond_the_limit_keeps_the_question_and_the_nearest_steps(tmp_path: Path) -> None:
    folder = saved(tmp_path, LLAMA)
    long = Chain("add two and three", ("two", "three and two is five", "so it is five"))
    whole = FrozenReader(folder, likelihood=True, dtype="float64")([long])[0]
    reader = FrozenReader(folder, likelihood=True, dtype="float64", max_length=13)
    x = reader([long, CHAINS[2]])[0]
    torch.testing.assert_close(x[:2], whole[:2], rtol=0, atol=1e-10)
    # 5 tokens of the question and 5 of the step leave room for 3 of the earlier steps.
    nearest = Chain("add two and three", ("is five", "so it is five"))
    again = FrozenReader(folder, likelihood=True, dtype="float64")([nearest])[0]
    torch.testing.assert_close(x[2, :17], again[1, :17], rtol=0, atol=1e-10)
    own = reader._rows([("add two and three", "five " * 20)])[0][0]
    assert len(own) == 13


def test_a_step_beyond_the_limit_is_scored_from_the_token_before_it(tmp_path: Path) -> None:
    reader = FrozenReader(saved(tmp_path, LLAMA), likelihood=True, dtype="float64", max_length=6)
    x = reader([Chain("add two and three", ("two " + "five " * 20,))])[0]
    words = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([words.convert_tokens_to_ids(["[STEP]", *["five"] * 4, "[STEP]"])])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        scores = -torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(x[0, -2], scores, rtol=0, atol=1e-10)


def test_a_step_with_nothing_before_it_is_refused(tmp_path: Path) -> None:
    reader = FrozenReader(saved(tmp_path, LLAMA), likelihood=True, separator="")
    with pytest.raises(ValueError, match=r"step 1 of .* has no token before it.*Give a question"):
        reader([Chain("", ("five is five",))])


@pytest.mark.parametrize("make", [FrozenReader, partial(TransformerScorer, CHAINS)])
def test_a_fetched_model_goes_by_its_name(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="Run `metaopt-fetch minilm`"):
        make("minilm", layout="prefix")
    folder = saved(tmp_path / "models" / "minilm", BERT)
    assert make("minilm", layout="prefix").source == folder


def test_emulated_bfloat16_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    precision.say_if_slow.cache_clear()
    FrozenReader(saved(tmp_path, LLAMA), dtype="bfloat16")
    precision.say_if_slow.cache_clear()
    assert "Use dtype=float32" in caplog.text


def test_code_of_a_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    custom = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(custom))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        FrozenReader(tmp_path)
    assert not (tmp_path / "run").exists()


def test_layers_above_the_last_one_read_are_not_computed(tmp_path: Path) -> None:
    folder = saved(tmp_path, LLAMA)
    first = FrozenReader(folder, [1], dtype="float64")
    assert len(first.backbone.layers) == 1
    expected = FrozenReader(folder, [1, 2, 3], dtype="float64")(CHAINS)
    for x, y in zip(first(CHAINS), expected, strict=True):
        torch.testing.assert_close(x, y[:, :16], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (BERT, {}, "layout=chain needs a causal model: BertModel .* sees the steps after"),
        (LLAMA, {"layers": [4]}, r"indices from -4 to 3, of the 3 layers .*; got \[4\]"),
        (LLAMA, {"layers": []}, r"layers=\[\] needs likelihood=true"),
        (LLAMA, {"pooling": ["last"]}, r"pooling must list end and mean; got \['last'\]"),
        (LLAMA, {"max_length": 65}, "max_length=65 must be 2 to 64"),
        (LLAMA, {"dtype": "int8"}, "dtype to be one of .*int8"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        FrozenReader(saved(tmp_path, config), **options)
