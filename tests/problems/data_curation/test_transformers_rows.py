"""A transformers model under TRL's losses as a task: refusals, metrics, adapters, folders."""

import json
import re
from functools import partial

import pytest
import torch
from tiny_rows import GPT2, KINDS, LLAMA, demonstrations, preferences, steps, task, turn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from metaopt.data.weights_file import content_hash
from metaopt.nn.transformers_model import TransformersModel
from metaopt.nn.word_tokenizer import word_tokenizer
from metaopt.problems.data_curation import SFT, ProcessReward, Reward
from metaopt.problems.data_curation.rows import rows
from metaopt.problems.domain_reweighting.task import Identified, Texts, check_task

ROW = demonstrations(1)[0]
AUTO = {
    "sft": AutoModelForCausalLM, "dpo": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification, "process_reward": AutoModelForTokenClassification,
}  # fmt: skip


def start(made):
    return made.init(torch.Generator())[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_loss_does_not_depend_on_the_batch(kind):
    made = task(kind)
    together = made.row_losses(start(made), torch.arange(8), train=False)
    rows = (torch.tensor([i]) for i in range(8))
    alone = torch.cat([made.row_losses(start(made), row, train=False) for row in rows])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=1e-6)
    assert len({round(x, 4) for x in together.tolist()}) > (1 if kind != "dpo" else 0)


def test_dpo_starts_at_log_two_and_its_reference_stays():
    made = task("dpo")
    params = start(made)
    loss = made.row_losses(params, torch.arange(8))
    torch.testing.assert_close(loss, torch.full((8,), 2.0).log(), rtol=1e-4, atol=1e-4)
    moved = {k: v + 0.1 * torch.ones_like(v) for k, v in params.items()}
    assert float((made.row_losses(moved, torch.arange(8)) - loss).abs().max()) > 1e-2
    torch.testing.assert_close(made.row_losses(start(made), torch.arange(8)), loss)


