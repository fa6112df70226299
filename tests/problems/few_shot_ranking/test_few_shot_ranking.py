"""Few-shot re-ranking: hypergradients against autograd, its tasks, and what is measured."""

import csv
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from metaopt import SGD, Descent, Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import task_key
from metaopt.engine.random import Draw, generator
from metaopt.estimators import FirstOrder, Implicit, Unroll
from metaopt.problems.few_shot_ranking import (
    FewShotRanking,
    FineTuning,
    PairScorer,
    ranking_world,
)
from metaopt.testing import ProblemContract

POOLS = ranking_world(queries=80, documents=300, pool=60, shots=3)
TUNING = FineTuning(rates=(0.2,), steps=(0, 2))


class TwoNumbers:
    """score = a * first stage + b * first coordinate of the document, in double precision."""

    def read(self, pools):
        pass

    def init(self, size, generator):
        return {"a": torch.tensor([0.4]).double(), "b": torch.tensor([-0.3]).double()}

    def pairs(self, pools, query, positions, shots):
        first = pools.documents[pools.pool[query].gather(-1, positions)][..., 0]
        return torch.stack([pools.first_stage[query].gather(-1, positions), first], -1).double()

    def __call__(self, weights, x):
        return weights["a"] * x[..., 0] + weights["b"] * x[..., 1]


class Recorded(FewShotRanking):
    """Keeps the batches that it drew, in double precision."""

    def inner_batch(self, draw):
        return self._recorded(draw, "inner", super().inner_batch(draw))

    def outer_batch(self, draw):
        return self._recorded(draw, "outer", super().outer_batch(draw))

    def _recorded(self, draw, level, batch):
        batch = type(batch)(*(t.double() for t in batch))
        vars(self).setdefault("drawn", {})[level, draw.task_index, draw.inner_step] = batch
        return batch


def problem(kind=Recorded, **settings):
    defaults = {
        "scorer": TwoNumbers(), "inner_optimizer": SGD(lr=0.7), "shots": (1, 3), "documents": 5,
        "fine_tuning": TUNING,
    }  # fmt: skip
    return kind(POOLS, **{**defaults, **settings})


def hypergradient(stated, estimator, key=5):
    loop, phi = InnerLoop(stated), stated.init_outer(generator(1))
    estimator.check(loop)
    vars(stated)["drawn"] = {}
    return phi, estimator(loop, phi, loop.start(phi, None, key), key)[1]


def loss(a, b, batch):
    scores = a * batch.x[:, 0] + b * batch.x[:, 1]
    half = [
        cross_entropy(scores[mask], batch.relevant[mask])
        for mask in ((batch.relevant == label) & (batch.weights > 0) for label in (1, 0))
    ]
    return (half[0] + half[1]) / 2


def adapted_loss(phi, batches, create_graph):
    """Return F after one step of SGD, and its derivative in phi; the step is torch's own."""
    a, b = (phi[name].clone().requires_grad_() for name in ("a", "b"))
    slopes = torch.autograd.grad(loss(a, b, batches[0]), (a, b), create_graph=create_graph)
    value = loss(a - 0.7 * slopes[0], b - 0.7 * slopes[1], batches[1])
    return value, dict(zip(("a", "b"), torch.autograd.grad(value, (a, b)), strict=True))


@pytest.mark.parametrize(("estimator", "create_graph"), [(Unroll, True), (FirstOrder, False)])
def test_the_hypergradient_is_autograds_through_one_step(estimator, create_graph):
    stated = problem()
    phi, feedback = hypergradient(stated, estimator(1))
    batches = stated.drawn["inner", 0, 0], stated.drawn["outer", 0, None]
    value, wanted = adapted_loss(phi, batches, create_graph)
    torch.testing.assert_close(feedback.value, value.detach())
    torch.testing.assert_close(feedback.grad, wanted)
    other = adapted_loss(phi, batches, not create_graph)[1]
    assert abs(other["a"] - wanted["a"]) > 1e-3


@pytest.mark.parametrize("estimator", [Unroll, FirstOrder])
def test_several_queries_are_the_mean_of_single_ones(estimator):
    stated = problem()
    phi, feedback = hypergradient(stated, estimator(2, tasks=4))
    loop, singles = InnerLoop(stated), []
    for i in range(4):
        loop.task_index, key = i, task_key(5, i)
        singles.append(estimator(2)(loop, phi, loop.start(phi, None, key), key)[1].grad)
    for name in phi:
        torch.testing.assert_close(feedback.grad[name], sum(s[name] for s in singles) / 4)
    assert len({float(s["a"]) for s in singles}) == 4


