"""The loop: budgets, non-finite values, episodes, resume, held-out metrics."""

import math
from functools import partial

import pytest
import torch

from metaopt import Engine, Feedback, NonFiniteError, Problem
from metaopt.engine.budget import Ledger
from metaopt.estimators import Score, Unroll
from metaopt.optimizers import Constant, Descent, Schedule
from metaopt.problems.examples import Ridge
from metaopt.testing.trees import identical


class Counter(Problem):
    """An inner level that counts its steps; the outer variable is the amount of a step."""

    def __init__(self, last=None, bad_at=None, bad=math.nan):
        self.last, self.bad_at, self.bad = last, bad_at, bad
        self.finished = []

    def init_outer(self, generator):
        return 1

    def init_inner(self, outer, inner, key):
        return inner or {"count": 0, "start": key}

    def inner_step(self, outer, inner, key):
        return {**inner, "count": inner["count"] + outer}

    def evaluate(self, outer, inner, key):
        count = inner["count"]
        value = self.bad if count == self.bad_at else -float(count)
        return Feedback(value, done=count == self.last, cost={"tokens": 10, "evaluations": 2})

    def metrics(self, outer, inner):
        return {"count": inner["count"], "outer": outer}

    def finish(self, outer, inner, key):
        self.finished.append(key)
        return {**inner, "count": inner["count"] + 100}


class Slope:
    """An estimator whose gradient is what it is told to be."""

    def __init__(self, grads):
        self.grads = iter(grads)

    def check(self, loop):
        """Accept every problem."""

    def __call__(self, loop, outer, inner, key):
        grad = {k: torch.full_like(v, next(self.grads)) for k, v in outer.items()}
        return inner, Feedback(torch.zeros(()), grad)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.state = state


def ridge(outer_steps, seed=0, **settings):
    adam = Descent(partial(torch.optim.Adam, lr=0.1))
    return Engine(Ridge(), Unroll(3), adam, outer_steps=outer_steps, seed=seed, **settings)


def counting(outer_steps, problem=None, **settings):
    return Engine(
        problem or Counter(),
        Score(1),
        Schedule(lambda step: 1),
        outer_steps=outer_steps,
        **settings,
    )


def test_yields_every_step_with_its_metrics():
    steps = [(step, float(f.metrics["outer/loss"])) for step, f in counting(3)]
    assert steps == [(1, -1.0), (2, -2.0), (3, -3.0)]
    (_, feedback), *_ = ridge(1)
    assert float(feedback.metrics["outer/grad_norm"]) == pytest.approx(
        float(feedback.grad["log_penalty"].norm())
    )


def test_zero_steps_run_nothing():
    engine = counting(0)
    assert list(engine) == []
    assert engine.metrics() == {}


def test_budget_ends_the_run_after_the_step_that_reaches_it():
    engine = counting(100, limits={"tokens": 35})
    assert [step for step, _ in engine] == [1, 2, 3, 4]
    assert engine.ledger.spent == {"inner_steps": 4, "evaluations": 8, "tokens": 40}
    assert engine.ledger.exhausted == "tokens"
    assert list(engine) == []


def test_budget_counts_what_was_spent_before_a_resume():
    first = counting(2, limits={"tokens": 35})
    assert len(list(first)) == 2
    second = counting(100, limits={"tokens": 35})
    second.load_state_dict(first.state_dict())
    assert [step for step, _ in second] == [3, 4]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_non_finite_value_leaves_the_optimizer_untouched(bad):
    values = []

    class Recorder(Schedule):
        def tell(self, feedback):
            values.append(float(feedback.value))

    engine = Engine(Counter(bad_at=3, bad=bad), Score(1), Recorder(lambda step: 1), outer_steps=9)
    with pytest.raises(NonFiniteError, match=rf"outer loss is {bad} at outer step 3"):
        list(engine)
    assert values == [-1.0, -2.0]
    assert engine.outer_step == 2
    assert engine.inner["count"] == 2


def test_an_infeasible_candidate_is_told_and_the_search_goes_on():
    engine = Engine(
        Counter(bad_at=3, bad=math.inf), Score(1), Schedule(lambda step: 1), outer_steps=5
    )
    assert [float(feedback.value) for _, feedback in engine] == [-1, -2, math.inf, -4, -5]


def test_non_finite_gradient_leaves_phi_untouched():
    descent = Descent(partial(torch.optim.SGD, lr=1.0))
    engine = Engine(Ridge(), Slope([1.0, math.nan]), descent, outer_steps=9)
    before = descent.solution["log_penalty"].clone()
    with pytest.raises(NonFiniteError, match="norm of the hypergradient is nan at outer step 2"):
        list(engine)
    assert torch.equal(descent.solution["log_penalty"], before - 1)


def test_done_starts_the_inner_level_from_scratch():
    engine = counting(7, Counter(last=3))
    states = [(engine.inner["count"], engine.done) for _ in engine]
    assert states == [(1, False), (2, False), (3, True)] * 2 + [(1, False)]


def test_episodes_start_from_different_keys():
    starts = [feedback and engine.inner["start"] for engine in (counting(1), counting(1, seed=1))
              for _, feedback in engine]  # fmt: skip
    assert starts[0] != starts[1]


