"""Functional inner optimizers against `torch.optim`, step for step, in both forms."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    SequentialLR,
)

from metaopt.engine import tree
from metaopt.engine.elementwise import safe_sqrt
from metaopt.engine.inner_optimizers import (
    SGD,
    Adam,
    AdamW,
    NormalizedSGD,
)
from metaopt.engine.schedules import Cosine, StepDecay

STEPS = 12

PAIRS = {
    "sgd": (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    "sgd_decay": (
        SGD(lr=0.1, weight_decay=0.03), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.03}
    ),
    "momentum": (
        SGD(lr=0.1, momentum=0.9, weight_decay=0.03),
        torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03},
    ),
    "nesterov": (
        SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.03),
        torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
    ),
    "adam": (Adam(lr=0.1), torch.optim.Adam, {"lr": 0.1}),
    "adam_decay": (
        Adam(lr=0.1, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.03),
        torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.03},
    ),
    "adamw": (AdamW(lr=0.1), torch.optim.AdamW, {"lr": 0.1}),
    "adamw_decay": (
        AdamW(lr=0.1, weight_decay=0.2), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}
    ),
}  # fmt: skip


def start():
    draw = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (4, 3), "layer.bias": (4,), "head.weight": (2, 4)}
    return {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}


def gradient(params, step):
    """Return a gradient that depends on the parameters and on the step."""
    return {k: torch.sin(3 * v + step) + 0.1 * v for k, v in params.items()}


def torch_run(algorithm, settings, *, groups=None, scheduler=None, clip=None):
    params = {k: v.clone().requires_grad_() for k, v in start().items()}
    grouped = list(params.values()) if groups is None else groups(params)
    optimizer = algorithm(grouped, foreach=True, **settings)
    schedule = scheduler(optimizer) if scheduler else None
    for step in range(STEPS):
        for name, grad in gradient(params, step).items():
            params[name].grad = grad.detach()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return tree.detach(params)


def functional_run(optimizer):
    params = start()
    state = optimizer.init(params)
    for step in range(STEPS):
        params, state = optimizer.update(params, gradient(params, step), state, step)
    return params


def in_place_run(optimizer):
    params = start()
    pointers = [v.data_ptr() for v in params.values()]
    state = optimizer.init(params)
    for step in range(STEPS):
        optimizer.update_(params, gradient(params, step), state, step)
    assert [v.data_ptr() for v in params.values()] == pointers
    return params


def assert_agree(optimizer, expected, exact=True):
    result = in_place_run(optimizer)
    for name, value in functional_run(optimizer).items():
        assert torch.equal(value, result[name])
        if exact:
            assert torch.equal(result[name], expected[name])
        else:
            torch.testing.assert_close(result[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name):
    optimizer, algorithm, settings = PAIRS[name]
    expected = torch_run(algorithm, settings)
    assert_agree(optimizer, expected)
    assert not torch.equal(expected["head.weight"], start()["head.weight"])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_forms_agree_to_the_bit(name, clip, dtype):
    # Sizes beside multiples of a vector register's: kernels compute the rest by other instructions.
    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (37, 13), "vector": (7,), "scalar": (), "square": (16, 16)}
    fields = {k: getattr(PAIRS[name][0], k) for k in PAIRS[name][0].__dataclass_fields__}
    optimizer = type(PAIRS[name][0])(**{**fields, "clip_norm": clip, "schedule": Cosine(20)})
    new = {k: torch.randn(s, generator=draw, dtype=dtype) for k, s in shapes.items()}
    changed, moments = tree.clone(new), optimizer.init(new)
    in_place = tree.clone(moments)
    for step in range(STEPS):
        optimizer.update_(changed, gradient(new, step), in_place, step)
        new, moments = optimizer.update(new, gradient(new, step), moments, step)
        for a, b in zip(
            tree.tensors([new, moments]), tree.tensors([changed, in_place]), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_equals_torch(name, clip):
    optimizer, algorithm, settings = PAIRS[name]
    fields = {k: getattr(optimizer, k) for k in optimizer.__dataclass_fields__}
    clipped = type(optimizer)(**{**fields, "clip_norm": clip})
    assert_agree(clipped, torch_run(algorithm, settings, clip=clip), exact=False)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_groups_equal_torch(kind):
    groups = [
        {"match": "bias", "weight_decay": 0.0},
        {"match": "^layer", "lr": 0.01},
        {"match": "nothing", "lr": 7.0},
    ]
    optimizer = kind(lr=0.1, weight_decay=0.05, groups=groups)

    def grouped(params):
        return [
            {"params": [params["layer.bias"]], "weight_decay": 0.0},
            {"params": [params["layer.weight"]], "lr": 0.01},
            {"params": [params["head.weight"]]},
        ]

    settings = {"lr": 0.1, "weight_decay": 0.05}
    algorithm = getattr(torch.optim, kind.__name__)
    assert_agree(optimizer, torch_run(algorithm, settings, groups=grouped))


def test_group_without_a_setting_keeps_the_optimizers_own():
    groups = [{"match": "."}, {"match": "bias", "lr": 0.2}]
    optimizer = SGD(lr=0.1, weight_decay=0.5, groups=groups)
    assert_agree(optimizer, torch_run(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5}))


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        (["wieght"], "'wieght' of SGD .* the nearest are weight, "),
        (["bias", "weight", "ias$"], r"'ias\$' of SGD .* groups before it have bias"),
    ],
)
def test_a_group_of_no_parameter_is_named(matches, message):
    optimizer = SGD(lr=0.1, groups=[{"match": match, "lr": 0.2} for match in matches])
    with pytest.raises(ValueError, match=message):
        optimizer.check_groups({name: torch.zeros(1) for name in ("bias", "scale", "weight")})
    optimizer = SGD(lr=0.1, groups=[{"match": "fc|weight", "lr": 0.2}, {"match": "bi", "lr": 1.0}])
    optimizer.check_groups({"weight": torch.zeros(1), "bias": torch.zeros(1)})


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (StepDecay([3, 7], 0.5), lambda o: MultiStepLR(o, [3, 7], 0.5)),
        (
            Cosine(10),
            lambda o: LambdaLR(o, lambda t: (1 + math.cos(math.pi * min(t, 10) / 10)) / 2),
        ),
        (
            Cosine(12, warmup=4),
            lambda o: SequentialLR(
                o, [LinearLR(o, 0.25, 1.0, total_iters=3), CosineAnnealingLR(o, 8)], [4]
            ),
        ),
    ],
    ids=["steps", "cosine", "warmup"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_schedules_equal_torch(schedule, scheduler):
    optimizer = SGD(lr=0.2, momentum=0.9, schedule=schedule)
    expected = torch_run(torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}, scheduler=scheduler)
    assert_agree(optimizer, expected, exact=False)
    assert optimizer.learning_rate(0) == 0.2 * schedule(0)


def test_cosine_waits_before_it_warms_up():
    schedule = Cosine(12, warmup=4, wait=3)
    assert [schedule(t) for t in range(3)] == [0.0] * 3
    assert [schedule(t + 3) for t in range(9)] == [Cosine(9, warmup=4)(t) for t in range(9)]
    assert schedule(12) == 0.0
    with pytest.raises(ValueError, match=r"wait \+ warmup < total; got wait=3, warmup=9"):
        Cosine(12, warmup=9, wait=3)


def test_cosine_ends_at_its_floor_and_stays():
    schedule = Cosine(10, floor=0.1)
    assert schedule(0) == 1.0
    assert schedule(10) == pytest.approx(0.1)
    assert schedule(50) == schedule(10)
    assert schedule(5) == pytest.approx(0.55)


@pytest.mark.parametrize("name", PAIRS)
def test_update_is_differentiable(name):
    optimizer = PAIRS[name][0]
    params = {"a": torch.tensor([0.3, -1.2], dtype=torch.float64)}
    state = {k: {"a": torch.rand(2, dtype=torch.float64) + 0.1} for k in optimizer.init(params)}

    def step(theta, grad, *moments):
        moved = {k: {"a": m} for k, m in zip(state, moments, strict=True)}
        new, after = optimizer.update({"a": theta}, {"a": grad}, moved, 3)
        return (new["a"], *(m["a"] for m in after.values()))

    grad = torch.tensor([0.7, -0.2], dtype=torch.float64)
    leaves = [params["a"], grad, *(m["a"] for m in state.values())]
    assert torch.autograd.gradcheck(step, [x.requires_grad_() for x in leaves])


def test_clipped_update_is_differentiable():
    optimizer = SGD(lr=0.1, clip_norm=0.3)

    def step(grad):
        return optimizer.update({"a": torch.zeros_like(grad)}, {"a": grad}, {}, 0)[0]["a"]

    assert torch.autograd.gradcheck(step, torch.tensor([0.7, -0.2]).double().requires_grad_())


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_derivative_through_adam_is_finite_at_dead_units(kind):
    optimizer = kind(lr=0.1, clip_norm=1.0)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64)
    params = {"a": torch.tensor([0.5, 0.5], dtype=torch.float64)}
    state = optimizer.init(params)
    for step in range(3):
        params, state = optimizer.update(params, {"a": weight * mask * params["a"]}, state, step)
    (grad,) = torch.autograd.grad(params["a"].sum(), weight)
    assert torch.isfinite(grad).all()
    assert grad[0] != 0
    assert grad[1] == 0


def test_all_zero_gradient_is_not_clipped_to_nan():
    optimizer = SGD(lr=0.1, clip_norm=1.0)
    grad = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    new, _ = optimizer.update({"a": torch.ones(2).double()}, {"a": grad}, {}, 0)
    (slope,) = torch.autograd.grad(new["a"].sum(), grad)
    assert torch.equal(slope, torch.full_like(slope, -0.1))


def test_safe_sqrt_has_slope_zero_at_zero():
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    (slope,) = torch.autograd.grad(safe_sqrt(x).sum(), x)
    assert slope.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=-1.0), "lr=-1.0"),
        (lambda: SGD(lr=0.1, weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: SGD(lr=0.1, momentum=1.0), "momentum"),
        (lambda: SGD(lr=0.1, nesterov=True), "nesterov"),
        (lambda: SGD(lr=0.1, clip_norm=0.0), "clip_norm"),
        (lambda: Adam(lr=0.1, betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(lr=0.1, betas=(0.9,)), "betas"),
        (lambda: AdamW(lr=0.1, groups=[{"lr": 0.1}]), "match"),
        (lambda: AdamW(lr=0.1, groups=[{"match": "a", "momentum": 0.1}]), "momentum"),
        (lambda: AdamW(lr=0.1, groups=[{"match": "a"}]), "'a', sets neither"),
        (lambda: Cosine(3, warmup=3), "warmup=3"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_of_one_length_takes_a_scalar_of_each_model():
    params = {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}
    grads = {"bias": torch.tensor([3.0, 0.0]), "weight": torch.tensor([[4.0, 0, 0], [0, 2.0, 0]])}
    new, _ = NormalizedSGD(lr=0.5).update(params, grads, {}, 0)
    torch.testing.assert_close(new["bias"], torch.tensor([-0.3, 0.0]))
    torch.testing.assert_close(new["weight"], torch.tensor([[-0.4, 0, 0], [0, -0.5, 0]]))
