"""Both levels: what is sampled, which rubric runs, gates, labels, budgets, and gains."""

import math
from functools import partial

import numpy as np
import pytest

from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.llm import Client, NotUnderstood, Parameters, Rejected, Reply, SimulatedLM, Usage
from metaopt.optimizers import Search
from metaopt.problems.meta_policy_optimization import (
    MetaPolicyOptimization,
    RubricWorld,
    TabularPolicy,
)
from metaopt.problems.meta_policy_optimization.item_scores import read_weights, render
from metaopt.problems.meta_policy_optimization.labels import ridge
from metaopt.problems.meta_policy_optimization.prompts import (
    ANALYSE,
    MERGE,
    MOST_ITEMS,
    REFINE,
    shown_response,
)
from metaopt.problems.meta_policy_optimization.simulated_meta_judge import SimulatedMetaJudge
from metaopt.problems.meta_policy_optimization.vocabulary import (
    FEATURES,
    OVERALL,
    QUALITIES,
)

FIRST = render({OVERALL: 5.0})


def make(seed=0, world=None, **arguments):
    world = world or RubricWorld(seed=seed)
    return MetaPolicyOptimization(TabularPolicy(world), **arguments)


def run(problem, proposer="propose", screen=False, steps=8, inner_steps=20, seed=0):
    search = Search(
        getattr(problem, proposer) if proposer else None, problem.screen if screen else None,
        accept="always", redraws=0, keep="latest",
    )  # fmt: skip
    engine = Engine(problem, Score(inner_steps), search, outer_steps=steps, seed=seed)
    feedback = [each for _, each in engine]
    return engine, feedback


def measured(problem, engine):
    return problem.metrics(engine.optimizer.solution, engine.inner)


class Meta(SimulatedLM):
    """The world's meta judge with replies of one's own, by what is asked, and a log."""

    def __init__(self, error=0.2, replies=None):
        self.asked, answer = [], SimulatedMetaJudge(error)

        def reply(role, messages, key):
            text = messages[-1]["content"]
            self.asked.append(text)
            for start, own in (replies or {}).items():
                if text.startswith(start):
                    return own(text) if callable(own) else own
            return answer(role, messages, key)

        super().__init__(reply, "meta")

    def count(self, start):
        return sum(text.startswith(start) for text in self.asked)


def test_an_evolving_rubric_beats_the_fixed_one():
    evolving, fixed = make(), make()
    gains = [
        measured(problem, run(problem, proposer)[0])
        for problem, proposer in ((evolving, "propose"), (fixed, None))
    ]
    assert gains[0]["quality"] > gains[1]["quality"] + 0.5
    assert gains[1]["quality"] < 0
    assert gains[0]["hack_rate"] < gains[1]["hack_rate"]
    assert gains[1]["peak_minus_final"] > 0.1
    assert gains[0]["rubric_coverage"] > 0.4 > gains[1]["rubric_coverage"] == 0
    assert gains[0]["rubric_redundancy"] < 1 == gains[1]["rubric_redundancy"]


@pytest.mark.slow
def test_the_gains_of_several_worlds():
    def gains(proposer="propose", seeds=range(6), **arguments):
        made = [(s, make(s, **arguments)) for s in seeds]
        return [measured(problem, run(problem, proposer, seed=s)[0]) for s, problem in made]

    evolving, fixed = gains(), gains(None)
    for after, before in zip(evolving, fixed, strict=True):
        assert after["quality"] > before["quality"]
        assert after["hack_rate"] < before["hack_rate"] + 0.05
    blind = [each["quality"] for each in gains(blind=True)]
    assert np.mean(blind) < np.mean([each["quality"] for each in evolving]) - 1
    assert np.mean(blind) < 0.5


