"""TRL's trainers with weights: gradients against those of single rows, in plain torch."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("trl")

import torch
from datasets import DatasetDict
from tiny import (
    WEIGHTS,
    Gradients,
    dpo_losses,
    error,
    gradient,
    model,
    reward_losses,
    rows,
    settings,
    sft_losses,
    tokenizer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from metaopt.trainers import (
    ResampledDPOTrainer,
    ResampledSFTTrainer,
    WeightedDPOTrainer,
    WeightedRewardTrainer,
    WeightedSFTTrainer,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TRAINERS = {
    "sft": (WeightedSFTTrainer, SFTTrainer, SFTConfig),
    "dpo": (WeightedDPOTrainer, DPOTrainer, DPOConfig),
    "reward": (WeightedRewardTrainer, RewardTrainer, RewardConfig),
}


def make(kind, net, data, folder, plain=False, trainer=None, more=None, **options):
    """Return a trainer and what keeps its gradients."""
    weighted, unweighted, config = TRAINERS[kind]
    kept, more = Gradients(), dict(more or {})
    if kind == "dpo" and "peft_config" not in more:
        more.setdefault("ref_model", model(seed=1))
    made = (trainer or (unweighted if plain else weighted))(
        net, args=config(**settings(folder, **options)), train_dataset=data,
        processing_class=tokenizer(), callbacks=[kept], **more,
    )  # fmt: skip
    return made, kept


def step(*args, **options):
    """Return the gradients that the optimizer is given, step by step."""
    made, kept = make(*args, **options)
    made.train()
    return kept.steps


def expected(kind, net, data, weights=WEIGHTS, **options):
    losses = {
        "sft": lambda: sft_losses(net, data),
        "dpo": lambda: dpo_losses(net, data, model(seed=1), **options),
        "reward": lambda: reward_losses(net, data, **options),
    }[kind]()
    return gradient(net, losses, weights)


def net_of(kind, **options):
    return model("reward" if kind == "reward" else "causal", **options)


@pytest.mark.parametrize(
    ("kind", "options", "formula"),
    [
        ("sft", {}, {}),
        ("dpo", {}, {}),
        ("dpo", {"loss_type": ["ipo"]}, {"ipo": True}),
        ("dpo", {"precompute_ref_log_probs": True}, {}),
        ("reward", {}, {}),
        ("reward", {"center_rewards_coefficient": 0.1}, {"centre": 0.1}),
    ],
)
def test_the_gradient_is_the_weighted_sum_of_single_rows(kind, options, formula, tmp_path):
    net, data = net_of(kind), rows(kind)
    whole = expected(kind, net, data, **formula)
    assert error(step(kind, net, data, tmp_path, **options)[0], whole) < 1e-5
    (rounded,) = step(kind, net_of(kind), data, tmp_path, bf16=True, **options)
    assert error(rounded, whole) < 0.1
    assert error(expected(kind, net, data, [1.0] * 8, **formula), whole) > 0.5


@pytest.mark.parametrize("kind", TRAINERS)
def test_weights_of_one_are_the_plain_trainer_to_the_bit(kind, tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1}
    data = rows(kind, [1.0] * 8)
    for precision in ({}, {"bf16": True}):
        ours = step(kind, net_of(kind), data, tmp_path, **options, **precision)
        theirs = step(kind, net_of(kind), data, tmp_path, plain=True, **options, **precision)
        assert len(ours) == 4
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", TRAINERS)
def test_weights_of_zero_have_no_gradient(kind, tmp_path):
    (grad,) = step(kind, net_of(kind), rows(kind, [0.0] * 8), tmp_path)
    assert not grad.any()


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"dataloader_num_workers": 2},
        {"train_sampling_strategy": "group_by_length"},
        {"remove_unused_columns": False},
        {"average_tokens_across_devices": False},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
    ids=lambda options: "-".join(options),
)
def test_settings_of_the_trainer_keep_the_gradient(options, tmp_path):
    net, data = model(), rows("sft")
    (grad,) = step("sft", net, data, tmp_path, **options)
    assert error(grad, expected("sft", model(), data)) < 1e-5


def test_accumulated_pairs_have_the_gradient_of_the_whole_batch(tmp_path):
    for kind in ("dpo", "reward"):
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        (grad,) = step(kind, net_of(kind), rows(kind), tmp_path, **options)
        assert error(grad, expected(kind, net_of(kind), rows(kind))) < 1e-5


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_adapters_are_trained_with_weights(kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    made, kept = make(kind, net_of(kind), rows(kind), tmp_path, more={"peft_config": lora})
    torch.manual_seed(0)
    adapted = get_peft_model(net_of(kind), lora)
    adapted.load_state_dict(made.model.state_dict())
    made.train()
    losses = (
        sft_losses(adapted, rows(kind))
        if kind == "sft"
        else dpo_losses(adapted, rows(kind), net_of(kind))
    )
    whole = gradient(adapted, losses, WEIGHTS)
    trained = torch.cat([
        torch.full((p.numel(),), float(p.requires_grad)) for p in adapted.parameters()
    ]).bool()  # fmt: skip
    assert error(kept.steps[0], whole[trained]) < 1e-5


def test_evaluation_needs_no_weights_and_ignores_those_that_are_there(tmp_path):
    for kind in TRAINERS:
        both = {"plain": rows(kind, None, seed=3), "weighted": rows(kind, seed=3)}
        made, _ = make(
            kind, net_of(kind), rows(kind), tmp_path, more={"eval_dataset": both},
            eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        made.train()
        losses = [
            next(x[f"eval_{name}_loss"] for x in made.state.log_history if f"eval_{name}_loss" in x)
            for name in both
        ]
        assert losses[0] == losses[1]
        later = made.evaluate(rows(kind, seed=3))["eval_loss"]
        assert later == pytest.approx(losses[0])


def test_the_loss_that_is_logged_has_no_weights(tmp_path):
    made, _ = make("sft", model(), rows("sft"), tmp_path)
    plain, _ = make("sft", model(), rows("sft"), tmp_path, plain=True)
    logged = [trainer.train().training_loss for trainer in (made, plain)]
    assert logged[0] == logged[1]


def test_weights_that_would_be_lost_or_wrong_are_refused(tmp_path):
    def refused(kind, match, data=None, **options):
        with pytest.raises(ValueError, match=match):
            make(kind, net_of(kind), rows(kind) if data is None else data, tmp_path, **options)

    for strategy in ("wrapped", "bfd"):
        refused("sft", "packing=True", packing=True, packing_strategy=strategy, max_length=16)
    refused("sft", "padding_free=True", padding_free=True, max_length=None)
    refused("dpo", "loss_type='aot' sorts", loss_type=["sigmoid", "aot"])
    refused("dpo", "loss_type='aot_unpaired' sorts", loss_type="aot_unpaired")
    refused("sft", "use_liger_kernel=True", use_liger_kernel=True)
    refused("sft", "has no column 'weight', but prompt, completion", rows("sft", None))
    refused(
        "sft", "is a DatasetDict; give one of its splits, train", DatasetDict(train=rows("sft"))
    )
    for bad in (-1.0, math.nan, math.inf):
        refused("sft", "must be finite and >= 0; 1 of 8", rows("sft", [bad, *WEIGHTS[1:]]))
    refused("sft", "1 of 8 rows have no 'weight'", rows("sft", [None, *WEIGHTS[1:]]))


def test_a_batch_that_has_lost_its_weights_is_refused(tmp_path):
    class Dropping(WeightedSFTTrainer):
        def weighted_collator(self, collator):
            return collator

    made, _ = make("sft", model(), rows("sft"), tmp_path, trainer=Dropping)
    with pytest.raises(ValueError, match="a training batch of Dropping has no 'weight'"):
        made.train()
    stream = rows("sft", [None] * 8).to_iterable_dataset()
    made, _ = make("sft", model(), stream, tmp_path)
    with pytest.raises(ValueError, match="8 of 8 rows of a batch have no 'weight'"):
        made.train()
    (grad,) = step("sft", model(), rows("sft").to_iterable_dataset(), tmp_path)
    assert error(grad, expected("sft", model(), rows("sft"))) < 1e-5


def test_outputs_that_are_not_by_row_are_refused(tmp_path):
    class Pairs(WeightedSFTTrainer):
        outputs_per_row = 2

    made, _ = make("sft", model(), rows("sft"), tmp_path, trainer=Pairs)
    with pytest.raises(ValueError, match="16 for a batch of 8 rows; LlamaForCausalLM returned 8"):
        made.train()


@pytest.mark.parametrize("trainer", [ResampledSFTTrainer, ResampledDPOTrainer])
def test_resampled_rows_are_those_of_positive_weight(trainer, tmp_path):
    kind = "sft" if trainer is ResampledSFTTrainer else "dpo"
    data = rows(kind, [0.0, 4.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    made, _ = make(kind, net_of(kind), data, tmp_path, trainer=trainer)
    for remove in (True, False):
        made.args.remove_unused_columns = remove
        (batch,) = made.get_train_dataloader()
        drawn = {tuple(x) for x in batch["input_ids"].tolist()}
        assert len(drawn) <= 2 * (2 if kind == "dpo" else 1)
        assert "weight" not in batch
    made.train()
    with pytest.raises(ValueError, match="train_sampling_strategy='group_by_length' orders"):
        make(kind, net_of(kind), data, tmp_path, trainer=trainer,
             train_sampling_strategy="group_by_length")  # fmt: skip


def test_rows_that_cannot_be_drawn_by_their_weights_are_refused(tmp_path):
    class Renamed(ResampledSFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return SFTTrainer._get_train_sampler(self, train_dataset)

    stream = rows("sft").to_iterable_dataset()
    made, _ = make("sft", model(), stream, tmp_path, trainer=ResampledSFTTrainer)
    with pytest.raises(ValueError, match="another order for IterableDataset"):
        made.train()
    made, _ = make("sft", model(), rows("sft"), tmp_path, trainer=Renamed)
    with pytest.raises(ValueError, match="Renamed draws rows by their weights"):
        made.train()


def test_a_resumed_run_draws_the_rows_that_it_would_have_drawn(tmp_path):
    options = {
        "per_device_train_batch_size": 2, "max_steps": 10, "learning_rate": 0.05,
        "save_strategy": "steps", "save_steps": 6,
    }  # fmt: skip
    for trainer in (ResampledSFTTrainer, WeightedSFTTrainer):
        folder = tmp_path / trainer.__name__
        whole, kept = make("sft", model(), rows("sft"), folder, trainer=trainer, **options)
        whole.train()
        again, rest = make("sft", model(), rows("sft"), folder, trainer=trainer, **options)
        again.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
        assert len(rest.steps) == 4
        assert all(torch.equal(a, b) for a, b in zip(kept.steps[6:], rest.steps, strict=True))
