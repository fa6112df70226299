"""Accuracies of saved reward models, against Wilson's formula, simulation, and counts by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import norm
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from metaopt.nn.model_card import ModelCard
from metaopt.problems.reward_model.bench import COUNTS, SECTION, Scorer, evaluate, main, table
from metaopt.problems.reward_model.data.pair import Message, Pair
from metaopt.problems.reward_model.model.export import export
from metaopt.problems.reward_model.model.reward_model import RewardModel

CARD = ModelCard("tests", {"accuracy": 0.5})
WORDS = ["[UNK]", "<eos>", "[PAD]", "yes", "no", "what", "river", "Human:", "Assistant:"]
IDS = {"vocab_size": len(WORDS), "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 32, "initializer_range": 0.5}


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>", pad_token="[PAD]"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("models") / "llama"
    model = RewardModel.on(transformers.LlamaConfig(**SIZES, **IDS))
    export(model, tokenizer(), where, CARD)
    return str(where)


ROWS = [
    {"prompt": "what river", "chosen": "yes no " * n, "rejected": side, "subset": subset}
    for n, side, subset in [
        (1, "no", "hep-go"),
        (2, "yes", "hep-go"),
        (3, "yes river", "math-prm"),
        (1, "river what what", "mine"),
        (20, "river", "mine"),
    ]
]


def test_intervals_are_wilson_s():
    chosen, rejected = [1.0] * 30 + [0.0] * 10, [0.5] * 35 + [0.0] * 5
    part = evaluate(chosen, rejected, ["x"] * 40).pooled
    p, n, z = 0.75, 40, norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert part.accuracy == p
    assert (part.low, part.high) == pytest.approx((centre - half, centre + half))
    assert (part.pairs, part.ties) == (40, 5)
    best = evaluate([1.0] * 40, [0.0] * 40, ["x"] * 40).mean
    assert best.accuracy == best.high == 1
    assert 0.9 < best.low < 0.95


def test_sections_are_weighted_as_in_reward_bench():
    assert sum(COUNTS["Reasoning"].values()) == 2 * COUNTS["Reasoning"]["math-prm"]
    assert len(SECTION) == 23
    subsets = ["math-prm"] * 4 + ["hep-go"] * 2 + ["alpacaeval-easy"] * 2 + ["mine"] * 2
    right = [1, 1, 1, 0, 0, 0, 1, 0, 1, 1]
    result = evaluate([float(r) for r in right], [0.5] * 10, subsets)
    assert [part.name for part in result.sections] == ["Reasoning", "Chat", "mine"]
    reasoning = (984 * 0.75 + 164 * 0.0) / (984 + 164)
    assert result.sections[0].accuracy == pytest.approx(reasoning)
    assert result.mean.accuracy == pytest.approx((reasoning + 0.5 + 1) / 3)
    assert result.pooled.accuracy == 0.6
    assert [part.name for part in result.subsets] == [
        "math-prm",
        "hep-go",
        "alpacaeval-easy",
        "mine",
    ]


@pytest.mark.slow
def test_intervals_of_means_cover_the_truth():
    """300 benchmarks of three sections with 20 to 60 pairs, simulated."""
    draw, inside = np.random.default_rng(0), 0
    sizes, truth = (20, 40, 60), (0.9, 0.7, 0.5)
    names = [f"s{i}" for i, n in enumerate(sizes) for _ in range(n)]
    for _ in range(300):
        right = np.concatenate([draw.random(n) < p for n, p in zip(sizes, truth, strict=True)])
        mean = evaluate(right.astype(float).tolist(), [0.5] * 120, names).mean
        inside += mean.low <= np.mean(truth) <= mean.high
    assert 0.92 < inside / 300 < 0.985


def test_the_command_counts_what_the_model_prefers(folder, tmp_path, capsys):
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out.json"
    malformed = {"prompt": "what", "chosen": "yes", "rejected": "", "subset": "mine"}
    data.write_text("\n".join(map(json.dumps, [*ROWS, malformed])))
    main([folder, str(data), "--batch", "2", "--json", str(out)])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = tokenizer()
    right: dict[str, list[bool]] = {}
    for row in ROWS:
        prompt = f"\n\nHuman: {row['prompt']}\n\nAssistant: "
        ids = [words(prompt + row[s])["input_ids"][-32:] for s in ("chosen", "rejected")]
        with torch.no_grad():
            good, bad = (model(torch.tensor([i])).logits.item() for i in ids)
        right.setdefault(row["subset"], []).append(good > bad)
    report = json.loads(out.read_text())
    assert {p["name"]: p["accuracy"] for p in report["subsets"]} == {
        name: pytest.approx(np.mean(result)) for name, result in right.items()
    }
    assert (report["malformed"], report["cut"]) == (1, 1)
    printed = capsys.readouterr().out
    assert "1 malformed" in printed
    assert "1 of 10 texts were cut" in printed
    assert f"mean of sections    {report['mean']['accuracy']:.4f}" in printed


def test_a_model_of_another_kind_is_scored_as_transformers_scores_it(tmp_path):
    config = transformers.BertConfig(**SIZES, **IDS, num_labels=1)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    texts = ["yes no river", "what", "no no no no yes"]
    result = Scorer(str(tmp_path), batch=3)(texts)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in texts]
        expected = [model(i).logits.item() for i in ids]
    assert result == pytest.approx(expected, abs=1e-5)
    transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, **IDS, num_labels=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 outputs; a reward model has 1"):
        Scorer(str(tmp_path))


def test_texts_are_dialogues_or_in_the_chat_template(folder):
    score = Scorer(folder)
    pair = Pair((Message("user", "what"),), *((Message("assistant", w),) for w in ("yes", "no")))
    expected = "\n\nHuman: what\n\nAssistant: "
    assert score.texts(pair) == (f"{expected}yes", f"{expected}no")
    with pytest.raises(ValueError, match="no chat template"):
        score.texts(pair, chat=True)
    score.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    assert score.texts(pair, chat=True) == ("<user>what<assistant>yes", "<user>what<assistant>no")
    score.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"dialogue of row 7: roles must alternate; leave --chat"):
        score.texts(pair._replace(row=7), chat=True)


def test_a_plain_prompt_is_what_the_user_says(folder):
    texts = Scorer(folder).texts
    expected = "\n\nHuman: what\n\nAssistant: yes", "\n\nHuman: what\n\nAssistant: no"
    assert texts(Pair("what", "yes", "no")) == expected
    assert texts(Pair("\n\nHuman: what\n\nAssistant:", " yes", " no")) == expected
    assert texts(Pair("", *expected)) == expected


def test_a_chat_template_adds_the_special_tokens_alone(tmp_path):
    config = transformers.LlamaConfig(**SIZES, **(IDS | {"bos_token_id": 1}))
    words = tokenizer()
    words.bos_token = "<eos>"
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    words.chat_template = "<eos>{% for m in messages %} {{ m.content }}{% endfor %}"
    export(RewardModel.on(config), words, tmp_path, CARD)
    score, batches = Scorer(str(tmp_path), max_length=4), []
    score._model.register_forward_pre_hook(
        lambda _, given, kwargs: batches.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    pair = Pair("what river", "yes", "no no no")
    score(score.texts(pair, chat=True), templated=True)
    score(["what river"])
    assert batches == [[[1, 5, 6, 3], [1, 4, 4, 4]], [[1, 5, 6]]]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_model_without_a_trained_head_is_refused(kind, tmp_path):
    base = {"llama": transformers.LlamaForCausalLM, "bert": transformers.BertModel}[kind]
    base(base.config_class(**SIZES, **IDS, num_labels=1)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    missing = {"llama": "score.weight", "bert": "classifier.bias, classifier.weight"}[kind]
    with pytest.raises(ValueError, match=f"has no weights {missing} of .*ForSequenceClass"):
        Scorer(str(tmp_path))


def test_an_encoder_reads_its_first_token_of_long_texts_too(tmp_path):
    """RoBERTa's 32 positions have room for 29 tokens; the pad token's id is 2."""
    words = tokenizer()
    words.cls_token, words.sep_token = "[UNK]", "<eos>"
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[UNK] $A <eos>", special_tokens=[("[UNK]", 0), ("<eos>", 1)]
    )
    config = transformers.RobertaConfig(**SIZES, **IDS, num_labels=1)
    model = transformers.RobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    score = Scorer(str(tmp_path))
    result = score(["what " * 30 + "yes no " * 20])
    with torch.no_grad():
        expected = model(torch.tensor([[0, *[4, *[3, 4] * 13], 1]])).logits.item()
    assert result == [pytest.approx(expected, abs=1e-5)]
    assert score.cut == 1


def test_rewards_do_not_depend_on_the_batch(folder):
    texts = [row[side] for row in ROWS for side in ("chosen", "rejected")]
    one, all_of_them = (Scorer(folder, batch)(texts) for batch in (1, 10))
    assert one == pytest.approx(all_of_them, abs=1e-5)
    assert len(set(one)) > 5


def test_the_table_has_a_line_a_section():
    result = evaluate([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], ["a", "a", "b"])
    lines = table(result).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["a", "0.5000", "[0.0945,", "0.9055]", "2", "1"]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: evaluate([], [], []), "one or more pairs"),
        (lambda: evaluate([1.0], [1.0, 2.0], ["a"]), "got 1, 2 and 1"),
        (lambda: evaluate([1.0], [math.nan], ["a"]), r"pairs \[0\] have others"),
        (lambda: Scorer("nowhere", batch=0), "batch, max_length >= 1"),
        (lambda: Scorer("nowhere", device="cuda:99"), "device=cuda:99 cannot be used here"),
    ],
)
def test_wrong_inputs_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_mistakes_end_in_a_line_and_not_in_a_traceback(folder, tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"chosen": "yes"}))
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(ROWS[0]))
    for arguments, says in (
        ([folder, str(tmp_path / "none.json")], "there is no file or folder"),
        ([folder, str(data)], "there is no preference"),
        ([folder, str(good), "--chat"], "no chat template"),
        ([str(tmp_path / "none"), str(good)], "none"),
        (["nowhere", "nothing", "--device", "cuda:99"], "device=cuda:99 cannot be used here"),
        (["nowhere", "nothing", "--json", str(tmp_path / "no" / "x.json")], "cannot be written"),
        (["nowhere", "nothing", "--json", str(tmp_path)], "cannot be written"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_as_a_module(folder, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    done = subprocess.run(
        [sys.executable, "-m", "metaopt.problems.reward_model.bench", folder, str(data)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "mean of sections" in done.stdout


@pytest.mark.data
def test_llmbar_is_five_sections(folder, tmp_path):
    root = Path(os.environ.get("METAOPT_DATA", "")) / "preferences"
    if not (root / "llmbar_natural.json").is_file():
        pytest.skip(f"no LLMBar in {root}")
    out = tmp_path / "out.json"
    main([folder, "llmbar", "--batch", "64", "--json", str(out)])
    report = json.loads(out.read_text())
    assert [part["pairs"] for part in report["sections"]] == [100, 134, 92, 47, 46]
    mean = np.mean([part["accuracy"] for part in report["sections"]])
    assert report["mean"]["accuracy"] == pytest.approx(mean)
