"""Two processes under gloo: averages, and a run that equals one on the union of the batches."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ranks import RANKS, Rows, Union, spawn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from metaopt import Engine
from metaopt.engine import distributed, tree
from metaopt.engine.across_ranks import all_reduce
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.protocols import Feedback
from metaopt.estimators import Forward, Score, ScoreFunction, Unroll
from metaopt.optimizers import Descent, Mutation, Search

pytestmark = pytest.mark.slow

STEPS = 4


class Labels(Rows):
    """Rows whose targets are decided: coins y ~ sigmoid(phi), fixed here to compare two splits."""

    def __init__(self, ranks):
        super().__init__(SGD(lr=0.5))
        self.ranks = ranks

    def inner_batch(self, draw):
        parts = [self.rows(rank, "inner")[0] for rank in self.ranks]
        return torch.cat(parts)

    def outer_batch(self, draw):
        return self.rows(7, "outer")

    def prepare_batch(self, outer, inner, batch, draw):
        return batch, (batch[:, 1] > 0).double()

    def log_prob(self, outer, inner, batch):
        x, y = batch
        return y * F.logsigmoid(x @ outer["log_weight"]) + (1 - y) * F.logsigmoid(
            -x @ outer["log_weight"]
        )

    def inner_losses(self, outer, inner, batch):
        return (batch[0] @ inner["theta"] - batch[1]) ** 2

    def inner_loss(self, outer, inner, batch):
        return self.inner_losses(outer, inner, batch).mean()

    def feedback_loss(self, outer, inner, batch):
        return self.outer_loss(outer, inner, batch)


class Experts(Rows):
    """A model of which the inner loss of rank 1 uses a part alone."""

    def init_params(self, outer, generator):
        return {k: torch.full((3,), v).double() for k, v in (("a", 0.1), ("b", -0.2), ("c", 0.3))}

    def of(self, rank, outer, inner, batch):
        x, y = batch
        theta = inner["a"] * inner["c"] + (inner["b"] if rank == 0 else 0.0)
        names = "abc" if rank == 0 else "ac"
        penalty = sum((outer["log_weight"].exp() * inner[k] ** 2).sum() for k in names)
        return ((x @ theta - y) ** 2).mean() + 0.1 * penalty

    def inner_loss(self, outer, inner, batch):
        return self.of(distributed.rank(), outer, inner, batch)

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        return ((x @ (inner["a"] * inner["c"] + inner["b"]) - y) ** 2).mean()


class AllExperts(Experts):
    """The same in a single process."""

    inner_batch, outer_batch = Union.inner_batch, Union.outer_batch

    def inner_loss(self, outer, inner, batch):
        return sum(self.of(r, outer, inner, rows) for r, rows in enumerate(batch)) / RANKS

    def outer_loss(self, outer, inner, batch):
        return sum(super(AllExperts, self).outer_loss(outer, inner, rows) for rows in batch) / RANKS


UNEVEN = {
    "whole": lambda: Unroll(3, schedule="whole"),
    "segments": lambda: Unroll(4, schedule="segments", segments=2),
    "revolve": lambda: Unroll(3, schedule="revolve"),
    "forward": lambda: Forward(3),
}


def uneven(problem):
    optimizer = SGD(lr=0.05, momentum=0.5)
    return {k: run(problem(optimizer), make(), Descent(lr=0.1))[2] for k, make in UNEVEN.items()}


FEEDBACK = ("loss_difference", "dot_product", "cosine", "per_example")


def scores(ranks):
    """Return the score-function hypergradient of each kind, averaged over the processes there."""
    problem, result = Labels(ranks), {}
    for kind in FEEDBACK:
        outer = {"log_weight": torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)}
        inner = InnerLoop(problem).start(outer, None, 0)
        result[kind] = all_reduce(ScoreFunction(kind)(InnerLoop(problem), outer, inner, 0)[1]).grad[
            "log_weight"
        ]
    return result


def run(problem, estimator, optimizer):
    engine = Engine(problem, estimator, optimizer, outer_steps=STEPS)
    values = [float(feedback.value) for _, feedback in engine]
    return values, dict(engine.inner.params), engine.optimizer.solution


def gradient_run(problem, inner_steps=3):
    return run(problem, Unroll(inner_steps), Descent(partial(torch.optim.Adam, lr=0.1)))


def search_run(problem):
    return run(problem, Score(3), Search(Mutation(scale=0.5)))


def agreed(rank):
    """Return what ranks share of feedback in which they differ."""
    first = Feedback(1.0 + rank, cost={"gradients": 2 + rank, **({"hvps": 5} if rank else {})})
    second = Feedback(0.0, done=rank == 0, stop="the budget is spent" if rank else None)
    shared = [all_reduce(feedback) for feedback in (first, second)]
    return [[float(f.value), dict(f.cost), f.done, f.stop] for f in shared]


def transposed(rank):
    """Return a matrix that lies in memory by rows on one rank and by columns on the other."""
    matrix = torch.arange(6.0).reshape(2, 3)
    return {"w": matrix.T.contiguous().T if rank else matrix}


def sharded():
    """Return norms and products of tensors of which each rank holds a part."""
    mesh = init_device_mesh("cpu", (RANKS,))
    whole = torch.arange(-3.0, 5.0)
    parts = {"a": distribute_tensor(whole, mesh, [Shard(0)])}
    two = {**parts, "b": parts["a"]}
    return [
        float(tree.dot(parts, parts)), float(tree.norm(parts)), float(tree.norm(two)),
        float(tree.relative_norm(parts, tree.scale(parts, 2.0))), bool(tree.dot(parts, parts) > 40),
    ]  # fmt: skip


def everything(rank):
    """Return in one go what the tests below look at: starting processes is what takes time."""
    values = {"a": torch.full((2,), float(rank)), "b": torch.tensor(3.0 + rank)}
    return {
        "place": [distributed.rank(), distributed.world_size()],
        "mean": distributed.mean(values),
        "kept": values,
        "uneven": uneven(Experts),
        "transposed": distributed.mean(transposed(rank)),
        "sgd": gradient_run(Rows(SGD(lr=0.05, momentum=0.5))),
        "adam": gradient_run(Rows(Adam(lr=0.05, clip_norm=0.5))),
        "search": search_run(Rows(SGD(lr=0.05))),
        "scores": scores([rank]),
        "agreed": agreed(rank),
        "sharded": sharded(),
        "flags": distributed.on_any_rank(
            {"one": rank == 1, "none": False, "all": True}, torch.zeros(())
        ),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return spawn(everything, tmp_path_factory.mktemp("ranks"))


def assert_close(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_mean_is_over_ranks_and_leaves_the_argument(ranks):
    for rank, result in enumerate(ranks):
        assert result["place"] == [rank, 2]
        assert result["mean"]["a"].tolist() == [0.5, 0.5]
        assert result["mean"]["b"].item() == 3.5
        assert result["kept"]["a"].tolist() == [rank, rank]


def test_a_mean_is_by_entries_however_they_lie_in_memory(ranks):
    for result in ranks:
        assert result["transposed"]["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_flag_of_one_rank_is_one_of_all(ranks):
    for result in ranks:
        assert result["flags"] == {"one": True, "none": False, "all": True}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("sgd", SGD(lr=0.05, momentum=0.5)), ("adam", Adam(lr=0.05, clip_norm=0.5))],
)
def test_unrolled_run_equals_the_union_of_the_batches(ranks, name, optimizer):
    values, params, solution = gradient_run(Union(optimizer))
    for result in ranks:
        assert_close(torch.tensor(result[name][0]), torch.tensor(values))
        assert_close(result[name][1], params)
        assert_close(result[name][2], solution)


@pytest.mark.parametrize("name", UNEVEN)
def test_ranks_that_use_other_weights_take_the_derivative_together(ranks, name):
    expected = uneven(AllExperts)[name]
    for result in ranks:
        assert_close(result["uneven"][name], expected)


def test_search_agrees_on_all_ranks_and_with_the_union(ranks):
    values, params, solution = search_run(Union(SGD(lr=0.05)))
    for result in ranks:
        assert_close(torch.tensor(result["search"][0]), torch.tensor(values))
        assert_close(result["search"][1], params)
        assert_close(result["search"][2], solution)


def test_ranks_agree_on_cost_and_end(ranks):
    for result in ranks:
        assert result["agreed"] == [
            [1.5, {"gradients": 3.0, "hvps": 5.0}, False, None],
            [0.0, {}, True, "the budget is spent"],
        ]


@pytest.mark.parametrize("kind", FEEDBACK)
def test_score_function_rewards_the_rows_of_all_ranks(ranks, kind):
    expected = scores(range(RANKS))[kind]
    assert expected.norm() > 0
    for result in ranks:
        assert_close(result["scores"][kind], expected)


def test_products_and_norms_of_sharded_tensors_are_of_the_whole(ranks):
    for result in ranks:
        # The sum of squares of -3 to 4 is 44; a rank holds 14 or 30 of it.
        expected = torch.tensor([44.0, 44**0.5, 88**0.5, 0.5])
        torch.testing.assert_close(torch.tensor(result["sharded"][:4]), expected)
        assert result["sharded"][4]


def test_single_process_is_the_identity():
    values = {"a": torch.ones(2)}
    assert distributed.mean(values) is values
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
