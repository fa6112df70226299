"""Which examples a rank takes, and which losses can be split over ranks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metaopt import SGD, Descent, Engine, GradientProblem, Unroll, functional_call
from metaopt.engine import distributed
from metaopt.engine.batch_parts import PartsError, part
from metaopt.engine.gradient_problem import split_module
from metaopt.problems.examples import Quadratic, Ridge


class Pair(NamedTuple):
    x: Tensor
    texts: list[str]
    step: int = 3


@dataclasses.dataclass(frozen=True)
class Box:
    y: Tensor
    key: Tensor


def test_a_part_has_every_nth_example_of_all_tensors():
    batch = {
        "pair": Pair(torch.arange(6), ["a", "b"]),
        "box": Box(torch.arange(4).view(4, 1), torch.tensor(7)),
        "nothing": None,
    }
    second = part(batch, "Mine", (1, 2))
    assert second["pair"].x.tolist() == [1, 3, 5]
    assert second["pair"][1:] == (["b"], 3)
    assert second["box"].y.tolist() == [[1], [3]]
    assert int(second["box"].key) == 7
    assert second["nothing"] is None
    assert part(batch, "Mine") is batch


def test_what_cannot_be_split_is_refused_with_what_to_do():
    with pytest.raises(PartsError, match="Mine has 5 examples, which 2 processes cannot"):
        part([torch.zeros(5)], "Mine", (0, 2))
    with pytest.raises(PartsError, match=r"Mine holds Generator.*let each process draw a batch"):
        part([torch.Generator()], "Mine", (0, 2))


def test_ranks_that_split_draw_the_batch_of_the_first(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert (distributed.draw_rank(), distributed.share_of_batch()) == (1, (0, 1))
    with distributed.splitting_batches():
        assert (distributed.draw_rank(), distributed.share_of_batch()) == (0, (1, 2))
    assert distributed.draw_rank() == 1


class Net(GradientProblem):
    """A classifier whose examples have learned weights."""

    inner_optimizer = SGD(lr=0.1)

    def __init__(self, *layers: nn.Module, loss: str = "mean") -> None:
        self.net, self.loss = nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)), loss
        nn.init.zeros_(self.net[-1].weight)

    def init_outer(self, generator: Any) -> dict[str, Tensor]:
        return {"weigh": torch.zeros(3)}

    def init_params(self, outer: Any, generator: Any) -> dict[str, Tensor]:
        return split_module(self.net)[0]

    def init_buffers(self, outer: Any, params: Any) -> dict[str, Tensor]:
        return split_module(self.net)[1]

    def inner_batch(self, draw: Any) -> tuple[Tensor, Tensor]:
        x = torch.randn(8, 3, generator=draw.generator)
        return x, (x[:, 0] > 0).long()

    outer_batch = inner_batch

    def inner_loss(self, outer: Any, inner: Any, batch: Any) -> Tensor:
        x, y = batch
        losses = cross_entropy(functional_call(self.net, inner, x), y, reduction="none")
        weights = torch.sigmoid(x @ outer["weigh"])
        if self.loss == "normalised":
            return (weights * losses).sum() / weights.sum()
        total: Tensor = (weights * losses).sum()
        return total if self.loss == "sum" else total / len(x)

    def outer_loss(self, outer: Any, inner: Any, batch: Any) -> Tensor:
        return cross_entropy(functional_call(self.net, inner, batch[0]), batch[1])


def depends(problem: Any, processes: int = 2) -> bool:
    engine = Engine(problem, Unroll(), Descent("sgd", lr=0.1), outer_steps=1)
    return engine.depends_on(processes)


@pytest.mark.parametrize("problem", [Net(nn.Tanh()), Net(nn.LayerNorm(4)), Quadratic()])
def test_a_mean_over_examples_does_not_depend_on_the_processes(problem):
    assert depends(problem) is False
    assert depends(problem, 4) is False


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_batch_statistics_and_noise_do(layer):
    assert depends(Net(layer)) is True


@pytest.mark.parametrize("loss", ["sum", "normalised"])
def test_a_loss_that_is_no_mean_is_refused(loss):
    with pytest.raises(PartsError, match="inner_loss of Net is no mean over the examples"):
        depends(Net(nn.Tanh(), loss=loss))


def test_replicates_are_split_as_one_run_is():
    problems = [Ridge(seed=seed) for seed in (0, 1)]
    engine = Engine(problems, Unroll(), Descent("sgd", lr=0.1), outer_steps=1, seeds=2)
    assert engine.depends_on(2) is False