def trained(stated, estimator, steps=4):
    engine = Engine(stated, estimator, Descent("adamw", lr=0.01), outer_steps=steps, seed=3)
    list(engine)
    return engine.optimizer.solution


@pytest.mark.slow
def test_inner_rate_0_is_supervised_training_to_the_bit():
    still = {"scorer": PairScorer((4,)), "inner_optimizer": SGD(lr=0.0)}
    supervised = trained(problem(FewShotRanking, **still), FirstOrder(0, tasks=3))
    for estimator in (Unroll(2, tasks=3), FirstOrder(2, tasks=3)):
        phi = trained(problem(FewShotRanking, **still), estimator)
        assert all(torch.equal(phi[name], supervised[name]) for name in phi)
    moving = {**still, "inner_optimizer": SGD(lr=0.1)}
    phi = trained(problem(FewShotRanking, **moving), FirstOrder(2, tasks=3))
    assert not torch.equal(phi["layer1.weight"], supervised["layer1.weight"])


class FixedStart(Recorded):
    """Starts at the same phi in every run, in double precision."""

    def init_outer(self, generator):
        start = torch.Generator().manual_seed(0)
        return {k: v.double() for k, v in self.scorer.init(24, start).items()}

    def _recorded(self, draw, level, batch):
        batch = type(batch)(*(t.double() for t in batch))
        vars(self).setdefault("drawn", {})[level, draw.outer_step, draw.task_index] = batch
        return batch


def test_supervised_training_is_adamw_on_the_mean_cross_entropy():
    stated = problem(FixedStart, scorer=PairScorer((4,)))
    learned = trained(stated, FirstOrder(0, tasks=3), steps=3)
    phi = {k: v.requires_grad_() for k, v in stated.init_outer(None).items()}
    reference = torch.optim.AdamW(list(phi.values()), lr=0.01, weight_decay=0.01)
    for step in range(3):
        batches = [stated.drawn["outer", step, task] for task in range(3)]
        reference.zero_grad()
        losses = []
        for batch in batches:
            logits = stated.scorer(phi, batch.x)
            own = cross_entropy(logits, batch.relevant, reduction="none")
            losses.append((own * batch.weights).sum())
        torch.stack(losses).mean().backward()
        reference.step()
    for name, value in phi.items():
        torch.testing.assert_close(learned[name], value.detach())


@pytest.mark.slow
def test_the_first_order_gradient_departs_from_the_exact_one_as_steps_grow():
    def cosine(steps, rate):
        settings = {"scorer": PairScorer((8,), residual=False), "inner_optimizer": SGD(lr=rate)}
        exact = hypergradient(problem(FixedStart, **settings), Unroll(steps))[1].grad
        near = hypergradient(problem(FixedStart, **settings), FirstOrder(steps))[1].grad
        x, y = (torch.cat([t.flatten() for t in g.values()]) for g in (exact, near))
        return float(x @ y / (x.norm() * y.norm()))

    cosines = [cosine(*setting) for setting in ((1, 0.01), (1, 0.1), (3, 0.1), (5, 0.1), (5, 0.3))]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.9999
    assert cosines[-1] < 0.95


# What is drawn.


def drawn(stated, key=0, **where):
    return Draw(7 + key, run_key=key, **where)


def rows(stated, batch):
    """Return the documents of a batch, by their first coordinate, and the queries they are of."""
    first = {round(float(v), 5): i for i, v in enumerate(stated.pools.documents[:, 0])}
    return {first[round(float(x), 5)] for x in batch.x[batch.weights > 0][:, 1]}


def queries_of(stated, documents, feedback):
    left_out, found = stated.pools.left_out, []
    for query in stated.split.train.tolist():
        mask = left_out[query] if feedback else ~left_out[query]
        if documents <= {*stated.pools.pool[query][mask].tolist()}:
            found.append(query)
    return {*found}


