import pytest
import torch
from reweighted_regression import KEY, Regression, problem, start

from metaopt.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.random import generator
from metaopt.engine.stacked_adam import StackedAdam
from metaopt.estimators import Unroll
from metaopt.optimizers import Descent
from metaopt.problems.domain_reweighting import DomainReweighting
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.rater_features import Bytes, NGrams
from metaopt.problems.domain_reweighting.rater_networks import MLP, Transformer
from metaopt.problems.domain_reweighting.retraining import savings

NETWORKS = {
    "mlp": lambda: Rater(NGrams((1,), 8), MLP(3)),
    "transformer": lambda: Rater(Bytes(6), Transformer(4, 1, 2)),
}


class Texts(Regression):
    """Regression whose examples have texts: the domain, and a letter of the target's sign."""

    text_columns = ("text",)

    def __init__(self, runs=None):
        super().__init__(runs=runs)
        words = [self.domains[k] for k in self.domain.tolist()]
        self.row_texts = [f"{w} {'+-'[int(y < 0)]}" for w, y in zip(words, self.y, strict=True)]


def moved(outer):
    """Return a phi in double precision whose scores are not 0; its members are equal."""
    draw = generator(5)
    noise = {k: torch.randn(v.shape[-2:], generator=draw) for k, v in outer.items()}
    return {k: (v + 0.3 * noise[k]).double() for k, v in outer.items()}


def hypergradient(of, outer, inner, steps=2):
    return Unroll(steps)(InnerLoop(of), outer, inner, KEY)[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_hypergradient_is_that_of_central_differences(network):
    of = problem(Texts(), weights=NETWORKS[network]())
    outer, inner = start(of)
    outer = moved(outer)
    inner = inner._replace(state={})
    grad = hypergradient(of, outer, inner).grad
    draw, h = generator(1), 1e-5
    way = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in outer.items()}

    def value(sign):
        at = {k: v + sign * h * way[k] for k, v in outer.items()}
        loop = InnerLoop(of)
        begun = loop.start(at, None, KEY)
        after = loop.run(at, begun, KEY, 2)
        return float(loop.outer_value(at, after, loop.outer_draw(after, KEY)))

    expected = (value(1) - value(-1)) / (2 * h)
    got = float(sum((grad[k] * way[k]).sum() for k in way))
    assert abs(expected) > 1e-6
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_members_learn_from_their_models_as_in_runs_of_their_own(network):
    together = problem(Texts(runs=3), weights=NETWORKS[network]())
    alone = problem(Texts(), weights=NETWORKS[network]())
    outer, inner = start(together)
    assert all(len(v) == 3 for v in outer.values())
    outer = moved(outer)
    params = {k: v.clone() for k, v in inner.params.items()}
    grad = hypergradient(together, outer, inner).grad
    for r in range(3):
        phi = {k: v[r] for k, v in outer.items()}
        _, own = start(alone)
        own.params["theta"].copy_(params["theta"][r])
        for name, value in hypergradient(alone, phi, own).grad.items():
            torch.testing.assert_close(grad[name][r], value, rtol=1e-9, atol=1e-12)


def test_weights_have_mean_1_and_are_1_at_first():
    of = problem(Texts(), weights=NETWORKS["mlp"]())
    outer, _ = start(of)
    rows = torch.arange(10)
    losses = torch.zeros(10)
    assert torch.equal(of.weights(outer, rows, rows, losses), torch.ones(10).double())
    weights = of.weights(moved(outer), rows, rows, losses)
    assert weights.std() > 1e-3
    assert float(weights.mean()) == pytest.approx(1)


def test_copies_are_counted_and_padding_is_not_read():
    features = NGrams((1,), 16)(["ab", "ab", "ba"])
    assert torch.equal(features[0, :16], features[2, :16])
    assert not torch.equal(features[0], features[2])
    network = Transformer(8, 2, 2)
    phi = moved(network.init(torch.zeros(1, 9), generator(0)))
    short, long = Bytes(4)(["abc", ""]), Bytes(9)(["abc", ""])
    torch.testing.assert_close(
        network(phi | {"places": phi["places"][:4]}, short), network(phi, long)
    )


