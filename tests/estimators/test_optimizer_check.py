"""The sentences for an inner optimizer of phi whose derivative would be missing."""

import pytest
import torch
from learned_rates import PHI, STEPS, Linear, Regression

from metaopt import SGD, Adam, AdamW
from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import (
    Direct,
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)


def test_a_step_without_a_rate_is_refused_before_the_run():
    with pytest.raises(
        ValueError, match=r"Linear.inner_optimizer\(outer, step=4\): .*one rate for"
    ):
        Unroll(STEPS + 1).check(InnerLoop(Linear(per_step=True)))


@pytest.mark.parametrize("estimator", [Unroll(STEPS, truncation=2), OneStep(STEPS)])
def test_rates_of_steps_that_are_not_differentiated_are_refused(estimator):
    class Warm(Linear):
        warm_start = True
        init_params = lambda self, outer, generator: {"theta": torch.ones(4).double()}  # noqa: E731

    with pytest.raises(ValueError, match=r"elements of outer\['rates'\] decide .* steps before"):
        estimator.check(InnerLoop(Warm(per_step=True)))
    estimator.check(InnerLoop(Warm()))


REFUSED = {
    "first order": (FirstOrder(STEPS), "FirstOrder does not differentiate the inner optimizer"),
    "finite difference": (FiniteDifference(), "makes lr of the outer variable"),
    "sama": (Sama(), "Sama does not differentiate"),
    "identity": (Implicit(Identity()), "Implicit does not differentiate"),
    "penalty": (Penalty(), "Penalty does not differentiate"),
    "implicit": (Implicit(), "phi makes lr of SGD, which does not move the stationary point"),
    "exact": (Implicit(Exact()), "phi makes lr of SGD, which does not move the stationary point"),
    "soba": (Soba(), "phi makes lr of SGD, which does not move the stationary point"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_estimators_of_a_stationary_point_refuse_learned_rates(name):
    estimator, message = REFUSED[name]
    copied = Regression(None, {}).theta if name == "first order" else {}  # which it asks for
    rates = {"log_rates": torch.zeros(()), **copied}
    problem = Regression(lambda o, k: SGD(lr=o["log_rates"].exp()), rates)
    with pytest.raises(ValueError, match=rf"{message}.*estimator=unroll, forward or one_step"):
        estimator.check(InnerLoop(problem))
    momentum = Regression(lambda o, k: SGD(lr=0.1, momentum=o["momentum"]), {**PHI, **copied})
    with pytest.raises(ValueError, match=r"momentum .*estimator=unroll, forward or one_step"):
        estimator.check(InnerLoop(momentum))
    Direct(STEPS).check(InnerLoop(problem))


@pytest.mark.parametrize(
    "rate",
    [
        lambda outer: 0.1 * outer.get("rate").exp().item(),
        lambda outer: next(iter(outer.values())).item(),
        lambda outer: dict(outer.items())["rate"].tolist(),
    ],
)
def test_a_rate_is_read_in_any_way_that_a_dict_is(rate):
    outer = {"rate": torch.tensor(0.1, dtype=torch.float64), **PHI}
    problem = Regression(lambda o, k: SGD(lr=rate(o), momentum=o["momentum"]), outer)
    with pytest.raises(ValueError, match=r"reads outer\['rate'\], and no derivative leads"):
        Unroll(STEPS).check(InnerLoop(problem))


def test_a_function_that_makes_no_optimizer_is_named():
    problem = Regression(lambda outer, step: None, PHI)
    with pytest.raises(TypeError, match=r"inner_optimizer\(outer, step=0\) returned NoneType"):
        Unroll().check(InnerLoop(problem))


def test_an_optimizer_of_another_kind_in_later_steps_is_refused():
    def make(outer, step):
        return SGD(lr=outer["log_rates"][0].exp(), momentum=0.9 if step else 0.0)

    message = "SGD with momentum for step 3, and SGD with no moments for the first"
    with pytest.raises(ValueError, match=message):
        Unroll(STEPS).check(InnerLoop(Regression(make, PHI)))


@pytest.mark.parametrize(
    "read", [lambda t: float(t.detach()), lambda t: t.detach(), lambda t: t.data, lambda t: 0 * 1.0]
)
def test_a_rate_that_is_read_without_its_derivative_is_named(read):
    def make(outer, step):
        return SGD(lr=read(outer["rate"]), momentum=outer["momentum"])

    problem = Regression(make, PHI | {"rate": torch.tensor(0.1, dtype=torch.float64)})
    for estimator in (Unroll(STEPS), OneStep(), Implicit()):
        with pytest.raises(ValueError, match=r"reads outer\['rate'\], and no derivative leads"):
            estimator.check(InnerLoop(problem))
    EvolutionStrategies().check(InnerLoop(problem))


ALL = {"match": "weight|bias|head", "lr": 0.1, "weight_decay": 0.1}
UNUSED = {
    "replaced by groups": lambda rate: SGD(lr=rate, groups=[ALL]),
    "a decay that is replaced": lambda rate: Adam(lr=0.1, weight_decay=rate, groups=[ALL]),
    "one of a dict": lambda rate: AdamW(
        lr={"weight": rate, "bias": rate * 2, "head": 0.1}, groups=[{"match": "bias", "lr": 0.1}]
    ),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_learned_number_that_steps_no_parameter_is_named(name):
    phi = {"rate": torch.tensor(0.1, dtype=torch.float64)}
    loop = InnerLoop(Regression(lambda outer, step: UNUSED[name](outer["rate"]), phi))
    for estimator in (Unroll(STEPS), Forward(STEPS), OneStep()):
        with pytest.raises(ValueError, match=r"steps no parameter.*are weight, bias, head"):
            estimator.check(loop)


def test_a_group_that_matches_nothing_is_refused_before_the_run():
    groups = [{"match": "bais", "lr": 0.2}]
    for optimizer in (
        lambda outer, step: SGD(lr=outer["rate"], groups=groups),
        SGD(lr=0.1, groups=groups),
    ):
        loop = InnerLoop(Regression(optimizer, {"rate": torch.tensor(0.1, dtype=torch.float64)}))
        for estimator in (Unroll(STEPS), EvolutionStrategies()):
            with pytest.raises(ValueError, match=r"group 'bais' of SGD matches no .* are bias, "):
                estimator.check(loop)


def test_a_learned_rate_that_groups_inherit_steps_them():
    phi = {"rate": torch.tensor(0.1, dtype=torch.float64)}
    groups = [{"match": "w|b|h", "weight_decay": 0.1}]
    Unroll(STEPS).check(InnerLoop(Regression(lambda o, k: SGD(lr=o["rate"], groups=groups), phi)))
