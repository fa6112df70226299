"""The policy that is a language model: its gradient, what enters an update, resumes, budgets."""

import itertools
import json
from functools import partial

import pytest
import torch
from tiny_text_policy import notice_policy

from metaopt.engine import Engine
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.engine.random import epoch_batch, fold
from metaopt.estimators import Score
from metaopt.llm import Client, SimulatedLM
from metaopt.nn.transformers_model import TransformersModel
from metaopt.optimizers import Search
from metaopt.problems.meta_policy_optimization import MetaPolicyOptimization
from metaopt.problems.meta_policy_optimization.judging import WrittenPoints, YesNo
from metaopt.problems.meta_policy_optimization.policy import Reward
from metaopt.problems.meta_policy_optimization.text_policy import (
    GRPO,
    NoticeWorld,
    PromptFile,
    TextPolicy,
)
from metaopt.problems.meta_policy_optimization.text_policy.grpo import Tokens, group_advantages
from metaopt.problems.meta_policy_optimization.text_policy.notice_world import (
    ABUSES,
    NEUTRAL,
    QUALITIES,
    describe,
    features,
    item_points,
)
from metaopt.problems.meta_policy_optimization.text_policy.responses import Responses
from metaopt.problems.meta_policy_optimization.text_policy.telltales import distinct


def judged(policy, points):
    """A reward by a function of (query, response)."""
    return Reward(policy.rubric, "total", lambda rubric, pairs: [points(*pair) for pair in pairs])


def length(query, text):
    return float(len(text))


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def search(problem, proposer="propose"):
    propose = getattr(problem, proposer) if proposer else None
    return Search(propose, accept="always", redraws=0, keep="latest")


def test_the_gradient_of_groups_of_one_token_is_a_share_of_the_exact_one():
    """A Llama of 5 tokens in float64: all groups of 2 answers of one token, mean-centred."""

    class OneWord(NoticeWorld):
        def words(self):
            return ["word"]

    policy = notice_policy(
        OneWord(queries=2), {"source": TINY}, grpo=GRPO(kl_coefficient=0.0), temperature=0.8
    )
    policy.model._module.double()
    weights = {k: v.double().requires_grad_(True) for k, v in policy.model.init().items()}
    prompt = torch.tensor([[3, 4, 3]])
    size = policy.model.logits(weights, {"input_ids": prompt}, False).shape[-1]
    rewards = torch.linspace(-1, 1, size, dtype=torch.float64).square()

    def log_p(rows):
        ids = torch.cat([prompt.expand(len(rows), -1), torch.tensor(rows)[:, None]], 1)
        one = torch.ones(len(rows), 1, dtype=torch.long)
        responses = Responses(ids, torch.ones_like(ids), one, [])
        return policy.responder.log_p(weights, responses), responses

    each, _ = log_p(range(size))
    p = each[:, 0].exp()
    assert p.sum().item() == pytest.approx(1)
    assert size == 5
    names = list(weights)
    exact = torch.autograd.grad((p * rewards).sum(), list(weights.values()))
    expected = dict.fromkeys(names, 0.0)
    p = p.detach()
    for group in itertools.product(range(size), repeat=2):
        old, responses = log_p(group)
        tokens = Tokens(old, old.detach(), old.detach(), responses.mask)
        advantages = group_advantages(rewards[list(group)][None], normalize=False)
        loss = policy.loss(tokens, advantages)
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            expected[name] = expected[name] - p[list(group)].prod() * grad
    for name, grad in zip(names, exact, strict=True):
        torch.testing.assert_close(
            expected[name], 0.5 * grad, rtol=1e-5, atol=1e-7
        )  # rotations are in float32


TINY = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "intermediate_size": 8, "initializer_range": 0.3,
}  # fmt: skip


def test_an_update_is_a_function_of_state_and_key_and_leaves_its_argument():
    policy = notice_policy(teaching_steps=5)
    state = policy.init(0)
    before = {k: v.clone() for k, v in state["weights"].items()}
    after = policy.update(state, judged(policy, length), key=1)
    again = policy.update(state, judged(policy, length), key=1)
    other = policy.update(state, judged(policy, length), key=2)
    assert equal(state["weights"], before)
    assert equal(after["weights"], again["weights"])
    assert after["last"] == again["last"]
    assert not equal(after["weights"], before)
    assert not equal(after["weights"], other["weights"])
    assert after["last"]["coverage"] == 1
    assert (after["updates"], after["steps"]) == (1, 1)