@pytest.mark.parametrize("split", ["same_query", "cross_query"])
def test_inner_and_outer_batch_are_of_one_query_or_of_two(split):
    stated = problem(FewShotRanking, meta_split=split, shots=(3,), documents=8)
    half = len(stated.split.train) // 2
    halves = {*stated.split.train[:half].tolist()}, {*stated.split.train[half:].tolist()}
    for key in range(12):
        batches = [stated.inner_batch(drawn(stated, key, inner_step=i)) for i in (0, 1)]
        assert torch.equal(batches[0].x, batches[1].x)
        inner = queries_of(stated, rows(stated, batches[0]), feedback=True)
        outer = drawn(stated, key, inner_step=None)
        outer = queries_of(stated, rows(stated, stated.outer_batch(outer)), feedback=False)
        assert inner
        assert outer
        if split == "same_query":
            assert inner & outer
        else:
            assert inner <= halves[0]
            assert outer <= halves[1]


def test_feedback_has_k_documents_of_each_kind_in_the_order_of_the_pool():
    stated = problem(FewShotRanking)
    batch = stated.feedback(torch.tensor([4, 9]), 1)
    assert batch.x.shape == (2, 6, 2)
    assert batch.weights.tolist() == 2 * [[0.5, 0, 0, 0.5, 0, 0]]
    assert batch.relevant.tolist() == 2 * [[1, 1, 1, 0, 0, 0]]
    for query, x in zip((4, 9), batch.x, strict=True):
        grades = stated.pools.grades[query]
        best = stated.pools.first_stage[query][grades > 0][:3]
        assert torch.equal(x[:3, 0], best.double())


def test_an_outer_batch_has_half_of_its_weight_on_relevant_documents():
    stated = problem(FewShotRanking, documents=1000)
    batch = stated.outer_batch(drawn(stated, inner_step=None))
    there = batch.weights > 0
    assert there.sum() == 60 - 6  # all of the pool but the feedback
    assert float(batch.weights[batch.relevant == 1].sum()) == pytest.approx(0.5)
    other = stated.outer_batch(Draw(8, run_key=0, inner_step=None))
    assert not torch.equal(other.x, batch.x)


# What is measured.


def test_metrics_are_ndcg_after_fine_tuning_with_what_validation_chose():
    stated = problem(scorer=TwoNumbers(), fine_tuning=FineTuning((0.2, 0.9), (0, 2)))
    phi, ndcg = stated.init_outer(generator(0)), {}
    for part in ("validation", "test"):
        for rate, steps in ((0.2, 0), (0.2, 2), (0.9, 2)):
            scores = []
            for query in getattr(stated.split, part):
                batch = stated.feedback(query, 3)
                a, b = phi["a"].clone(), phi["b"].clone()
                for _ in range(steps):
                    a, b = a.requires_grad_(), b.requires_grad_()
                    slopes = torch.autograd.grad(loss(a, b, batch), (a, b))
                    a, b = (a - rate * slopes[0]).detach(), (b - rate * slopes[1]).detach()
                documents = stated.pools.documents[stated.pools.pool[query]][:, 0]
                scores.append(a * stated.pools.first_stage[query] + b * documents)
            queries = getattr(stated.split, part)
            ndcg[part, rate, steps] = stated.pools.ndcg(torch.stack(scores).detach(), queries)
    best = max((key[1:] for key in ndcg), key=lambda c: float(ndcg[("validation", *c)].mean()))
    figures = stated.metrics(phi, None)
    assert (figures["rate_3"], figures["steps_3"]) == best
    assert float(figures["ndcg_3"]) == pytest.approx(float(ndcg[("test", *best)].mean()))
    first = stated.pools.ndcg(stated.pools.first_stage[stated.split.test], stated.split.test)
    gain = ndcg[("test", *best)] - first
    assert float(figures["gain_3"]) == pytest.approx(float(gain.mean()))
    assert float(figures["worse_3"]) == pytest.approx(float((gain < 0).double().mean()))
    assert float(figures["start"]) == pytest.approx(float(ndcg["test", 0.2, 0].mean()))
    assert [*figures] == stated.metric_names


def test_a_ranking_that_is_not_trained_is_measured_in_the_scorers_place():
    stated = problem(ranking="intent", baseline="order")
    figures = stated.metrics(stated.init_outer(generator(0)), None)
    assert [*figures] == ["ndcg_1", "gain_1", "worse_1", "ndcg_3", "gain_3", "worse_3"]
    intent = stated.pools.ndcg(stated.pools.intent[stated.split.test], stated.split.test)
    assert figures["ndcg_1"] == intent.mean()
    assert figures["gain_1"] < 0