@pytest.mark.parametrize("blind", [False, True])
def test_the_truth_does_not_reach_the_writer(blind):
    """In a world where all that is good is bad, the same rubrics are written."""
    worlds = RubricWorld(seed=1), RubricWorld(seed=1)
    worlds[1].quality.neg_()
    worlds[1].weights *= -1
    histories = [
        run(make(world=w, blind=blind), steps=4, inner_steps=5)[0].inner["history"] for w in worlds
    ]
    assert histories[0] == histories[1]
    assert len(set(histories[0])) > 1


def test_a_blind_rewriter_sees_no_response():
    meta = Meta()
    problem = make(blind=True, roles={"meta": meta}, rollouts=4)
    run(problem, steps=3, inner_steps=2)
    assert meta.count(ANALYSE) == 8
    assert all(shown_response(text) is None for text in meta.asked)
    meta = Meta()
    run(make(roles={"meta": meta}, rollouts=4), steps=3, inner_steps=2)
    analyses = [text for text in meta.asked if text.startswith(ANALYSE)]
    assert len(analyses) == meta.count(REFINE) == 8
    assert meta.count(MERGE) == 2
    assert all("This response shows" in shown_response(text) for text in analyses)


def test_rollouts_are_a_uniform_sample_of_all_updates():
    problem = make(rollouts=400)
    inner = problem.init_inner(FIRST, None, key=1)
    for step in range(10):
        inner = problem.inner_step(FIRST, inner, key=100 + step)
    counts = np.bincount([update for update, _, _ in inner["samples"]], minlength=10)
    assert len(counts) == 10
    assert counts.sum() == 400
    chi = ((counts - 40) ** 2 / 40).sum()
    assert chi < 27.9  # the 99.9 % quantile of chi-squared with 9 degrees of freedom
    # the next run's are of its own updates
    inner = problem.inner_step(FIRST, problem.init_inner(FIRST, inner, 2), 3)
    assert {update for update, _, _ in inner["samples"]} == {10}


def test_the_policy_goes_on_under_the_latest_rubric():
    problem = make(rollouts=4)
    engine, _ = run(problem, steps=5, inner_steps=3)
    inner = engine.inner
    assert inner["updates"] == 15
    assert [step for step, *_ in inner["curve"]] == [*range(1, 16)]
    assert inner["rubric"] == engine.optimizer.solution == inner["history"][-1]
    assert len(set(inner["history"])) > 2
    state = problem.policy.init(0)
    for rubric in inner["history"]:
        for _ in range(3):
            state = problem.policy.update(state, problem.reward(rubric), 0)
    assert (state["log_probability"] == inner["policy"]["log_probability"]).all()


def test_a_gate_runs_the_parent_of_a_rejected_rewrite_again():
    """A meta judge that deducts every quality, and one that deducts the abuses."""
    worse = render(dict.fromkeys(QUALITIES, -4.0))
    better = render(dict.fromkeys(QUALITIES, 5.0) | {"padding": -4.0, "boasting": -4.0})
    for rubric, accepted in ((worse, False), (better, True)):
        meta = Meta(replies={MERGE: f"<rubric>\n{rubric}\n</rubric>"})
        problem = make(roles={"meta": meta}, labels=16, first_labels=64)
        engine, feedback = run(problem, screen=True, steps=3, inner_steps=5)
        assert engine.inner["rubric"] == (rubric if accepted else FIRST)
        assert engine.inner["updates"] == 15
        assert [f.metrics["judge/labels"] for f in feedback] == [80, 96, 112]
        assert float(feedback[-1].value) == pytest.approx(
            1 - feedback[-1].metrics["judge/agreement"]
        )
    # without a gate the worse one runs
    meta = Meta(replies={MERGE: f"<rubric>\n{worse}\n</rubric>"})
    assert run(make(roles={"meta": meta}), steps=2, inner_steps=2)[0].inner["rubric"] == worse


def test_a_gate_and_a_fit_need_labels():
    for arguments in ({"screen": True}, {"proposer": "fit_labels"}):
        with pytest.raises(ValueError, match="need labels: set"):
            run(make(rollouts=3), steps=2, inner_steps=2, **arguments)


