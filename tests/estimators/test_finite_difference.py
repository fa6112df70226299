"""FiniteDifference against the exact product, in float64 and at size in float32."""

import pytest
import torch
from cases import Classification, cosine, relative_error
from test_attention import Reweighting

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import FiniteDifference, Identity, Implicit
from metaopt.estimators.constants import RecordDetached, ReplayDetached
from metaopt.problems.examples import Quadratic
from metaopt.testing.meter import PeakMemory


def both(problem, estimator=None, steps=3):
    """Return the estimate and the exact -J^T v, at the same point and key."""
    outer = problem.init_outer(torch.Generator().manual_seed(0))
    inner = InnerLoop(problem).run(outer, InnerLoop(problem).start(outer, None, 0), 1, steps)
    _, exact = Implicit(Identity(), inner_steps=1)(InnerLoop(problem), outer, tree.clone(inner), 7)
    _, feedback = (estimator or FiniteDifference())(InnerLoop(problem), outer, inner, 7)
    return feedback.grad, exact.grad


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.1},
        {"batch_norm": True},
        {"frozen": True, "tied": True, "unused": True},
        {"pattern": "net"},
        {"pattern": "no_grad", "dropout": 0.1, "batch_norm": True},
        {"pattern": "direct"},
    ],
)
def test_equals_the_exact_product_in_float64(settings):
    estimate, exact = both(Classification(**settings))
    assert relative_error(estimate, exact) < 1e-6


def test_is_exact_on_a_quadratic():
    problem = Quadratic()
    estimate, exact = both(problem, FiniteDifference(epsilon=0.1))
    assert relative_error(estimate, exact) < 1e-12


@pytest.mark.parametrize("hidden", [250, 960], ids=["80 k", "1 M"])
@pytest.mark.parametrize("pattern", ["rows", "net", "no_grad"])
def test_default_radius_suits_both_sizes_in_float32(hidden, pattern):
    problem = Classification(
        hidden=hidden, features=64, rows=64, dropout=0.1, pattern=pattern, dtype=torch.float32
    )
    estimate, exact = both(problem, steps=1)
    assert relative_error(estimate, exact) < 1e-2
    assert cosine(estimate, exact) > 0.999


class SeveralPrecisions(GradientProblem):
    """A coupling of phi and theta that is computed in float64, of which parts are kept coarser."""

    inner_optimizer = SGD(lr=0.05)

    def __init__(self, phi=torch.float64, theta=(torch.float64, torch.float64), loss=torch.float64):
        draw = torch.Generator().manual_seed(0)
        self.start = torch.randn(2, 4, generator=draw, dtype=torch.float64)
        self.outer = torch.randn(6, generator=draw, dtype=torch.float64).to(phi)
        self.coupling = torch.randn(8, 6, generator=draw, dtype=torch.float64)
        self.theta, self.loss = theta, loss

    def init_outer(self, generator):
        return {"phi": self.outer}

    def init_params(self, outer, generator):
        return {str(i): self.start[i].to(dtype) for i, dtype in enumerate(self.theta)}

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        theta = torch.cat([inner["0"].to(self.loss), inner["1"].to(self.loss)])
        mixed = theta.tanh() @ self.coupling.to(self.loss) @ outer["phi"].to(self.loss).tanh()
        return theta.square().sum() + mixed

    def outer_loss(self, outer, inner, batch):
        return sum((value.double() - 1).square().sum() for value in inner.values())


@pytest.mark.parametrize(
    "coarse",
    [
        {"phi": torch.float32},
        {"theta": (torch.float64, torch.float32)},
        {"loss": torch.float32},
    ],
)
def test_the_default_radius_is_that_of_the_coarsest_precision(coarse):
    _, exact = both(SeveralPrecisions())
    estimate, _ = both(SeveralPrecisions(**coarse))
    assert relative_error({k: v.double() for k, v in estimate.items()}, exact) < 2e-3


def test_works_with_fused_attention():
    estimate, exact = both(Reweighting())
    assert relative_error(estimate, exact) < 1e-6


def test_averages_v_over_ranks_before_the_product(monkeypatch):
    problem = Quadratic(rho=0.0)
    outer = {"phi": torch.ones(5, dtype=torch.float64)}
    inner = InnerLoop(problem).start(outer, None, 0)
    estimator = FiniteDifference(epsilon=0.1, inner_steps=0)
    _, alone = estimator(InnerLoop(problem), outer, inner, 0)
    monkeypatch.setattr("metaopt.engine.distributed.mean", lambda values: tree.scale(values, 0.5))
    _, halved = estimator(InnerLoop(problem), outer, inner, 0)
    torch.testing.assert_close(halved.grad["phi"], 0.5 * alone.grad["phi"])


@pytest.mark.parametrize("hidden", [250, 960], ids=["80 k", "1 M"])
def test_under_bfloat16_autocast_the_default_radius_is_larger(hidden):
    class Mixed(Classification):
        compute_dtype = torch.bfloat16

        def losses(self, inner, x, y):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().losses(inner, x, y)

    problem = Mixed(hidden=hidden, features=64, rows=64, pattern="net", dtype=torch.float32)
    estimate, exact = both(problem, FiniteDifference(), steps=1)
    assert cosine(estimate, exact) > 0.99