def test_queries_are_fused_with_the_expanded_ranking_where_there_is_one():
    expanded = torch.stack([POOLS.intent] * POOLS.shots)
    stated = problem(ranking="intent")
    stated.pools = replace(POOLS, expanded=expanded)
    test = stated.test_ndcg({}, 1)
    assert torch.equal(test.fused, test.ndcg)  # with itself


def test_the_report_writes_each_test_query(tmp_path):
    stated = problem()
    phi = stated.init_outer(generator(0))
    last = stated.report.snapshot(phi, None)
    (path,) = stated.report.figures([(3, last)], tmp_path)
    assert path.stat().st_size > 10_000
    assert stated.report.figures([], tmp_path) == []
    assert "20 test queries" not in stated.report.deliver(phi, None, [(3, last)], tmp_path)
    with (tmp_path / "queries.csv").open() as file:
        written = [*csv.DictReader(file)]
    assert [*written[0]] == ["query", "k", "ndcg", "baseline"]
    own = [float(row["ndcg"]) for row in written if row["k"] == "3"]
    assert len(own) == len(stated.split.test)
    figures = stated.metrics(phi, None)
    assert sum(own) / len(own) == pytest.approx(float(figures["ndcg_3"]), abs=1e-5)


@pytest.mark.slow
class TestProximal(ProblemContract):
    @pytest.fixture
    def make(self):
        settings = {"scorer": PairScorer((4,)), "proximal": 1.0}
        estimate = Implicit(inner_steps=2, any_start=True, tasks=3)
        return lambda: (
            problem(FewShotRanking, **settings), estimate, Descent("adamw", lr=1e-2)
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta_split": "none"}, "meta_split to be one of same_query, cross_query; got"),
        ({"ranking": "bm25"}, "ranking to be one of scorer, first_stage, expanded"),
        ({"baseline": "scorer"}, "baseline to be one of first_stage"),
        ({"documents": 0}, "documents >= 1; got documents=0"),
        ({"proximal": -1.0}, "proximal >= 0; got proximal=-1.0"),
        ({"shots": (2, 4)}, r"increase, in \[1, 3\]: the pools leave 3 documents"),
        ({"shots": (2, 1)}, "shots to be integers that increase"),
        ({"shots": ()}, "shots to be integers that increase"),
        ({"train": 0.9}, "72 for training"),
        ({"meta_split": "cross_query", "train": 0.0125}, "needs 2 training queries, .* got 1"),
        ({"baseline": "expanded"}, "none of these pools: expanded is None"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        problem(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": ()}, "rates > 0"),
        ({"rates": (0.0,)}, r"rates > 0, such as \[0.01, 0.1\]; got \[0.0\]"),
        ({"steps": (3, 1)}, "steps to be integers >= 0 that increase"),
        ({"steps": (0.5,)}, "steps to be integers >= 0"),
    ],
)
def test_bad_settings_of_fine_tuning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_no_step_is_one_setting_whatever_the_rate():
    choices = FineTuning(rates=(0.1, 0.2), steps=(0, 1, 2)).choices
    assert choices == [(0.1, 0), (0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert FineTuning(rates=(0.1,), steps=(2,)).choices == [(0.1, 2)]
    means = zip(choices, (0.1, 0.3, 0.2, 0.3, 0.0), strict=True)
    ndcg = {choice: torch.tensor([0.5, value]) for choice, value in means}
    assert FineTuning().best(ndcg) == (0.1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "steps", "wins"), [(0.0, 200, True), (1.0, 60, False)])
def test_meta_learning_wins_where_queries_differ_and_not_where_they_are_one(shared, steps, wins):
    for seed in range(3):
        world = {"queries": 300, "documents": 2000, "pool": 150, "shots": 4}
        pools, ndcg = ranking_world(**world, shared=shared, seed=seed), []
        for inner_steps in (0, 1):
            stated = FewShotRanking(
                pools, PairScorer((32,), residual=False, document=True), SGD(lr=0.3), shots=(4,),
                fine_tuning=FineTuning((0.1, 0.3), (0, 1, 3)), seed=seed,
            )  # fmt: skip
            estimator, optimizer = FirstOrder(inner_steps, tasks=8), Descent("adamw", lr=0.01)
            engine = Engine(stated, estimator, optimizer, outer_steps=steps, seed=seed)
            list(engine)
            ndcg.append(float(stated.metrics(engine.optimizer.solution, None)["ndcg_4"]))
        supervised, meta_learned = ndcg
        assert (meta_learned > supervised + 0.03) == wins
