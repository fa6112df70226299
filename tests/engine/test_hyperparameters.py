"""What a hyperparameter of an inner optimizer may be, and the sentences for what it may not."""

import pytest
import torch

from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, NormalizedSGD

PARAMS = {"weight": torch.zeros(4, 2), "bias": torch.zeros(2)}
GRADS = {k: torch.ones_like(v) for k, v in PARAMS.items()}


def stepped(optimizer):
    return optimizer.update(PARAMS, GRADS, optimizer.init(PARAMS), 0)[0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(lr=torch.ones(3)), ValueError, r"lr of shape \(3,\).*\{name: tensor\}"),
        (lambda: Adam(lr=0.1, eps=torch.ones(2)), ValueError, r"eps of shape \(2,\)"),
        (lambda: SGD(lr=torch.tensor(1)), TypeError, r"lr >= 0; got lr of torch.int64"),
        (lambda: SGD(lr={"weight": -0.1, "bias": 0.1}), ValueError, r"lr >= 0; got lr=-0.1"),
        (lambda: NormalizedSGD(lr=torch.ones(2)), ValueError, r"lr of shape \(2,\)"),
        (lambda: NormalizedSGD(lr={"weight": 0.1}), TypeError, r"NormalizedSGD needs one lr"),
        (lambda: SGD(lr=0.1, momentum={"weight": 0.1}), TypeError, r"SGD needs one momentum"),
        (lambda: SGD(lr=0.1, clip_norm={"weight": 0.1}), TypeError, r"SGD needs one clip_norm"),
        (
            lambda: SGD(lr=0.1, groups=[{"match": "a", "lr": {"a": 0.1}}]),
            TypeError, r"a group of SGD has one number",
        ),
        (lambda: Adam(lr=0.1, betas=(torch.tensor(0.9), 2.0)), ValueError, "two betas"),
    ],
)  # fmt: skip
def test_what_is_no_hyperparameter_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"weight": 0.1}, "lr of SGD leaves out 'bias'; the parameters are weight, bias"),
        ({"weight": 0.1, "bias": 0.1, "head": 1.0}, "lr of SGD names 'head'"),
        ({"weight": torch.ones(3), "bias": 0.1}, r"for 'weight' has shape \(3,\), .* \(4, 2\)"),
        ({"weight": 0.1, "bias": torch.ones(1, 2)}, r"for 'bias' has shape \(1, 2\), .* \(2,\)"),
    ],
)
def test_a_dict_has_what_each_parameter_needs(lr, message):
    with pytest.raises(ValueError, match=message):
        stepped(SGD(lr=lr))


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_numbers_by_name_equal_groups(kind):
    named = kind(lr={"weight": 0.1, "bias": 0.2}, weight_decay={"weight": 0.3, "bias": 0.0})
    grouped = kind(lr=0.1, weight_decay=0.3, groups=[{"match": "b", "lr": 0.2, "weight_decay": 0}])
    wanted = stepped(grouped)
    for name, value in stepped(named).items():
        assert torch.equal(value, wanted[name])
    in_place = {k: v.clone() for k, v in PARAMS.items()}
    named.update_(in_place, GRADS, named.init(in_place), 0)
    for name, value in in_place.items():
        torch.testing.assert_close(value, wanted[name])


def test_rates_broadcast_and_may_be_negative():
    rates = {"weight": torch.tensor([1.0, -2.0]), "bias": torch.tensor([[3.0]])[0]}
    new = stepped(SGD(lr=rates))
    assert new["weight"].tolist() == [[-1.0, 2.0]] * 4
    assert new["bias"].tolist() == [-3.0, -3.0]


def test_a_tensor_of_another_precision_does_not_change_that_of_the_parameters():
    rates = {k: torch.full_like(v, 0.1, dtype=torch.float64) for k, v in PARAMS.items()}
    decay = {k: torch.full_like(v, 0.1, dtype=torch.float64) for k, v in PARAMS.items()}
    for kind in (SGD, Adam, AdamW):
        optimizer = kind(lr=rates, weight_decay=decay)
        new, state = optimizer.update(PARAMS, GRADS, optimizer.init(PARAMS), 0)
        values = [*new.values(), *(t for moment in state.values() for t in moment.values())]
        assert {t.dtype for t in values} == {torch.float32}


def test_one_rate_is_asked_for_where_each_parameter_has_its_own():
    with pytest.raises(ValueError, match="one for each parameter, where one number is needed"):
        SGD(lr={"weight": 0.1, "bias": 0.2}).learning_rate(0)