class Counted(torch.autograd.Function):
    """Identity that counts how often a gradient comes back through it."""

    backwards = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Counted.backwards += 1
        return grad


@pytest.mark.parametrize("pattern", ["rows", "net"])
def test_row_weights_need_no_reverse_pass_through_the_model(pattern, monkeypatch):
    class Watched(Classification):
        def losses(self, inner, x, y):
            return Counted.apply(super().losses(inner, x, y))

    monkeypatch.setattr(Counted, "backwards", 0)
    problem = Watched(pattern=pattern)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    FiniteDifference(inner_steps=0)(InnerLoop(problem), outer, inner, 7)
    assert Counted.backwards == 1, "only dF/dtheta goes through the model"


class Moving(ReplayDetached):
    """Replays nothing, as a finite difference without the recording."""

    def __init__(self, constants):
        super().__init__({})


def test_without_replay_it_differentiates_through_the_detach(monkeypatch):
    monkeypatch.setattr("metaopt.estimators.finite_difference.ReplayDetached", Moving)
    estimate, exact = both(Classification(pattern="net"))
    assert relative_error(estimate, exact) > 0.1


def test_needs_v_and_one_copy_of_the_parameters():
    problem = Classification(hidden=400, features=64, dtype=torch.float32)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    size = sum(p.nbytes for p in inner.params.values())
    with PeakMemory() as meter:
        FiniteDifference(inner_steps=0)(InnerLoop(problem), outer, inner, 7)
    assert 2 * size < meter.peak < 2.5 * size, "the rest is activations"


@pytest.mark.parametrize("batch_norm", [False, True])
def test_parameters_and_buffers_come_back_bit_for_bit(batch_norm):
    problem = Classification(batch_norm=batch_norm, dropout=0.1)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    before = tree.clone(inner)
    after, _ = FiniteDifference(inner_steps=0)(InnerLoop(problem), outer, inner, 7)
    for name, value in {**before.params, **before.buffers}.items():
        assert torch.equal(value, {**after.params, **after.buffers}[name])


def test_batch_norm_counts_each_inner_step_once():
    problem = Classification(batch_norm=True)
    outer = problem.init_outer(None)
    after, _ = FiniteDifference(inner_steps=3)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 7
    )
    assert after.buffers["norm.num_batches_tracked"] == 3


class Failing(Classification):
    """Its inner loss fails on one of its calls."""

    calls, fails_at = 0, 0

    def inner_loss(self, outer, inner, batch):
        self.calls += 1
        if self.calls == self.fails_at:
            raise FloatingPointError("the loss failed")
        return super().inner_loss(outer, inner, batch)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_parameters_come_back_after_an_exception(fails_at):
    problem = Failing()
    problem.fails_at = fails_at
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).start(outer, None, 0)
    before = tree.clone(inner.params)
    with pytest.raises(FloatingPointError):
        FiniteDifference(inner_steps=0)(InnerLoop(problem), outer, inner, 7)
    assert all(torch.equal(before[k], inner.params[k]) for k in before)


class Forgetful(Classification):
    """Detaches on odd evaluations and clones on even ones."""

    calls = 0

    def inner_loss(self, outer, inner, batch):
        self.calls += 1
        first = inner["first.weight"]
        constant = first.detach() if self.calls % 2 else first.clone()
        return super().inner_loss(outer, inner, batch) + constant.sum()


def test_a_loss_with_hidden_state_is_refused():
    problem = Forgetful()
    outer = problem.init_outer(None)
    with pytest.raises(RuntimeError, match="same calls"):
        FiniteDifference(inner_steps=0)(
            InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 7
        )


def test_zero_direction_gives_the_direct_term():
    class Flat(Classification):
        def outer_loss(self, outer, inner, batch):
            return (outer["weights"] ** 2).sum()

    estimate, _ = both(Flat())
    torch.testing.assert_close(
        estimate["weights"], 2 * Flat().init_outer(None)["weights"], rtol=0, atol=0
    )


class Double(torch.autograd.Function):
    """2 x, as a custom function."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def constants_of_everything(x, buffer):
    """Return a differentiable value and each kind of constant torch offers."""
    values, index = (x * x).max(dim=0)
    with torch.no_grad():
        buffer.mul_(0.5).add_(x)
        hidden = x.exp()
    flags = (x > 1).to(x.dtype)
    number = x.sum().item()
    return Double.apply(x).sum() + values, [
        x.detach(),
        x.data,
        index,
        flags,
        hidden,
        buffer,
        number,
    ]


def test_every_kind_of_constant_is_replayed_and_the_rest_moves():
    x, y = torch.tensor([0.5, 2.0], requires_grad=True), torch.tensor([3.0, 0.1])
    buffers = torch.ones(2), torch.ones(2)
    with RecordDetached() as record:
        _, first = constants_of_everything(x, buffers[0])
    with ReplayDetached(record.constants):
        value, second = constants_of_everything(y, buffers[1])
    assert float(value) == pytest.approx(2 * 3.1 + 9)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize(
    ("settings", "name"), [({"epsilon": 0.0}, "epsilon"), ({"inner_steps": -1}, "inner_steps")]
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        FiniteDifference(**settings)
