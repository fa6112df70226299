"""Weighted trainers of transformers: gradients against those of single rows, in plain torch."""

from __future__ import annotations

from functools import partial

import pytest

pytest.importorskip("accelerate")

import torch
import torch.nn.functional as F
from tiny import (
    WEIGHTS,
    Gradients,
    error,
    gradient,
    ids,
    model,
    process_losses,
    rows,
    settings,
    sft_losses,
    tokenizer,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from metaopt.trainers import (
    ResampledTrainer,
    Weighted,
    WeightedProcessRewardTrainer,
    WeightedTrainer,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def encoded(weights=WEIGHTS):
    """Return rows as a causal language model's trainer reads them."""

    def encode(row):
        start, whole = ids(row["prompt"]), ids(row["prompt"] + row["completion"], end=True)
        return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}

    return rows("sft", weights).map(encode)


def step(trainer, net, data, folder, more=None, **options):
    kept = Gradients()
    made = trainer(
        net, args=TrainingArguments(**settings(folder, **options)), train_dataset=data,
        processing_class=tokenizer(), callbacks=[kept],
        **{"data_collator": DataCollatorForTokenClassification(tokenizer())} | (more or {}),
    )  # fmt: skip
    made.train()
    return kept.steps


def process_step(trainer, net, data, folder, **options):
    made = partial(trainer, step_separator=" [STEP]")
    return step(made, net, data, folder, **options)


def test_a_language_models_gradient_is_the_weighted_sum_of_single_rows(tmp_path):
    net = model()
    whole = gradient(net, sft_losses(net, rows("sft")), WEIGHTS)
    unweighted = gradient(net, sft_losses(net, rows("sft")), [1.0] * 8)
    assert error(unweighted, whole) > 0.5
    for options in (
        {},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ):
        assert (
            error(step(WeightedTrainer, model(), encoded(), tmp_path, **options)[0], whole) < 1e-5
        )
        (rounded,) = step(WeightedTrainer, model(), encoded(), tmp_path, bf16=True, **options)
        assert error(rounded, whole) < 0.1


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_process_reward_models_gradient_is_the_weighted_sum_of_single_rows(accumulate, tmp_path):
    net, data = model("tokens"), rows("process")
    whole = gradient(net, process_losses(net, data), WEIGHTS)
    options = {
        "per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate,
    }  # fmt: skip
    trainer = WeightedProcessRewardTrainer
    (grad,) = process_step(trainer, model("tokens"), data, tmp_path, **options)
    assert error(grad, whole) < 1e-5
    (grad,) = process_step(trainer, model("tokens"), data, tmp_path, bf16=True, **options)
    assert error(grad, whole) < 0.1


@pytest.mark.parametrize("kind", ["causal", "tokens"])
def test_weights_of_one_are_the_plain_trainer_to_the_bit(kind, tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1}
    data = encoded([1.0] * 8)
    if kind == "tokens":
        data = data.map(lambda row: {"labels": [min(x, 1) for x in row["labels"]]})
    for precision in ({}, {"bf16": True}):
        ours, theirs = (
            step(trainer, model(kind), data, tmp_path, **options, **precision)
            for trainer in (WeightedTrainer, Trainer)
        )
        assert len(ours) == 4
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_of_zero_have_no_gradient(tmp_path):
    assert not step(WeightedTrainer, model(), encoded([0.0] * 8), tmp_path)[0].any()


def bert(kind):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return kind(config)


def test_losses_that_a_model_writes_out_itself_are_weighted(tmp_path):
    """Bert's heads do not use the loss functions of transformers."""
    data = encoded().map(lambda row: {"labels": [min(x, 1) for x in row["labels"]]})
    count = sum(x >= 0 for row in data for x in row["labels"])
    net = bert(BertForTokenClassification)

    def loss(row):
        logits = net(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        return F.cross_entropy(logits, torch.tensor(row["labels"]), reduction="sum") / count

    whole = gradient(net, [partial(loss, row) for row in data], WEIGHTS)
    assert error(step(WeightedTrainer, net, data, tmp_path)[0], whole) < 1e-5
    data = encoded().map(lambda row, i: {"labels": i % 2}, with_indices=True)
    data = data.remove_columns(["prompt", "completion"])
    net = bert(BertForSequenceClassification)

    def sequence_loss(row):
        logits = net(input_ids=torch.tensor([row["input_ids"]])).logits
        return F.cross_entropy(logits, torch.tensor([row["labels"]])) / len(data)

    from transformers import DataCollatorWithPadding

    whole = gradient(net, [partial(sequence_loss, row) for row in data], WEIGHTS)
    more = {"data_collator": DataCollatorWithPadding(tokenizer())}
    for size in (8, 2):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        (grad,) = step(WeightedTrainer, net, data, tmp_path, more, **options)
        assert error(grad, whole) < 1e-5


def test_a_loss_of_the_users_takes_the_place_of_the_models(tmp_path):
    def squares(outputs, labels, num_items_in_batch=None):
        return (outputs.logits**2).sum((1, 2)).mean()

    net = model("tokens")
    data = encoded().map(lambda row: {"labels": [0] * len(row["input_ids"])})

    def loss(row):
        return (net(input_ids=torch.tensor([row["input_ids"]])).logits ** 2).sum() / 8

    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    (grad,) = step(
        WeightedTrainer, model("tokens"), data, tmp_path, {"compute_loss_func": squares}, **options
    )
    whole = gradient(net, [partial(loss, row) for row in data], WEIGHTS)
    assert error(grad, 8 * whole) < 1e-5  # a loss of the user's is not divided by the steps


class Mine(Weighted, Trainer):
    """The loss is that of the model."""


def test_a_loss_inside_of_the_model_is_weighted_or_refused(tmp_path):
    net = model()
    whole = gradient(net, sft_losses(net, rows("sft")), WEIGHTS)
    assert error(step(Mine, model(), encoded(), tmp_path)[0], whole) < 1e-5
    with pytest.raises(ValueError, match="Mine has weights without effect"):
        step(Mine, model(), encoded(), tmp_path, bf16=True)


def test_rows_may_come_from_a_torch_data_set(tmp_path):
    columns = ("input_ids", "labels", "weight")
    listed = [{k: row[k] for k in columns} for row in encoded()]
    net = model()
    whole = gradient(net, sft_losses(net, rows("sft")), WEIGHTS)
    assert error(step(WeightedTrainer, model(), listed, tmp_path)[0], whole) < 1e-5
    assert step(ResampledTrainer, model(), listed, tmp_path)[0].any()
    bare = [{k: row[k] for k in columns[:2]} for row in listed]
    with pytest.raises(ValueError, match="8 of 8 rows of a batch have no 'weight'"):
        step(WeightedTrainer, model(), bare, tmp_path)


def test_models_and_rows_of_other_kinds_are_refused(tmp_path):
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="loss of T5ForConditionalGeneration cannot be computed"):
        step(WeightedTrainer, t5, encoded(), tmp_path)
    with pytest.raises(ValueError, match="has no column 'weight'"):
        step(WeightedTrainer, model(), encoded(None), tmp_path)
    with pytest.raises(ValueError, match=r"2 labels apart; LlamaForSequence.* num_labels=1"):
        process_step(WeightedProcessRewardTrainer, model("reward"), rows("process"), tmp_path)
    wrong = rows("process").map(lambda row: {"completions": row["completions"][1:]})
    with pytest.raises(ValueError, match="one label for each of 'completions'"):
        process_step(WeightedProcessRewardTrainer, model("tokens"), wrong, tmp_path)
    soft = rows("process").to_list()
    from datasets import Dataset

    soft = Dataset.from_list([row | {"labels": [0.5] * len(row["labels"])} for row in soft])
    with pytest.raises(ValueError, match=r"'labels' must be true, false, .*; got 0\.5"):
        process_step(WeightedProcessRewardTrainer, model("tokens"), soft, tmp_path)


def test_rows_whose_labels_are_cut_off_are_counted(tmp_path):
    args = TrainingArguments(**settings(tmp_path))
    with pytest.warns(UserWarning, match="of 8 rows have no label within max_length"):
        made = WeightedProcessRewardTrainer(
            model("tokens"), args, train_dataset=rows("process"), processing_class=tokenizer(),
            max_length=5, step_separator=" [STEP]",
        )  # fmt: skip
    assert 0 < len(made.train_dataset) < 8
    assert all(len(row["input_ids"]) <= 5 for row in made.train_dataset)


def test_resampled_rows_reach_a_plain_trainer_without_their_weights(tmp_path):
    data = encoded([0.0, 8.0, *[0.0] * 6]).select_columns(["input_ids", "labels", "weight"])
    for remove in (True, False):
        options = {"remove_unused_columns": remove}
        (grad,) = step(ResampledTrainer, model(), data, tmp_path, **options)
        net = model()
        (loss,) = sft_losses(net, rows("sft").select([1]))
        assert error(grad, gradient(net, [loss], [1.0])) < 1e-5
