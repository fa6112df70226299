"""GRPO: enumerations of a two-token policy, formulas by hand, TRL's loss, unscored responses."""

import itertools
import statistics

import pytest
import torch
from tiny_text_policy import LLAMA

from metaopt.nn.transformers_model import TransformersModel
from metaopt.problems.meta_policy_optimization.text_policy.grpo import (
    Advantages,
    Tokens,
    divergence,
    group_advantages,
    surrogate,
)

NAN = float("nan")
REWARDS = torch.tensor([0.7, -0.4], dtype=torch.float64)
"""Of each of two tokens."""


def gradient(loss, theta):
    return torch.autograd.grad(loss, theta)[0]


def two_tokens():
    return torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)


def group_loss(theta, group, normalize, rewards=REWARDS):
    """The loss of one group of responses of one token each, at rho = 1 and beta = 0."""
    log_p = theta.log_softmax(0)[list(group)][:, None]
    advantages = group_advantages(rewards[list(group)][None], normalize)
    tokens = Tokens(log_p, log_p.detach(), log_p.detach(), torch.ones_like(log_p))
    return surrogate(tokens, advantages, 0.2, 0.0)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_mean_centred_groups_give_a_share_of_the_exact_gradient(size):
    """Over all groups: (G - 1) / G times the gradient of E[r], ascended by descending the loss."""
    theta = two_tokens()
    p = theta.softmax(0)
    exact = gradient((p * REWARDS).sum(), theta)
    expected = torch.zeros(2, dtype=torch.float64)
    for group in itertools.product((0, 1), repeat=size):
        probability = p.detach()[list(group)].prod()
        expected -= probability * gradient(group_loss(theta, group, False), theta)
    torch.testing.assert_close(expected, (size - 1) / size * exact, rtol=1e-12, atol=1e-14)
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_normalized_groups_follow_the_formula_in_each_group(size):
    """- mean_i (r_i - mean) / (sd + 1e-4) grad log p_i, by hand; grad log p_i = 1_i - p."""
    theta = two_tokens()
    p = theta.detach().softmax(0).tolist()
    for group in itertools.product((0, 1), repeat=size):
        rewards = [REWARDS[i].item() for i in group]
        mean, sd = statistics.mean(rewards), statistics.stdev(rewards)
        by_hand = [0.0, 0.0]
        for token, reward in zip(group, rewards, strict=True):
            advantage = (reward - mean) / (sd + 1e-4)
            for j in (0, 1):
                by_hand[j] -= advantage * ((j == token) - p[j]) / size
        assert gradient(group_loss(theta, group, True), theta).tolist() == pytest.approx(
            by_hand, rel=1e-9, abs=1e-12
        )


def test_a_response_without_a_score_leaves_its_group():
    rewards = torch.tensor([[1.0, NAN, 3.0, 5.0], [2.0, NAN, NAN, NAN], [NAN] * 4, [0.1] * 4])
    centred = group_advantages(rewards, normalize=False)
    assert centred.values.tolist() == [[-2, 0, 0, 2], *[[0] * 4] * 3]
    assert centred.trained.tolist() == [[True, False, True, True], *[[False] * 4] * 3]
    assert centred.scored.sum(1).tolist() == [3, 1, 0, 4]
    assert centred.flat_groups == 3
    normalized = group_advantages(rewards, normalize=True)
    sd = statistics.stdev([1, 3, 5]) + 1e-4
    assert normalized.values[0].tolist() == pytest.approx([-2 / sd, 0, 0, 2 / sd])
    # and with its score the group would be another one
    assert group_advantages(torch.tensor([[1.0, 9.0, 3.0, 5.0]]), False).values[0, 0] == -3.5


def test_equal_rewards_are_flat_where_their_mean_is_not_equal_to_them():
    rewards = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert rewards.sum() / 3 != 0.1  # by rounding
    advantages = group_advantages(rewards, normalize=True)
    assert advantages.flat_groups == 1
    assert (advantages.values == 0).all()


