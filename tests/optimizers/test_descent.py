"""Descent against torch.optim on the same gradients."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR

from metaopt import Feedback
from metaopt.engine.random import generator
from metaopt.engine.schedules import PowerDecay
from metaopt.optimizers import Descent

ADAM = partial(torch.optim.Adam, lr=0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def start():
    return {
        "net.weight": torch.tensor([[1.0, -2.0]], dtype=torch.float64),
        "net.bias": torch.tensor([0.5], dtype=torch.float64),
        "log_penalty": torch.tensor(-3.0, dtype=torch.float64),
    }


def gradients(count):
    draw = torch.Generator().manual_seed(0)
    return [
        {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in start().items()}
        for _ in range(count)
    ]


def descend(descent, grads):
    for grad in grads:
        descent.ask(0)
        descent.tell(Feedback(0.0, grad))
    return descent.solution


def begun(*args, **settings):
    descent = Descent(*args, **settings)
    descent.init(start())
    return descent


def reference(algorithm, grads, scheduler=None, clip=None):
    params = start()
    optimizer = algorithm(list(params.values()))
    schedule = scheduler(optimizer) if scheduler else None
    for grad in grads:
        for name, param in params.items():
            param.grad = grad[name].clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
        if schedule:
            schedule.step()
    return params


def assert_equal(phi, expected):
    assert list(phi) == list(expected)
    assert all(torch.equal(phi[k], expected[k]) for k in expected)


@pytest.mark.parametrize("algorithm", [ADAM, SGD, partial(torch.optim.AdamW, lr=0.1)])
def test_equals_torch(algorithm):
    grads = gradients(7)
    assert_equal(descend(begun(algorithm), grads), reference(algorithm, grads))


def test_scheduler_and_clipping_equal_torch():
    grads, scheduler = gradients(9), partial(StepLR, step_size=2, gamma=0.5)
    phi = descend(begun(ADAM, scheduler, clip_norm=0.7), grads)
    assert_equal(phi, reference(ADAM, grads, scheduler, clip=0.7))


def test_accumulation_is_the_mean_and_steps_the_scheduler_once_per_update():
    grads, scheduler = gradients(6), partial(StepLR, step_size=1, gamma=0.5)
    means = [{k: sum(g[k] for g in grads[i : i + 3]) / 3 for k in grads[0]} for i in range(0, 6, 3)]
    phi = descend(begun(SGD, scheduler, accumulate=3), grads)
    for name, value in reference(SGD, means, scheduler).items():
        torch.testing.assert_close(phi[name], value)


def test_incomplete_accumulation_changes_nothing():
    assert_equal(descend(begun(SGD, accumulate=3), gradients(2)), start())


def test_gradients_told_are_left_alone():
    grads = gradients(2)
    copies = {k: v.clone() for k, v in grads[0].items()}
    descend(begun(SGD, accumulate=2, clip_norm=0.1), grads)
    assert_equal(grads[0], copies)


def test_the_problems_outer_variable_is_copied():
    outer = start()
    descent = Descent(SGD)
    descent.init(outer)
    descend(descent, gradients(2))
    assert_equal(outer, start())


def test_resume_is_bitwise_in_the_middle_of_an_accumulation(tmp_path):
    grads = gradients(11)
    settings = {"scheduler": partial(StepLR, step_size=2, gamma=0.5), "accumulate": 3}
    whole = descend(begun(ADAM, **settings), grads)
    first = begun(ADAM, **settings)
    descend(first, grads[:5])
    torch.save(first.state_dict(), tmp_path / "a.pt")
    second = begun(ADAM, **settings)
    second.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_equal(descend(second, grads[5:]), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Descent(SGD, **settings)


@pytest.mark.parametrize("outer", ["a text", {"a": 1.0}, {"a": torch.ones(2, dtype=torch.long)}])
def test_needs_named_floating_tensors(outer):
    with pytest.raises(TypeError, match="optimizer=search"):
        Descent(SGD).init(outer)


def test_needs_a_gradient():
    with pytest.raises(TypeError, match="feedback with a gradient"):
        begun(SGD).tell(Feedback(1.0))


NAMED = {
    "sgd": [{}, {"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
            {"momentum": 0.9}],
    "adam": [{}, {"lr": 0.1, "betas": [0.8, 0.9], "weight_decay": 0.1}],
    "adamw": [{}, {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-4}],
}  # fmt: skip
CASES = [(name, settings) for name, cases in NAMED.items() for settings in cases]


def torch_class(name, settings):
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return partial(made, **settings)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_named_algorithms_equal_torch(name, settings):
    grads = gradients(7)
    expected = reference(torch_class(name, settings), grads)
    assert_equal(descend(begun(name, **settings), grads), expected)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_named_algorithms_resume_to_the_bit(name, settings, tmp_path):
    grads = gradients(6)
    whole = descend(begun(name, **settings), grads)
    first = begun(name, **settings)
    descend(first, grads[:3])
    torch.save(first.state_dict(), tmp_path / "a.pt")
    second = begun(name, **settings)
    second.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_equal(descend(second, grads[3:]), whole)


def test_a_scheduler_steps_a_named_algorithm():
    grads, scheduler = gradients(9), partial(StepLR, step_size=2, gamma=0.5)
    phi = descend(begun("adam", scheduler, lr=0.1), grads)
    assert_equal(phi, reference(ADAM, grads, scheduler))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_schedule_is_the_scheduler_of_the_same_factor(name):
    grads, decay = gradients(9), PowerDecay(0.5)
    scheduled = descend(begun(name, lr=0.1, schedule=decay, accumulate=2), grads)
    by_torch = descend(begun(name, partial(LambdaLR, lr_lambda=decay), lr=0.1, accumulate=2), grads)
    assert_equal(scheduled, by_torch)
    with pytest.raises(ValueError, match="drop one of them"):
        begun(name, partial(LambdaLR, lr_lambda=decay), schedule=decay)
    with pytest.raises(ValueError, match="give an optimizer of torch a scheduler"):
        begun(ADAM, schedule=decay)
    begun(ADAM, schedule=None)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lion", {}, "algorithm must be sgd, adam, adamw, or make a torch optimizer"),
        (
            "adam",
            {"momentum": 0.9},
            "'adam' has no setting 'momentum'; it has lr, weight_decay, schedule, betas",
        ),
        ("sgd", {"lr": -1.0}, "SGD needs lr >= 0; got lr=-1.0"),
        ("sgd", {"nesterov": True}, "needs momentum > 0"),
        ("adam", {"betas": [0.9]}, "two betas in"),
    ],
)
def test_wrong_settings_of_named_algorithms_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        Descent(name, **settings)


@pytest.mark.slow
def test_a_named_algorithm_does_not_import_the_compiler():
    code = """
