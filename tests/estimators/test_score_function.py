"""The score function against full enumeration of the labels of a small teacher."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import ScoreFunction
from metaopt.problems.examples import Ridge

ROWS, CLASSES = 3, 3


class Labels(GradientProblem):
    """A linear teacher labels three rows; a linear student takes a step on them."""

    def __init__(self, lr=0.5):
        self.inner_optimizer = SGD(lr=lr)
        self.labels = None
        draw = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, 2, generator=draw, dtype=torch.float64)
        self.held = torch.randn(5, 2, generator=draw, dtype=torch.float64)
        self.truth = torch.randint(CLASSES, (5,), generator=draw)

    def init_outer(self, generator):
        return {"w": torch.randn(CLASSES, 2, generator=generator, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"w": torch.randn(CLASSES, 2, generator=generator, dtype=torch.float64)}

    def inner_batch(self, draw):
        return self.x

    def outer_batch(self, draw):
        return self.held, self.truth

    def prepare_batch(self, outer, inner, batch, draw):
        if self.labels is not None:
            return batch, self.labels
        p = (batch @ outer["w"].T).softmax(1)
        return batch, torch.multinomial(p, 1, generator=draw.generator).squeeze(1)

    def inner_losses(self, outer, inner, batch):
        return F.cross_entropy(batch[0] @ inner["w"].T, batch[1], reduction="none")

    def inner_loss(self, outer, inner, batch):
        return self.inner_losses(outer, inner, batch).mean()

    def log_prob(self, outer, inner, batch):
        return -F.cross_entropy(batch[0] @ outer["w"].T, batch[1], reduction="none")

    def feedback_loss(self, outer, inner, batch):
        return F.cross_entropy(batch[0] @ inner["w"].T, batch[1])

    def outer_loss(self, outer, inner, batch):
        return self.feedback_loss(outer, inner, batch) + outer["w"].square().sum()


def enumerate_labels(problem, outer, inner, estimator):
    """Return sum_y p(y) estimate(y) and d/dphi sum_y p(y) F(theta'(y))."""
    phi = tree.leaves(outer)
    expected, total = torch.zeros_like(outer["w"]), 0.0
    for labels in itertools.product(range(CLASSES), repeat=ROWS):
        problem.labels = torch.tensor(labels)
        p = problem.log_prob(phi, inner.params, (problem.x, problem.labels)).sum().exp()
        after, feedback = estimator(InnerLoop(problem), outer, tree.clone(inner), 0)
        expected += p.detach() * feedback.grad["w"]
        loss = problem.outer_loss(phi, after.params, (problem.held, problem.truth))
        total = total + p * loss
    problem.labels = None
    return expected, torch.autograd.grad(total, phi["w"])[0]


@pytest.fixture
def case():
    problem = Labels()
    outer = problem.init_outer(torch.Generator().manual_seed(2))
    return problem, outer, InnerLoop(problem).start(outer, None, 0)


def test_loss_difference_is_unbiased(case):
    expected, exact = enumerate_labels(*case, ScoreFunction("loss_difference"))
    torch.testing.assert_close(expected, exact, rtol=1e-10, atol=1e-12)


def test_it_is_unbiased_in_a_learned_rate():
    class LearnedRate(Labels):
        def __init__(self):
            super().__init__()
            self.inner_optimizer = lambda outer, step: SGD(lr=outer["rate"])

        def init_outer(self, generator):
            rate = torch.tensor(0.5, dtype=torch.float64)
            return {**super().init_outer(generator), "rate": rate}

    problem = LearnedRate()
    outer = problem.init_outer(torch.Generator().manual_seed(2))
    inner = InnerLoop(problem).start(outer, None, 0)
    expected, loss = 0.0, torch.zeros(2, dtype=torch.float64)
    for labels in itertools.product(range(CLASSES), repeat=ROWS):
        problem.labels = torch.tensor(labels)
        p = problem.log_prob(outer, inner.params, (problem.x, problem.labels)).sum().exp()
        for feedback in ("loss_difference", "per_example"):
            estimator, copied = ScoreFunction(feedback), tree.clone(inner)
            grad = estimator(InnerLoop(problem), outer, copied, 0)[1].grad
            expected = expected + p * grad["rate"] / 2
        for i, rate in enumerate((0.5 + 1e-5, 0.5 - 1e-5)):
            weights = inner.params["w"].clone().requires_grad_()
            step = problem.inner_loss(outer, {"w": weights}, (problem.x, problem.labels))
            after = weights - rate * torch.autograd.grad(step, weights)[0]
            batch = problem.outer_batch(None)
            loss[i] += p * problem.outer_loss(outer, {"w": after.detach()}, batch)
    torch.testing.assert_close(expected, (loss[0] - loss[1]) / 2e-5, rtol=1e-7, atol=0)


def test_reversed_sign_points_the_other_way(case):
    problem, outer, inner = case
    _, exact = enumerate_labels(problem, outer, inner, ScoreFunction("loss_difference"))
    flipped, _ = enumerate_labels(
        problem, outer, inner, ScoreFunction("loss_difference", reversed=True)
    )
    direct = 2 * outer["w"]
    torch.testing.assert_close(flipped - direct, direct - exact)


@pytest.mark.parametrize("feedback", ["dot_product", "per_example"])
def test_first_order_forms_agree_for_a_small_learning_rate(feedback):
    problem = Labels(lr=1e-4)
    outer = problem.init_outer(torch.Generator().manual_seed(2))
    inner = InnerLoop(problem).start(outer, None, 0)
    expected, exact = enumerate_labels(problem, outer, inner, ScoreFunction(feedback))
    direct = 2 * outer["w"]
    torch.testing.assert_close(
        (expected - direct) / 1e-4, (exact - direct) / 1e-4, rtol=1e-2, atol=1e-6
    )


@pytest.mark.slow
def test_per_example_has_less_variance_than_one_number_for_the_batch(case):
    problem, outer, inner = case

    def spread(feedback):
        estimator = ScoreFunction(feedback)
        draws = [
            estimator(InnerLoop(problem), outer, tree.clone(inner), key)[1].grad["w"]
            for key in range(200)
        ]
        return torch.stack(draws).var(0).sum()

    assert spread("per_example") < 0.7 * spread("dot_product")


def test_cosine_is_free_of_the_learning_rate():
    def reward(lr):
        problem = Labels(lr=lr)
        outer = problem.init_outer(torch.Generator().manual_seed(2))
        inner = InnerLoop(problem).start(outer, None, 0)
        return ScoreFunction("cosine")(InnerLoop(problem), outer, inner, 0)[1].metrics[
            "outer/feedback"
        ]

    small, large = reward(1e-5), reward(1e-4)
    torch.testing.assert_close(small, large, rtol=1e-2, atol=0)
    assert abs(small) <= 1


def test_baseline_is_kept_across_a_save(case):
    problem, outer, inner = case
    first, second = ScoreFunction(baseline=0.9), ScoreFunction(baseline=0.9)
    first(InnerLoop(problem), outer, tree.clone(inner), 0)
    second.load_state_dict(tree.clone(first.state_dict()))
    a = first(InnerLoop(problem), outer, tree.clone(inner), 1)[1].grad["w"]
    b = second(InnerLoop(problem), outer, tree.clone(inner), 1)[1].grad["w"]
    assert torch.equal(a, b)


@pytest.mark.parametrize("feedback", ["loss_difference", "dot_product", "cosine", "per_example"])
def test_no_graph_is_kept_between_steps(case, feedback):
    problem, outer, inner = case
    estimator = ScoreFunction(feedback, baseline=0.9)
    for key in range(2):
        inner, result = estimator(InnerLoop(problem), outer, inner, key)
    tensors = [result.grad["w"], result.value, inner.loss, *inner.params.values()]
    tensors += [*result.metrics.values(), estimator.state_dict()["average"]]
    assert not any(t.requires_grad for t in tensors)


def test_per_example_rewards_add_up_with_a_constant_factor_in_the_loss():
    class Weighted(Labels):
        def inner_losses(self, outer, inner, batch):
            losses = super().inner_losses(outer, inner, batch)
            with torch.no_grad():
                factor = losses.exp()
            return factor * losses

    problem = Weighted()
    outer = problem.init_outer(torch.Generator().manual_seed(2))
    inner = InnerLoop(problem).start(outer, None, 0)
    mean, total = (
        ScoreFunction(kind)(InnerLoop(problem), outer, inner, 0)[1].metrics["outer/feedback"]
        for kind in ("per_example", "dot_product")
    )
    torch.testing.assert_close(ROWS * mean, total)


def test_clip_bounds_the_advantage(case):
    problem, outer, inner = case
    _, feedback = ScoreFunction("loss_difference", clip=1e-12)(InnerLoop(problem), outer, inner, 0)
    torch.testing.assert_close(feedback.grad["w"], 2 * outer["w"], rtol=1e-9, atol=1e-9)


def test_a_problem_without_decisions_is_refused_with_advice():
    with pytest.raises(TypeError, match="estimator=one_step"):
        ScoreFunction().check(InnerLoop(Ridge()))


@pytest.mark.parametrize(
    "arguments", [{"feedback": "loss"}, {"baseline": 1.0}, {"clip": 0.0}, {"weight": -1.0}]
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ScoreFunction(**arguments)


def test_a_loss_without_forward_mode_is_refused_where_each_example_is_rewarded():
    class Margins(Labels):
        def inner_losses(self, outer, inner, batch):
            return F.multi_margin_loss(batch[0] @ inner["w"].T, batch[1], reduction="none")

    with pytest.raises(ValueError, match=r"losses of Margins: .*forward AD.*=dot_product"):
        ScoreFunction().check(InnerLoop(Margins()))
    ScoreFunction("dot_product").check(InnerLoop(Margins()))