def test_responses_without_a_score_enter_no_gradient():
    """Neither by A, nor by the KL term, nor by the number of tokens; nor where they overflow."""
    torch.manual_seed(0)
    log_p = -torch.rand(8, 5, dtype=torch.float64)
    old, reference = log_p + 0.1 * torch.rand(8, 5), log_p - 0.3 * torch.rand(8, 5)
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5, 5, 3])[:, None]).long()
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.5], [NAN, 2.0, 0.2, NAN]], dtype=torch.float64)
    scored = ~rewards.flatten().isnan()
    reference[1, 0] = 1e4  # exp(d) is infinite

    def loss(rows):
        leaf = log_p[rows].requires_grad_(True)
        advantages = group_advantages(rewards, True)
        chosen = Advantages(*(each.flatten()[rows] for each in advantages))
        value = surrogate(Tokens(leaf, old[rows], reference[rows], mask[rows]), chosen, 0.2, 0.04)
        return value, gradient(value, leaf)

    value, grad = loss(torch.ones(8, dtype=torch.bool))
    without, grad_without = loss(scored)
    assert value.item() == pytest.approx(without.item(), rel=1e-12)
    torch.testing.assert_close(grad[scored], grad_without)
    assert (grad[~scored] == 0).all()
    assert (grad[scored] * mask[scored]).abs().sum() > 0


def test_clipping_stops_the_gradient_of_a_token_that_has_gone_far_enough():
    ratio = torch.tensor([[1.3], [0.7], [1.3], [0.7]], dtype=torch.float64)
    log_p = ratio.log().requires_grad_(True)
    rewards = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    tokens = Tokens(log_p, torch.zeros(4, 1), torch.zeros(4, 1), torch.ones(4, 1))
    loss = surrogate(tokens, group_advantages(rewards, False), 0.2, 0.0)
    assert loss.item() == pytest.approx(-(1.2 + 0.7 - 1.3 - 0.8) / 4)
    assert gradient(loss, log_p).flatten().tolist() == pytest.approx([0, -0.7 / 4, 1.3 / 4, 0])


def test_the_estimate_of_the_divergence_has_the_right_mean():
    p, q = (torch.rand(50, dtype=torch.float64) + 0.01 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    each = divergence(p.log(), q.log())
    assert (each >= 0).all()
    assert (p * each).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("beta", "moved"), [(0.0, False), (0.04, False), (0.3, True)])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_that_of_trl(tmp_path, beta, moved, normalize):
    """`trl.GRPOTrainer` on the same responses, its token-level mean (bnpo), with its advantages."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from trl.trainer.utils import nanstd

    from metaopt.problems.meta_policy_optimization.text_policy.responses import Responder

    words = ["a b c d e f g h"]
    model = TransformersModel("causal", words, source=LLAMA, attention="sdpa")
    responder = Responder(model, 6, temperature=0.7)
    weights = model.init()
    old, first = ({k: v + s * torch.randn(v.shape) for k, v in weights.items()} for s in (0, 0.05))
    if moved:
        old = {k: v + 0.02 * torch.randn(v.shape) for k, v in weights.items()}
    responses = responder.sample(weights, ["a b", "c d e f"] * 4, key=3)
    assert len(set(map(len, responses.texts))) > 1
    rewards = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))

    leaves = {k: v.clone().requires_grad_(True) for k, v in weights.items()}
    tokens = Tokens(
        responder.log_p(leaves, responses), responder.log_p(old, responses).detach(),
        responder.log_p(first, responses).detach(), responses.mask,
    )  # fmt: skip
    loss = surrogate(tokens, group_advantages(rewards, normalize), 0.2, beta)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)

    config = trl.GRPOConfig(
        str(tmp_path), loss_type="bnpo", beta=beta, epsilon=0.2, temperature=0.7, num_generations=4,
        per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to=[], seed=0,
        gradient_checkpointing=False, use_bias_correction_kl=False,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    folder = str(tmp_path / "model")
    model.merged(weights).save_pretrained(folder)
    trainer = trl.GRPOTrainer(
        folder, lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_list([{"prompt": "a b"}] * 8), processing_class=model.tokenizer,
    )  # fmt: skip
    advantages = rewards - rewards.mean(1, keepdim=True)
    if normalize:
        advantages = advantages / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    width = responses.ids.shape[1] - responses.mask.shape[1]
    inputs = {
        "prompt_ids": responses.ids[:, :width], "prompt_mask": responses.present[:, :width],
        "completion_ids": responses.ids[:, width:], "completion_mask": responses.mask,
        "advantages": advantages.flatten(), "old_per_token_logps": tokens.old,
        "ref_per_token_logps": tokens.reference, "num_items_in_batch": responses.mask.sum(),
    }  # fmt: skip
    trainer.model.eval()
    theirs = trainer._compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    theirs.backward()
    named = dict(trainer.model.named_parameters())
    for name, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(grad, named[name].grad, rtol=1e-3, atol=1e-5)