@pytest.mark.parametrize(
    ("kind", "given", "options", "sentence"),
    [
        ("sft", [ROW, {"prompt": "a"}], {}, "train, row 2: needs the columns prompt and completi"),
        ("sft", [{"prompt": "a b c d", "completion": " e"}], {"objective": SFT(max_length=3)},
         "train, row 1: keeps nothing of its completion within max_length=3; raise it"),
        ("sft", [{"messages": [turn("user", "a"), turn("assistant", "b")]}],
         {"tokenizer": word_tokenizer(["a b"])}, "the tokenizer has no chat template"),
        ("sft", [{"text": "a"}], {"tokenizer": word_tokenizer(["a"])}, "no token to predict"),
        ("reward", preferences(2), {"objective": Reward(max_length=2)},
         "2 rows, train, row 1, train, row 2: is longer than max_length=2; raise it"),
        ("process_reward", steps(1), {"objective": ProcessReward(max_length=2)},
         "keeps no step within max_length=2; .* got a first step that ends after 3 t"),
        ("process_reward", [{"prompt": "a", "completions": ["b", "c"], "labels": [1]}], {},
         "train, row 1: 'labels' must have one label for each of 'completions'; got 1 labels of 2"),
        ("sft", None, {"source": {**LLAMA, "vocab_size": 3}}, "vocab_size=3, fewer than the"),
        ("sft", [{"text": "one " * 40}], {"source": GPT2, "objective": SFT()},
         "train, row 1: is longer than the 32 positions that the model has learned; set"),
        ("sft", None, {"source": GPT2, "trains": "head"}, "is tied to its embeddings"),
        ("sft", None, {"trains": "head", "lora": {}}, "trains=head leaves nothing to adapt"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(kind, given, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        task(kind, given=given, **options)


def test_a_tokenizer_that_is_too_large_or_cannot_pad_is_refused(tmp_path):
    words = word_tokenizer(["a b"])
    words.pad_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end of text"):
        task("sft", tokenizer=words)
    task("sft").model.merged(start(task("sft"))).save_pretrained(tmp_path)
    words = word_tokenizer(map(str, range(90)))
    with pytest.raises(ValueError, match="the tokenizer has ids up to 92, and LlamaForCausalLM"):
        task("sft", source=tmp_path, tokenizer=words)


def test_rows_that_cannot_be_trained_on_can_be_left_out():
    with pytest.warns(UserWarning, match=re.escape("train: 1 of 9 rows are left out:\n  train, ")):
        with pytest.warns(UserWarning, match="meta: 1 of 9"):
            made = task("sft", given=[*demonstrations(), {"prompt": "x"}], strict=False)
    assert made.domain.shape == (8,)
    assert len(made.examples) == 8


def test_examples_are_identified_by_the_columns_that_they_have():
    made = task("sft")
    assert isinstance(made, Identified)
    check_task(made)
    assert made.hashed_columns == ("prompt", "completion")
    assert made.examples[3].hash == content_hash(demonstrations()[3], ("prompt", "completion"))
    assert made.examples[3].row == 4


def test_a_rater_reads_the_columns_that_a_row_has():
    made = task("sft")
    assert isinstance(made, Texts)
    row = demonstrations()[0]
    assert made.row_texts[0] == "\n".join(row[name] for name in made.text_columns)


def test_domains_come_from_sources_files_or_a_column(tmp_path):
    by_source = rows({"a": [ROW], "b": [ROW] * 2}, meta=[ROW])
    assert by_source.domain == ("a", "b", "b")
    for name in ("c", "d"):
        line = json.dumps({"question": ROW["prompt"], "completion": " x", "kind": name.upper()})
        (tmp_path / f"{name}.jsonl").write_text(line)
    named = {"columns": {"prompt": "question"}}
    assert rows(tmp_path, meta=tmp_path, **named).domain == ("c", "d")
    by_column = rows(tmp_path, meta=tmp_path, domain="kind", **named)
    assert by_column.domain == ("C", "D")
    assert by_column.train[0].value["prompt"] == ROW["prompt"]
    with pytest.raises(ValueError, match="train, row 1: has no domain in its column 'kind'"):
        rows([ROW], meta=[ROW], domain="kind")
    with pytest.raises(ValueError, match="leave one of them out"):
        rows({"a": [ROW]}, meta=[ROW], domain="kind")
    with pytest.raises(FileNotFoundError, match=r"meta=nowhere\.jsonl"):
        rows([ROW], meta="nowhere.jsonl")


def test_held_out_rows_that_are_trained_on_are_counted():
    with pytest.warns(UserWarning, match="held_out: 1 of 2 rows are training or meta rows"):
        task("sft", held_out=[ROW, {"prompt": "one", "completion": " seven seven"}])


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_held_out_rows(kind):
    made = task(kind)
    made._held_out = made._meta  # the same rows in batches of another size
    made.evaluation_batch = 3
    params = {k: v + 0.05 * torch.ones_like(v) for k, v in start(made).items()}
    metrics = made.metrics(params)
    losses = made.meta_losses(params, torch.arange(8), train=False)
    torch.testing.assert_close(metrics["loss"], losses.mean(), rtol=1e-5, atol=1e-6)
    share = float(metrics[made.objective.accuracy])
    if kind in ("dpo", "reward"):
        wrong_side = torch.tensor(2.0).log() if kind == "dpo" else losses.new_tensor(0.6931472)
        assert share == pytest.approx(float((losses < wrong_side).float().mean()))
    assert 0 <= share <= 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lora": {"r": 2, "target_modules": ["q_proj"]}},
                                     {"trains": "head"}], ids=["all", "lora", "head"])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_folder_gives_the_same_losses_in_transformers(kind, options, tmp_path):
    if "lora" in options:
        pytest.importorskip("peft")
    made = task(kind, **options)
    base = {id(p) for p in made.model._module.parameters() if p.device.type != "meta"}
    params = {k: v + 0.1 * torch.randn_like(v) for k, v in start(made).items()}
    text = made.deliver_models({"reweighted": params}, {"train": 1.0}, tmp_path)
    assert "read back" in text
    again = AUTO[kind].from_pretrained(tmp_path / "model")
    batch = made._meta.take(torch.arange(8))
    losses = made.objective.losses(again(**batch.inputs).logits, batch)
    torch.testing.assert_close(losses, made.meta_losses(params, torch.arange(8), train=False))
    # What is frozen is held once, whatever was called.
    assert base == {id(p) for p in made.model._module.parameters() if p.device.type != "meta"}
    assert bool(base) == bool(options)
    if options and kind != "sft":
        assert all("lora" in k or k.startswith(("score", "lm_head")) for k in params)


def test_a_classifiers_head_is_trained_beside_its_adapters():
    pytest.importorskip("peft")
    made = partial(TransformersModel, source=LLAMA, lora={"r": 2, "target_modules": ["q_proj"]})
    names = made("sequence", ["one two"]).init()
    assert "score.weight" in names
    assert all("lora_" in k for k in made("causal", ["one two"]).init())