import sys, torch
from metaopt.engine.protocols import Feedback
from metaopt.optimizers import Descent
descent = Descent("adam", clip_norm=1.0)
descent.init({"phi": torch.zeros(2)})
descent.tell(Feedback(0.0, {"phi": torch.ones(2)}))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_consensus_is_one_adam_a_member_and_the_mean_of_the_members(clip):
    draw = generator(0)
    start = torch.randn(2, 4, generator=draw)
    grads = torch.randn(5, 3, 2, 4, generator=draw)
    descent = Descent("adam", lr=0.1, clip_norm=clip, consensus=True)
    descent.init({"w": start.expand(3, 2, 4).clone()})
    members = [start.clone().requires_grad_() for _ in range(3)]
    adams = [torch.optim.Adam([member], lr=0.1) for member in members]
    for grad in grads:
        descent.tell(Feedback(0.0, {"w": grad}))
        for member, adam, own in zip(members, adams, grad, strict=True):
            member.grad = own.clone()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([member], clip)
            adam.step()
        mean = torch.stack([m.detach() for m in members]).mean(0)
        for member in members:
            member.data.copy_(mean)
        torch.testing.assert_close(descent.solution["w"], mean.expand(3, 2, 4))


@pytest.mark.parametrize(
    "outer",
    [
        {"weights": torch.zeros(4)},
        {"w": torch.zeros(3, 2), "bias": torch.zeros(())},
        {"w": torch.zeros(3, 2), "b": torch.zeros(2, 2)},
        {"w": torch.arange(6.0).reshape(3, 2)},
    ],
)
def test_consensus_refuses_what_has_no_equal_members(outer):
    with pytest.raises(ValueError, match="first axis counts two or more equal members"):
        Descent("adam", consensus=True).init(outer)


def test_consensus_does_not_train_seeds_together():
    assert not Descent("adam", consensus=True).stacks
    assert Descent("adam").stacks