def test_fitted_weights_are_those_of_ridge_regression():
    from sklearn.linear_model import Ridge

    draw = np.random.default_rng(0)
    x, y = draw.random((40, 3)), draw.random(40)
    readings = [dict(zip("abc", row, strict=True)) for row in x.tolist()]
    fitted = ridge([*readings, None], [*y.tolist(), 7.0], ["a", "b", "c"])
    assert list(fitted.values()) == pytest.approx(Ridge(1.0).fit(x, y).coef_.tolist())


def test_fitted_labels_find_the_true_signs():
    problem = make(labels=60, first_labels=400, rollouts=1)
    engine, _ = run(problem, "fit_labels", steps=2, inner_steps=10)
    weights = read_weights(engine.inner["rubric"])
    assert all(weights[q] > 0 for q in QUALITIES)


def test_offline_rewrites_see_the_first_policy_and_training_follows():
    problem = make(offline=True, rollouts=4)
    engine, _ = run(problem, steps=3, inner_steps=4)
    assert engine.inner["updates"] == 0
    assert measured(problem, engine)["kl"] == pytest.approx(0, abs=1e-9)
    engine.finish()
    assert engine.inner["updates"] == 12
    state, reward = problem.policy.init(0), problem.reward(engine.inner["rubric"])
    for _ in range(12):
        state = problem.policy.update(state, reward, 0)
    assert (state["log_probability"] == engine.inner["policy"]["log_probability"]).all()


def test_a_budget_spent_in_a_rewrite_keeps_the_old_rubric():
    """33 calls make a rewrite: the second one stops in the middle."""
    client = partial(Client, limits={"lm_calls": 16 + 33 + 16 + 20})
    problem = make(client=client)
    engine, feedback = run(problem, steps=5, inner_steps=2)
    assert len(feedback) == 3
    assert "budget of 85 lm_calls" in feedback[-1].stop
    first, second, third = engine.inner["history"]
    assert first == FIRST
    assert first != second == third
    assert engine.inner["updates"] == 4
    assert problem.records.spent()["lm_calls"] == 85


def test_a_budget_too_small_for_a_rewrite_is_refused():
    with pytest.raises(ValueError, match=r"too small for one outer step.*judge 16, meta 33"):
        make(client=partial(Client, limits={"lm_calls": 48}))


class Paid:
    """A meta judge that costs something, and fails where it is told to."""

    model, deterministic = "paid", False

    def __init__(self, fails=lambda text: False, finish="stop"):
        self.answer, self.fails, self.finish = SimulatedMetaJudge(0.2), fails, finish

    async def chat(self, role, messages, parameters, rollout):
        if self.fails(messages[-1]["content"]):
            raise Rejected("no", role)
        text = self.answer(role, messages, rollout)
        return Reply(text, Usage(10, 5), self.finish, self.model)

    async def close(self):
        pass


def test_a_paid_meta_judge_needs_a_budget():
    with pytest.raises(ValueError, match="the model of meta may cost something"):
        make(roles={"meta": Paid()})


def test_what_fails_or_is_cut_is_no_refinement():
    client = partial(Client, limits={"lm_calls": 10_000})
    # every rollout that shows depth fails its analysis; the rest make the rewrite
    paid = Paid(lambda text: text.startswith(ANALYSE) and "depth" in (shown_response(text) or ""))
    engine, _ = run(make(roles={"meta": paid}, client=client), steps=2, inner_steps=3)
    assert engine.inner["rubric"] != FIRST
    engine, _ = run(
        make(roles={"meta": Paid(finish="length")}, client=client), steps=2, inner_steps=3
    )
    assert engine.inner["rubric"] == FIRST


