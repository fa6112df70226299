"""Modules of users, under every estimator: right, or refused with a way out."""

from pathlib import Path

import pytest
import torch
from user_modules import KINDS, REFUSED, Regression, relative_error, second_order, seeded, whole_run

from metaopt.engine.gradient_problem import split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import (
    ConjugateGradient,
    Direct,
    Exact,
    FiniteDifference,
    Forward,
    Identity,
    Implicit,
    Nystrom,
    OneStep,
    Penalty,
    Sama,
    Score,
    Unroll,
)


def gradient(problem, estimator):
    loop = InnerLoop(problem)
    estimator.check(loop)
    outer = problem.init_outer(None)
    return estimator(loop, outer, loop.start(outer, None, 3), 3)[1].grad["weights"]


# What each estimator computes, without any estimator's code.
EXACT = {
    "unroll": (lambda: Unroll(3), lambda problem: whole_run(problem, 3)),
    "segments": (lambda: Unroll(3, segments=3), lambda problem: whole_run(problem, 3)),
    "forward": (lambda: Forward(3), lambda problem: whole_run(problem, 3)),
    "one_step": (lambda: OneStep(1), lambda problem: whole_run(problem, 1)),
    "implicit_identity": (lambda: Implicit(Identity()), lambda problem: second_order(problem, 1)),
    "finite_difference": (lambda: FiniteDifference(), lambda problem: second_order(problem, 1)),
    "sama": (
        lambda: Sama(),
        lambda problem: second_order(problem, 1) * problem.inner_optimizer.lr,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", EXACT)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * ("compiled" in k)) for k in KINDS]
)
def test_equals_differences_without_an_estimator(kind, estimator):
    problem = Regression(KINDS[kind]())
    make, oracle = EXACT[estimator]
    assert relative_error(gradient(problem, make()), oracle(problem)) < 1e-6


@pytest.mark.parametrize("estimator", [Forward(2), Unroll(2)])
def test_a_transposed_outer_tensor_has_the_gradient_of_a_contiguous_one(estimator):
    grads = []
    for transposed in (False, True):
        problem = Regression(KINDS["in place"]())
        weights = torch.linspace(-1, 1, 6).view(2, 3)
        outer = {"weights": weights.T.contiguous().T if transposed else weights}
        problem.init_outer = lambda generator, outer=outer: outer
        grads.append(gradient(problem, estimator))
    assert torch.allclose(*grads, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", [*EXACT, "score"])
@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_before_the_run_or_right(kind, estimator):
    make, words = REFUSED[kind]
    problem = Regression(seeded(make)())
    build, oracle = EXACT.get(estimator, (Score, None))
    if estimator in words:
        with pytest.raises(ValueError, match=words[estimator]):
            build().check(InnerLoop(problem))
    elif oracle is None:
        build().check(InnerLoop(problem))
    else:
        assert relative_error(gradient(problem, build()), oracle(problem)) < 1e-6


@pytest.mark.parametrize("estimator", [*EXACT, "score"])
def test_a_checkpointed_outer_network_is_refused(estimator):
    network = seeded(REFUSED["checkpointed"][0])().double()

    class Weighted(Regression):
        def init_outer(self, generator):
            return split_module(network)[0]

        def inner_loss(self, outer, inner, batch):
            weights = torch.func.functional_call(network, outer, (batch[0],)).flatten(1).mean(1)
            return (weights.sigmoid() * self.losses(inner, batch)).mean()

    build = EXACT[estimator][0] if estimator in EXACT else Score
    with pytest.raises(ValueError, match="checkpoint"):
        build().check(InnerLoop(Weighted(KINDS["in place"]())))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "whose", ["the parameter 'layer.weight'", "the outer variable's 'weights'"]
)
def test_half_precision_is_refused_where_it_rounds_the_result_away(whose, half):
    problem = Regression(KINDS["in place"](), half if "param" in whose else torch.float32)
    if "outer" in whose:
        problem.init_outer = lambda generator: {"weights": torch.linspace(-1, 1, 3).to(half)}
    message = f"more precision than {whose} of Regression has .{half}.*compute_dtype"
    for estimator in (FiniteDifference(), Sama(), Penalty()):
        with pytest.raises(ValueError, match=message):
            estimator.check(InnerLoop(problem))
    for estimator in (Implicit(Exact()), Implicit(ConjugateGradient(preconditioner=Nystrom(2)))):
        if "param" in whose:
            with pytest.raises(ValueError, match=message):
                estimator.check(InnerLoop(problem))
        else:
            estimator.check(InnerLoop(problem))


@pytest.mark.parametrize(
    ("build", "oracle"),
    [EXACT["unroll"], EXACT["forward"], EXACT["one_step"], EXACT["implicit_identity"]],
)
def test_other_estimators_in_bfloat16_are_within_its_rounding(build, oracle):
    problem, half = Regression(KINDS["in place"]()), Regression(KINDS["in place"](), torch.bfloat16)
    assert relative_error(gradient(half, build()), oracle(problem)) < 0.05


@pytest.mark.parametrize("estimator", [FiniteDifference(), Sama()])
def test_a_loss_that_computes_in_half_precision_says_so(estimator):
    class Autocast(Regression):
        def losses(self, inner, batch):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().losses(inner, batch)

    problem = Autocast(KINDS["in place"](), torch.float32)
    with pytest.raises(ValueError, match=r"computes in torch.bfloat16.*set Autocast.compute_dtype"):
        estimator.check(InnerLoop(problem))
    problem.compute_dtype = torch.bfloat16
    estimator.check(InnerLoop(problem))


def test_a_weight_that_functional_call_does_not_replace_is_named():
    class InAList(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
            self.weights = [self.layer.weight]

        def forward(self, x):
            return self.head((x @ self.weights[0]).tanh())

    class Direct(Regression):
        def losses(self, inner, batch):
            return (self.module(batch[0]).flatten(1).mean(1) - batch[1]) ** 2

    for problem in (Regression(InAList().double()), Direct(KINDS["in place"]())):
        loop, outer = InnerLoop(problem), problem.init_outer(None)
        with pytest.raises(ValueError, match=r"does not read its parameter 'layer\.weight', and"):
            loop.run(outer, loop.start(outer, None, 3), 3, 1)


def test_a_module_of_zeros_that_is_called_with_its_own_weights_is_named():
    class Direct(Regression):
        def losses(self, inner, batch):
            return (self.module(batch[0]).flatten(1).mean(1) - batch[1]) ** 2

    module = KINDS["in place"]()
    for weight in module.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(ValueError, match=r"of Direct does not read .* reads weights of a module's"):
        Unroll(3).check(InnerLoop(Direct(module)))
    Unroll(3).check(InnerLoop(Regression(module)))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("estimator", [FiniteDifference(), Sama()])
def test_a_hook_on_gradients_that_a_difference_cannot_replay_is_named(estimator):
    module = KINDS["unused"]()
    module.layer.register_full_backward_hook(lambda layer, before, after: None)
    problem = Regression(module)
    with pytest.raises(ValueError, match=r"cannot differentiate .* take hooks on gradients out"):
        estimator.check(InnerLoop(problem))
    assert relative_error(gradient(problem, Unroll(3)), whole_run(problem, 3)) < 1e-6


CHECKPOINTED = [kind for kind in REFUSED if kind.startswith("checkpointed")]


@pytest.mark.parametrize("kind", [*CHECKPOINTED, "generator of its own"])
def test_training_without_an_estimator_refuses_them_too(kind):
    problem = Regression(seeded(REFUSED[kind][0])())
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    with pytest.raises(ValueError, match=REFUSED[kind][1]["score"]):
        loop.run(outer, loop.start(outer, None, 3), 3, 1)
    with pytest.raises(ValueError, match=REFUSED[kind][1]["score"]):
        loop.step(outer, loop.start(outer, None, 3), loop.draw(loop.start(outer, None, 3), 3, 0))


@pytest.mark.parametrize("build", [*(build for build, _ in EXACT.values()), Direct])
@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_a_checkpointed_module_of_the_outer_loss_is_refused(kind, build):
    class OuterAlone(Regression):
        def inner_loss(self, outer, inner, batch):
            return sum((outer["weights"].sum() - t).square().sum() for t in inner.params.values())

    problem = OuterAlone(seeded(REFUSED[kind][0])())
    with pytest.raises(ValueError, match="outer_loss of OuterAlone recomputes layers"):
        build().check(InnerLoop(problem))


def test_the_modules_are_tried_once():
    class Counted(Regression):
        evaluations = 0

        def inner_loss(self, outer, inner, batch):
            self.evaluations += 1
            return super().inner_loss(outer, inner, batch)

    problem = Counted(KINDS["in place"]())
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    inner = loop.run(outer, loop.start(outer, None, 3), 3, 1)
    assert problem.evaluations == 4
    loop.run(outer, inner, 4, 5)
    assert problem.evaluations == 9


@pytest.mark.parametrize("kind", ["weight_norm", "function without a second derivative"])
def test_a_wrong_second_derivative_is_refused_in_float32(kind):
    problem = Regression(seeded(REFUSED[kind][0])(), torch.float32)
    with pytest.raises(ValueError, match="finite_difference"):
        Unroll(3).check(InnerLoop(problem))


def test_a_kink_beside_theta_does_not_refuse_a_problem():
    class Kinked(Regression):
        def inner_loss(self, outer, inner, batch):
            kink = outer["weights"].square().sum() * inner["weight"].relu().sum()
            return super().inner_loss(outer, inner, batch) + kink

    module = seeded(lambda: torch.nn.Linear(4, 1))()
    with torch.no_grad():
        module.weight[0, 0] = 1e-6  # nearer to the kink than a difference's radius in float32
    Unroll(2).check(InnerLoop(Kinked(module, torch.float32)))


def test_spectral_norm_in_evaluation_mode_is_exact():
    problem = Regression(seeded(REFUSED["spectral_norm"][0])().eval())
    assert relative_error(gradient(problem, Unroll(3)), whole_run(problem, 3)) < 1e-6


def test_a_lazy_module_is_named():
    with pytest.raises(ValueError, match="'weight' of LazyLinear has no shape yet"):
        split_module(torch.nn.LazyLinear(3))


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_a_scripted_module_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="Pass the module that it was made of"):
        split_module(torch.jit.script(torch.nn.Linear(3, 2)))


def test_the_table_in_the_docs_is_what_these_tests_hold():
    page = Path(__file__).parents[2] / "docs/own_model.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    table = {row[0].removeprefix("| "): [cell.rstrip(" |") for cell in row[1:]] for row in rows}
    columns = ("unroll", "one_step", "finite_difference", "score")
    for kind in KINDS:
        assert table[kind][:4] == ["right"] * 4
    for kind, (_, words) in REFUSED.items():
        assert table[kind][:4] == ["refused" if c in words else "right" for c in columns]
