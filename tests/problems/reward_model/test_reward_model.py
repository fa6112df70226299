"""Reward models: scores that no padding changes, and Bradley-Terry's loss."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from tiny_reward_models import EOS, PAD, ROWS, config, padded
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM

from metaopt.engine.random import generator
from metaopt.problems.reward_model.model.reward_model import RewardModel, RewardModelConfig
from metaopt.problems.reward_model.model.training import bradley_terry


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "pad"),
    [("llama", PAD), ("llama", EOS), ("gpt2", EOS), ("bert", PAD), ("roberta", PAD)],
)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_do_not_depend_on_the_batch_or_the_padding(kind, pooling, pad):
    model = RewardModel.on(config(kind, pad), pooling).eval()
    alone = []
    for row in ROWS:
        hidden = model.backbone(torch.tensor([row])).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
        alone.append(model.score.weight[0] @ pooled)
    expected = torch.stack(alone)
    assert expected.std() > 0.05
    for side in ("left", "right"):
        for extra in (0, 7):
            result = model.rewards(*padded(ROWS, side, pad, extra))
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    for i, row in enumerate(ROWS):
        one = model.rewards(*padded([row], "left", pad, 3))
        torch.testing.assert_close(one[0], expected[i], rtol=0, atol=1e-5)
    left, right = (model.rewards(*padded(ROWS, side, pad)) for side in ("left", "right"))
    assert torch.equal(left, right)
    given = model(
        *padded(ROWS, "left", pad), use_cache=False, token_type_ids=None, margin=torch.ones(4)
    )
    assert torch.equal(given.logits, left[:, None])


@torch.no_grad()
def test_an_end_of_text_that_also_pads_is_read():
    model = RewardModel.on(config("llama", EOS)).eval()
    ended, unended = model.rewards(*padded([[3, 4, EOS], [3, 4]], "right", EOS))
    assert (ended - unended).abs() > 1e-3
    other = RewardModel.on(model.backbone, "last_not_pad").eval()
    ended, unended = other.rewards(*padded([[3, 4, EOS], [3, 4]], "right", EOS))
    torch.testing.assert_close(ended, unended, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_a_mask_padding_is_what_has_the_id_of_the_pad_token():
    model = RewardModel.on(config("llama")).eval()
    ids, mask = padded(ROWS, "left", PAD)
    assert torch.equal(model.rewards(ids), model.rewards(ids, mask))
    with pytest.raises(ValueError, match="the pad token 1 also ends texts"):
        RewardModel.on(config("llama", EOS)).rewards(ids)
    without = RewardModel.on(config("llama", None))
    with pytest.raises(ValueError, match="there is no pad token"):
        without.rewards(ids)
    assert without.rewards(ids[1:2]).shape == (1,)
    with pytest.raises(ValueError, match="last_not_pad needs"):
        RewardModel.on(config("llama", None), "last_not_pad")


def test_wrong_inputs_are_named():
    model = RewardModel.on(config("llama"))
    ids, mask = padded(ROWS, "left", PAD)
    mask[2] = 0
    with pytest.raises(ValueError, match=r"texts \[2\] of the batch have no token"):
        model.rewards(ids, mask)
    with pytest.raises(ValueError, match=r"shape of input_ids, \(4, 8\); got \(4, 7\)"):
        model.rewards(ids, mask[:, 1:])
    for build in (
        lambda: RewardModel.on(config("llama"), "cls"),
        lambda: RewardModelConfig({}, ""),
    ):
        with pytest.raises(ValueError, match="pooling must be one of last, mean, last_not_pad"):
            build()


def test_a_backbone_keeps_its_weights_and_leaves_its_other_heads(tmp_path):
    language_model = AutoModelForCausalLM.from_config(config("llama"))
    before = {k: v.clone() for k, v in language_model.model.state_dict().items()}
    language_model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    for source in (tmp_path, str(tmp_path), language_model):
        model = RewardModel.on(source)
        result = model.backbone.state_dict()
        assert result.keys() == before.keys()
        assert all(torch.equal(result[k], before[k]) for k in before)
        assert model.score.weight.shape == (1, 16)
        if source is not language_model:
            assert model.backbone.config._attn_implementation == "eager"
    assert torch.equal(torch.get_rng_state(), state)


def test_new_weights_are_a_function_of_the_seed():
    one, same, other = (RewardModel.on(config("bert"), "mean", seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.score.weight, other.score.weight)
    wide = config("llama")
    wide.hidden_size = 2048
    drawn = RewardModel.on(wide).score.weight
    assert drawn.std().item() == pytest.approx(2049**-0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_parameter_is_trained_and_can_be_differentiated_twice(kind):
    model = RewardModel.on(config(kind), "mean").eval()
    params = dict(model.named_parameters())
    rewards = torch.func.functional_call(model, params, padded(ROWS, "left", PAD)).logits
    first = torch.autograd.grad(rewards.square().sum(), list(params.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(params.values()))
    assert all(g.isfinite().all() for g in second)
    assert sum(bool(g.any()) for g in first) == len(params)


def test_a_reward_model_learns_pairs():
    model = RewardModel.on(config("llama")).train()
    chosen = padded([[10, 9, word, 3, EOS] for word in range(4, 12)], "left", EOS)
    rejected = padded([[10, 9, word, 13, EOS] for word in range(4, 12)], "right", EOS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(15):
        loss = bradley_terry(model.rewards(*chosen), model.rewards(*rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (model.rewards(*chosen) > model.rewards(*rejected)).all()


def test_bradley_terry_is_cross_entropy_with_the_margin_inside():
    draw = generator(0)
    chosen, rejected, margin = torch.randn(3, 5, 7, generator=draw, dtype=torch.float64)
    label = torch.rand(5, 7, generator=draw, dtype=torch.float64)
    result = bradley_terry(chosen, rejected, margin, label)
    expected = binary_cross_entropy_with_logits(chosen - rejected - margin, label, reduction="none")
    torch.testing.assert_close(result, expected)
    plain = -torch.log(chosen.exp() / (chosen.exp() + rejected.exp()))
    torch.testing.assert_close(bradley_terry(chosen, rejected), plain)
    torch.testing.assert_close(bradley_terry(rejected, chosen, -margin, 1 - label), result)
    torch.testing.assert_close(bradley_terry(chosen + 3, rejected + 3, margin, label), result)
    ones = torch.ones_like(margin)
    assert torch.equal(
        bradley_terry(chosen, rejected, margin, ones), bradley_terry(chosen, rejected, margin)
    )
    margin.requires_grad_()
    (slope,) = torch.autograd.grad(bradley_terry(chosen, rejected, margin).sum(), margin)
    torch.testing.assert_close(slope, torch.sigmoid(margin - chosen + rejected).detach())


def test_bradley_terry_is_finite_for_large_differences():
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = bradley_terry(far, torch.zeros(2), label=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([1e4, 5e3]))
    (grad,) = torch.autograd.grad(loss.sum(), far)
    torch.testing.assert_close(grad, torch.tensor([-1.0, 0.5]))


@pytest.mark.parametrize("name", ["rejected", "margin", "label"])
def test_bradley_terry_broadcasts_nothing(name):
    given = {"rejected": torch.zeros(4, 1), name: torch.zeros(4)}
    with pytest.raises(ValueError, match=rf"{name} must have the shape of chosen, \(4, 1\)"):
        bradley_terry(torch.zeros(4, 1), **given)