def test_a_refreshed_model_starts_over_and_the_others_keep_their_bits():
    def state(refresh, steps):
        of = DomainReweighting(
            Texts(runs=2), StackedAdam(lr=0.05), NETWORKS["mlp"](), batch=8, meta_batch=8,
            refresh=refresh,
        )  # fmt: skip
        engine = Engine(of, Unroll(inner_steps=2), Descent(lr=0.0), outer_steps=steps)
        list(engine)
        return engine.inner

    # The second of two models is as old as half a life at first: it is renewed after step 4.
    before, kept, renewed = state(8, 1), state(0, 2), state(8, 2)
    assert before.state["born"].tolist() == [0, -4]
    assert renewed.state["born"].tolist() == [0, 4]
    for old, new in ((kept.params, renewed.params), *((kept.optimizer[k], renewed.optimizer[k])
                     for k in kept.optimizer)):  # fmt: skip
        assert torch.equal(old["theta"][0], new["theta"][0])
        assert not torch.equal(old["theta"][1], new["theta"][1])
    assert not any(moment["theta"][1].any() for moment in renewed.optimizer.values())


def test_a_run_resumes_to_the_bit_across_a_refresh():
    def engine(steps):
        of = DomainReweighting(
            Texts(runs=2), StackedAdam(lr=0.05), NETWORKS["mlp"](), batch=8, meta_batch=8, refresh=6
        )
        return Engine(
            of, Unroll(inner_steps=2), Descent("adam", lr=0.1, consensus=True), outer_steps=steps
        )

    whole, first, rest = engine(5), engine(2), engine(5)
    list(whole)
    list(first)
    rest.load_state_dict(first.state_dict())
    list(rest)
    assert torch.equal(whole.inner.params["theta"], rest.inner.params["theta"])
    solutions = whole.optimizer.solution, rest.optimizer.solution
    assert all(torch.equal(solutions[0][k], solutions[1][k]) for k in solutions[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problem(weights=Rater()), "Rater reads the texts .* Regression has none"),
        (lambda: Rater(NGrams(), Transformer()), "Transformer cannot read NGrams"),
        (lambda: Rater(Bytes(), MLP()), "MLP cannot read Bytes"),
        (lambda: NGrams(()), "NGrams needs orders >= 1, at least one"),
        (lambda: Transformer(5, 1, 2), "a width that heads divide; got width=5, heads=2"),
        (lambda: problem(Texts(), refresh=4), "refresh=4 .* two or more models"),
        (
            lambda: DomainReweighting(Texts(runs=2), Adam(lr=0.1), refresh=4),
            "refresh=4 needs an optimizer that counts each model's own steps",
        ),
        (
            lambda: problem(Texts(), weights=Rater(), retrain="average"),
            "retrain=average needs a WeightTable",
        ),
        (lambda: problem(Texts(), follow="error"), "follow=error is measured along a retraining"),
        (
            lambda: problem(Texts(), follow="loss", retrain="top", compare_uniform=True),
            "follow must be a metric of the task, error; got 'loss'",
        ),
        (lambda: StackedAdam(lr=0.1, clip_norm=1.0), "needs schedule=null and clip_norm=null"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sgd_needs_no_ages():
    of = DomainReweighting(Texts(runs=2), SGD(lr=0.1), refresh=4)
    assert of.models_trained == 2


def test_savings_are_counted_in_steps_and_gradients_of_examples():
    of = problem(Texts(runs=2), batch=8, follow="error", retrain="final", retrain_steps=90,
                 compare_uniform=True)  # fmt: skip
    _, inner = start(of)
    falling = torch.linspace(3, 0.1, 30)
    curves = {"curve": falling / 2, "uniform_curve": falling}
    figures = savings(of, inner._replace(state=curves), {"gradients": 5.0, "hvps": 2.0})
    # Thirty measurements along 90 steps; half of 3 - 0.1 k is at most 0.1 from the 29th on.
    assert figures == {"steps_to_uniform": 87, "row_gradients": 160, "break_even": 160 / (8 * 3)}
    never = savings(of, inner._replace(state=curves | {"curve": falling + 1}), {})
    assert never.keys() == {"row_gradients"}