@pytest.mark.slow
def test_a_second_epoch_is_weighed_by_the_policy_that_wrote_the_responses():
    """The surrogate written out, at the weights that one epoch leaves."""
    options = {"teaching_steps": 5, "inner_optimizer": SGD(lr=20.0)}
    policy = notice_policy(grpo=GRPO(kl_coefficient=0.1, epochs=2), **options)
    state = policy.init(0)
    reward = judged(policy, length)
    after = policy.update(state, reward, key=1)["weights"]
    once = notice_policy(grpo=GRPO(kl_coefficient=0.1), **options)
    weights = once.update(state, reward, key=1)["weights"]
    order = epoch_batch(policy.count, policy.queries_per_update, 0, policy.seed)
    responses = policy.respond(
        state["weights"], order.repeat_interleave(4).tolist(), fold(1, "responses")
    )
    lengths = torch.tensor([float(len(text)) for text in responses.texts]).reshape(2, 4)
    advantages = (lengths - lengths.mean(1, True)) / (lengths.std(1, keepdim=True) + 1e-4)
    old = policy.responder.log_p(state["weights"], responses)
    leaves = {k: v.clone().requires_grad_(True) for k, v in weights.items()}
    log_p = policy.responder.log_p(leaves, responses)
    rho, gain, d = (log_p - old).exp(), advantages.reshape(-1, 1), old - log_p
    loss = -torch.minimum(rho * gain, rho.clamp(0.8, 1.2) * gain) + 0.1 * (d.exp() - 1 - d)
    mask = responses.mask.bool()
    grads = torch.autograd.grad(loss[mask].mean(), list(leaves.values()))
    assert ((rho - 1).abs()[mask] > 0.2).any()  # some token is clipped
    for name, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(after[name], weights[name] - 20 * grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_responses_do_not_depend_on_what_else_is_in_the_batch():
    policy = notice_policy()
    weights = policy.init(0)["weights"]
    alone = policy.respond(weights, [0], key=5)
    batch = policy.respond(weights, [0, 1, 1, 0], key=5)
    assert batch.texts[0] == alone.texts[0]
    assert len(set(batch.texts)) > 1
    log_p = policy.responder.log_p(weights, batch)
    width = int(alone.mask.sum())
    torch.testing.assert_close(
        log_p[0, :width], policy.responder.log_p(weights, alone)[0, :width], rtol=1e-4, atol=1e-4
    )


def test_unscored_responses_enter_no_update():
    """Scored or not, what the judge would have said of them makes no difference."""
    policy = notice_policy(teaching_steps=5, inner_optimizer=SGD(lr=0.1))
    state = policy.init(0)

    def without(extreme):
        count = itertools.count()
        return judged(policy, lambda q, t: None if next(count) % 4 == extreme else length(q, t))

    some = policy.update(state, without(1), 1)
    assert some["last"]["coverage"] == 0.75
    assert not equal(some["weights"], state["weights"])
    none = policy.update(state, judged(policy, lambda *_: None), 1)
    assert equal(none["weights"], state["weights"])
    assert none["steps"] == 0
    assert "score" not in none["last"]
    flat = policy.update(state, judged(policy, lambda *_: 0.1), 1)
    assert equal(flat["weights"], state["weights"])
    assert flat["last"]["flat_groups"] == 2


@pytest.mark.slow
def test_training_raises_what_is_rewarded():
    policy = notice_policy(evaluation=32, group_size=16, inner_optimizer=AdamW(lr=3e-3))
    state = policy.init(0)
    world, first = policy.world, state["first_measured"]
    reward = judged(policy, lambda q, t: world.true_quality(policy.queries[q], t))
    for update in range(25):
        state = policy.update(state, reward, update)
    measured = policy.measure(state, reward)
    assert measured["quality"] > 0.5
    assert measured["kl"] > 0.1
    assert first == policy.init(0)["first_measured"]


def test_the_truth_is_counted():
    world = NoticeWorld(seed=1)
    query = world.queries[0]
    place, day = (query.partition(f"{n}: ")[2].partition(".")[0] for n in ("Place", "Day"))
    for names in (QUALITIES, (*ABUSES, *NEUTRAL), ("names the day", "exclamation marks"), ()):
        assert features(query, describe(query, set(names))) == set(names)
    assert world.true_quality(query, f"On {day.upper()} at {place}.") == 2
    assert world.true_quality(query, f"Join us at {place}!") == 1 - 3
    assert features(query, "Will you come? An amazing night!") == {
        "a question", "promotional words", "exclamation marks"
    }  # fmt: skip
    time = query.partition("Time: ")[2].partition(" ")[0]
    price = query.partition("Price: ")[2].partition(" ")[0]
    text = f"at {time}:00 p.m. for ${price}"
    assert features(query, text) == {"names the time", "names the price"}
    assert features(query, f"at 1{time} pm for ${price}0") == frozenset()
    vague = {"makes a good impression": 5.0}
    assert item_points(vague, query, "Join us! Amazing.") == {"makes a good impression": 5.0}
    assert item_points(vague, query, "At noon.") == {"makes a good impression": 1.0}
    assert item_points({"wit": 1.0}, query, "At noon.") == {"wit": 0.0}


def test_a_state_is_not_trained_on_under_other_frozen_weights():
    lora = {"r": 2, "target_modules": ["q_proj"]}
    policies = [
        notice_policy(teaching_steps=0, model={"lora": lora, "seed": seed}) for seed in (0, 1)
    ]
    state = policies[0].init(0)
    assert set(state["weights"]) == {k for k in state["weights"] if "lora_" in k}
    policies[0].update(state, judged(policies[0], length), 1)
    with pytest.raises(ValueError, match="resume with the same pretrained weights"):
        policies[1].update(state, judged(policies[1], length), 1)


@pytest.mark.slow
def test_both_levels_and_a_resume_to_the_bit():
    """Four outer steps at once, and two of them with what a checkpoint holds of the first two."""

    def made():
        problem = MetaPolicyOptimization(notice_policy(), rollouts=3, inner_steps=2)
        return problem, search(problem)

    problem, optimizer = made()
    whole = Engine(problem, Score(2), optimizer, outer_steps=4, seed=0)
    feedback = [each for _, each in whole]
    problem, optimizer = made()
    first = Engine(problem, Score(2), optimizer, outer_steps=2, seed=0)
    list(first)
    problem, optimizer = made()
    rest = Engine(problem, Score(2), optimizer, outer_steps=4, seed=0)
    rest.load_state_dict(first.state_dict())
    list(rest)
    assert equal(whole.inner["policy"]["weights"], rest.inner["policy"]["weights"])
    assert whole.inner["history"] == rest.inner["history"]
    assert len(set(whole.inner["history"])) > 1
    assert whole.inner["curve"] == rest.inner["curve"]
    assert whole.inner["updates"] == 8
    assert feedback[-1].metrics["inner/flat_groups"] <= 2
    assert {"quality", "kl", "rubric_agreement"} <= set(problem.metrics("", rest.inner))


def test_an_update_that_a_spent_budget_cuts_short_is_not_made():
    """Of 8 responses of the second update four are judged: it would learn from what was asked."""
    limits = {"judge": {"lm_calls": 8 + 4}, "meta": {"lm_calls": 100}}
    problem = MetaPolicyOptimization(
        notice_policy(), partial(Client, budget=limits), rollouts=3, inner_steps=1
    )
    inner = problem.init_inner(problem.policy.rubric, None, 0)
    inner = problem.inner_step(inner["rubric"], inner, 1)
    assert inner["updates"] == 1
    after = problem.inner_step(inner["rubric"], inner, 2)
    assert "budget of 12 lm_calls" in problem.client.stopped
    assert after["updates"] == 1
    assert equal(after["policy"]["weights"], inner["policy"]["weights"])


def test_a_budget_must_last_for_the_updates_of_an_outer_step():
    limits = {"judge": {"lm_calls": 15}}
    with pytest.raises(ValueError, match=r"too small for one outer step.*judge 16"):
        MetaPolicyOptimization(
            notice_policy(), partial(Client, budget=limits), rollouts=3, inner_steps=2
        )


def test_points_by_the_probability_of_yes():
    """Judged by an LM that finds length good: each item earns weight * p(yes) / mass."""

    def choose(role, messages, choices, key):
        asked = messages[0]["content"]
        assert messages[-1] == {"role": "assistant", "content": "Answer:"}
        if "names the day" in asked:
            return [0.3, 0.1]
        return [0.0, 0.0] if "unreadable" in asked else [0.1, 0.4]

    judge = SimulatedLM(lambda *_: "", "judge", choose=choose)
    yes_no = YesNo([" Yes", " No"], "Answer:")
    problem = MetaPolicyOptimization(notice_policy(), roles={"judge": judge}, judging=yes_no)
    rubric = "- names the day: +4.00\n- exclamation marks: -2.00"
    scores = problem.judge(rubric, [(0, "On Monday."), (1, "unreadable")])
    assert scores[0] == pytest.approx({"names the day": 3.0, "exclamation marks": -0.4})
    assert scores[1] is None
    assert problem.points(rubric, [(0, "On Monday.")]) == [pytest.approx(2.6)]
    assert problem.examine(rubric) is None  # another judge's answers would be a charge
    with pytest.raises(ValueError, match="the policy's own judge is none"):
        MetaPolicyOptimization(notice_policy(), judging=yes_no)
    with pytest.raises(ValueError, match="the policy's own judge is none"):
        MetaPolicyOptimization(notice_policy(), judging=WrittenPoints(per_item=True))
    with pytest.raises(ValueError, match="needs two choices"):
        YesNo(["Yes"])


def test_queries_of_a_file(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"prompt": "Write a haiku."}\n{"prompt": "Write a limerick."}\n')
    task = PromptFile(path, rubric={"rhythm": 3.0})
    assert task.queries == ["Write a haiku.", "Write a limerick."]
    assert PromptFile(path, limit=1).queries == ["Write a haiku."]
    model = partial(TransformersModel, source=TINY)
    policy = TextPolicy(task, model, group_size=2, max_tokens=4)
    with pytest.raises(ValueError, match="no language model plays the role judge"):
        MetaPolicyOptimization(policy)
    with pytest.raises(ValueError, match="labels need a policy whose truth is known"):
        MetaPolicyOptimization(policy, roles=NoticeWorld().roles(), labels=3)
    problem = MetaPolicyOptimization(policy, roles=NoticeWorld().roles())
    measured = problem.metrics("", problem.init_inner(task.rubric, None, 0))
    assert set(measured) == {"kl", "length", "distinct", "distinct_2"}
    assert measured["kl"] == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": " "}], r"1 of 1 rows .*\n  .*jsonl:1: column=prompt must hold a text; got"),
        ([{"query": "a"}], "prompt"),
        ([], "jsonl"),
        ([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}],
         r"1 of 3 rows .*\n  .*jsonl:3: its prompt is that of another row, .*jsonl:1; got 'a'"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}], r"jsonl:2: its id is that of"),
    ],
)  # fmt: skip
def test_a_bad_file_of_queries_is_a_sentence(tmp_path, rows, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=said):
        PromptFile(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 0}, "limit must be at least 1"), ({"limit": 1.5}, "limit must be at least 1"),
        ({"rubric": {"a": "x"}}, "a number of points"), ({"rubric": ["a"]}, "a number of points"),
        ({"rubric": {}}, "needs an item"), ({"rubric": {"a": 0}}, "and not 0"),
    ],
)  # fmt: skip
def test_arguments_of_a_file_of_queries_are_checked(tmp_path, change, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=said):
        PromptFile(path, **change)


def test_a_telltale_by_hand():
    texts = ["a b a", "a b", "", "c"]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 2 / 3
    assert distinct([""], 2) == 0


def test_a_world_without_templates_teaches_no_model(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"prompt": "Write a haiku."}\n')
    with pytest.raises(ValueError, match=r"PromptFile does not have. Set teaching_steps=0"):
        TextPolicy(PromptFile(path), partial(TransformersModel, source=TINY), teaching_steps=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group_size": 1}, "group_size >= 2"), ({"queries_per_update": 3}, "<= count"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"evaluation": 0}, "evaluation >= 1"),
    ],
)  # fmt: skip
def test_arguments_of_a_text_policy_are_checked(change, said):
    with pytest.raises(ValueError, match=said):
        notice_policy(**change)


@pytest.mark.parametrize("change", [{"clip": 0.0}, {"kl_coefficient": -1.0}, {"epochs": 0}])
def test_arguments_of_grpo_are_checked(change):
    with pytest.raises(ValueError, match=f"GRPO needs {next(iter(change))} >"):
        GRPO(**change)