def test_resume_continues_to_the_bit(tmp_path):
    whole = ridge(9)
    values = [feedback.value for _, feedback in whole]
    first = ridge(4)
    assert len(list(first)) == 4
    torch.save(first.state_dict(), tmp_path / "a.pt")
    second = ridge(9)
    second.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert identical([feedback.value for _, feedback in second], values[4:])
    assert identical(second.state_dict(), whole.state_dict())


def test_resume_refuses_another_seed():
    with pytest.raises(ValueError, match="seed=0, this run has seed=1"):
        ridge(3, seed=1).load_state_dict(ridge(3).state_dict())


def test_seeds_differ():
    problem = Ridge()
    keys = []

    class Keys(Score):
        def __call__(self, loop, outer, inner, key):
            keys.append(key)
            return super().__call__(loop, outer, inner, key)

    for seed in (0, 1):
        optimizer = Schedule(Constant(0.0))
        assert len(list(Engine(problem, Keys(1), optimizer, outer_steps=3, seed=seed))) == 3
    assert len(set(keys)) == 6


def test_finish_runs_the_last_phase_and_metrics_are_named():
    engine = counting(2)
    assert len(list(engine)) == 2
    engine.finish()
    assert engine.metrics() == {"eval/count": 102.0, "eval/outer": 1.0}
    assert len(engine.problem.finished) == 1


def test_negative_outer_steps_are_refused():
    with pytest.raises(ValueError, match="Engine needs outer_steps >= 0; got outer_steps=-1"):
        counting(-1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ledger({"dollars": 3}), "dollars.*units are inner_steps, gradients"),
        (
            lambda: Ledger({"tokens": -3}),
            "must be a finite number >= 0, or null for no limit; got -3",
        ),
        (
            lambda: Ledger({"tokens": float("nan")}),
            "must be a finite number >= 0, or null for no limit; got nan",
        ),
        (
            lambda: Ledger({"tokens": True}),
            "must be a finite number >= 0, or null for no limit; got True",
        ),
        (lambda: Ledger([3]), "limits must be amounts by unit"),
        (lambda: Ledger().charge({"calls": 1}), "cost names the unit 'calls'"),
        (lambda: Ledger().charge({"tokens": -1}), "must be a finite number >= 0; got -1"),
    ],
)
def test_ledger_names_the_mistake(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ledger_counts_a_product_as_one_and_a_half_gradients():
    ledger = Ledger({"oracle_calls": 10})
    ledger.charge({"gradients": 4, "hvps": 3, "evaluations": 50})
    assert ledger.exhausted is None
    ledger.charge({"hvps": 1})
    assert ledger.exhausted == "oracle_calls"
    with pytest.raises(ValueError, match="cost names the unit 'oracle_calls'"):
        ledger.charge({"oracle_calls": 1})


def test_ledger_reports_the_first_limit_reached():
    ledger = Ledger({"tokens": 10, "lm_calls": 2})
    assert ledger.exhausted is None
    ledger.charge({"lm_calls": 1, "tokens": 4})
    assert ledger.exhausted is None
    ledger.charge({"lm_calls": 1})
    assert ledger.exhausted == "lm_calls"
    assert ledger.spent == {"lm_calls": 2, "tokens": 4}


def test_loading_a_state_shares_nothing_with_it():
    def engine():
        return Engine(Ridge(), Unroll(3), Descent(partial(torch.optim.Adam, lr=0.1)), outer_steps=9)

    first = engine()
    steps = iter(first)
    next(steps)
    state = first.state_dict()
    second, third = engine(), engine()
    second.load_state_dict(state)
    third.load_state_dict(state)
    assert [float(f.value) for _, f in second] == [float(f.value) for _, f in third]


class Sides(Counter):
    """Reports a value for each of three replicates, and a number."""

    shape = (3,)

    def metrics(self, outer, inner):
        return {"own": torch.arange(1.0, 4.0).reshape(self.shape), "all": 2}


def test_metrics_of_replicates_are_their_means():
    engine = counting(1, Sides())
    assert engine.measured() == {}
    assert len(list(engine)) == 1
    assert engine.metrics() == {"eval/own": 2.0, "eval/all": 2.0}
    assert engine.measured()["eval/own"].tolist() == [1.0, 2.0, 3.0]


class Watcher(Ridge):
    """Keeps the hypergradients that it is shown, and the phi they are of."""

    def observe(self, outer, inner, feedback):
        history = inner.state.get("seen", torch.zeros(0, dtype=torch.float64))
        entry = torch.stack([outer["log_penalty"].sum(), feedback.grad["log_penalty"].sum()])
        return inner._replace(state={"seen": torch.cat([history, entry])})


def test_a_problem_observes_each_hypergradient_before_the_optimizer_steps_along_it():
    descent = Descent(partial(torch.optim.SGD, lr=1.0))
    engine = Engine(Watcher(), Unroll(1), descent, outer_steps=3)
    expected, outer = [], descent.solution["log_penalty"].clone()
    for _, feedback in engine:
        expected += [outer.sum(), feedback.grad["log_penalty"].sum()]
        outer = descent.solution["log_penalty"].clone()
    assert torch.equal(engine.inner.state["seen"], torch.stack(expected))
    assert engine.inner.step == 3


def test_a_metric_that_is_a_table_is_refused():
    problem = Sides()
    problem.shape = (3, 1)
    engine = counting(1, problem)
    assert len(list(engine)) == 1
    with pytest.raises(ValueError, match=r"metric own of Sides .*got the shape \(3, 1\)"):
        engine.metrics()