def test_a_refinement_may_add_to_a_full_rubric():
    full = render(dict.fromkeys(FEATURES[:MOST_ITEMS], 1.0))
    longer = render(dict.fromkeys(FEATURES, 1.0))
    meta = Meta(replies={REFINE: f"<rubric>\n{longer}\n</rubric>"})
    problem = make(roles={"meta": meta}, rollouts=3)
    new = problem.rewriter(full, [("query 0", "This response shows nothing.", 1.0)] * 3, 0)
    assert longer in meta.asked[-1]
    assert len(read_weights(new)) == MOST_ITEMS


def test_a_peak_is_never_below_the_end():
    problem = make()
    engine, _ = run(problem, steps=1, inner_steps=2)
    for curve in ([], [[1, -9.0, 0.0]]):
        inner = {**engine.inner, "curve": curve}
        assert problem.metrics(FIRST, inner)["peak_minus_final"] == 0


def test_a_meta_judge_that_is_not_understood_stops_the_run():
    meta = Meta(replies={REFINE: "Be strict about secrets: 12 points."})
    with pytest.raises(
        NotUnderstood, match=r"16 of 16 refinements hold no rubric.* at most 13 items"
    ) as caught:
        run(make(roles={"meta": meta}), steps=2, inner_steps=2)
    assert "secrets" not in str(caught.value)
    # a merge that is none keeps the rubric, after three answers
    meta = Meta(replies={MERGE: "I would rather not."})
    with pytest.warns(UserWarning, match="none of 3 merges of 16 refinements holds a rubric"):
        engine, _ = run(make(roles={"meta": meta}), steps=2, inner_steps=2)
    assert engine.inner["rubric"] == FIRST
    assert meta.count(MERGE) == 3


def test_a_judge_without_a_score_enters_nothing():
    """Responses with clarity have no score: they are counted and left out."""

    class Shy(TabularPolicy):
        def roles(self):
            roles = dict(super().roles())
            judge = self.world._judge

            def answer(role, messages, key):
                text = messages[-1]["content"]
                return "Total: 100" if "clarity" in text else judge(role, messages, key)

            return roles | {"judge": SimulatedLM(answer, "shy")}

    world = RubricWorld(seed=0)
    problem = MetaPolicyOptimization(Shy(world), rollouts=40)
    engine, feedback = run(problem, None, steps=1, inner_steps=3)
    samples = feedback[0].artifacts["samples"]
    clear = ["clarity" in problem.client.text(ref) for _, _, ref, _ in samples]
    assert [points is None for *_, points in samples] == clear
    assert feedback[0].metrics["judge/coverage"] == pytest.approx(1 - np.mean(clear))
    scores = [points / 5 for *_, points in samples if points is not None]
    assert float(feedback[0].value) == pytest.approx(-np.mean(scores))
    assert problem.reward(FIRST)([(0, "This response shows clarity.")]) == [None]
    index = 1 << 4  # depth
    expected = 10 / 5 * world.points(FIRST)[index]
    assert problem.reward(FIRST)([(0, world.response(index))]) == [pytest.approx(expected)]
    assert math.isfinite(measured(problem, engine)["rubric_agreement"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rollouts": 0}, "rollouts >= 1"), ({"votes": 17}, "1 <= votes <= rollouts"),
        ({"reward_scale": "max"}, "reward_scale to be one of total, mean, sum"),
        ({"labels": -1}, "labels >= 0"), ({"inner_steps": 0}, "inner_steps >= 1"),
        ({"roles": {"writer": Meta()}}, "roles names 'writer'; roles are judge, meta"),
        ({"roles": {"judge": Meta()}}, "cannot be another model"),
    ],
)  # fmt: skip
def test_arguments_are_checked(change, said):
    with pytest.raises(ValueError, match=said):
        make(**change)


def test_the_meta_judge_answers_at_the_temperature_that_is_set():
    problem = make(temperature=0.5, max_tokens=99)
    assert problem.rewriter.parameters == Parameters(0.5, 99)
    assert problem.judging.parameters == Parameters(0.0, 99)
