"""Few-shot re-ranking as two levels: a scorer for all queries, and steps from it for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine.adaptation import adapted
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import SGD, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.few_shot_ranking.fine_tuning import (
    Choice,
    Documents,
    FineTuning,
    feedback_loss,
    relevance_loss,
)
from metaopt.problems.few_shot_ranking.metrics import reciprocal_rank_fusion
from metaopt.problems.few_shot_ranking.pair_scorer import PairScorer, Scorer
from metaopt.problems.few_shot_ranking.pools import Pools
from metaopt.problems.few_shot_ranking.ranking_world import ranking_world
from metaopt.problems.few_shot_ranking.rankings import RANKINGS, Ranking, ranked
from metaopt.problems.few_shot_ranking.report import RankingReport

CHUNK = 64
"""Queries that are fine-tuned at once."""


class TestNdcg(NamedTuple):
    """nDCG@20 of the test queries.

    Args:
        ndcg: of each, (n,).
        fused: the same after fusion with the expanded query's ranking, or `None`.
        choice: rate and steps of fine-tuning, or `None` of a ranking that is not trained.
    """

    ndcg: Tensor
    fused: Tensor | None
    choice: Choice | None


class FewShotRanking(GradientProblem):
    """g = cross-entropy on a query's feedback, F = on other documents of its pool; theta_0 = phi.

    l(theta; B) = mean binary cross-entropy of relevance, relevant and irrelevant documents of B
    with half of the weight each; g = l(theta; feedback) + (proximal / 2) |theta - phi|^2 and
    F = l(theta; others), for a scorer of pairs of frozen vectors. An outer step has a query for
    each member of the meta-batch. Its feedback is the first k relevant and the first k irrelevant
    documents of its pool, the same in all inner steps, with k drawn among `shots`.

    Metrics, for each k of `shots`, over the test queries: `ndcg_k`, nDCG@20 after fine-tuning by
    SGD on the k + k documents, with the rate and steps that are best on the validation queries
    (`rate_k`, `steps_k`); `gain_k`, its mean difference to `baseline`; `worse_k`, the share of
    queries whose nDCG is lower; `fused_k`, after fusion with the expanded query's ranking, where
    the pools have one. `start` is nDCG@20 before fine-tuning.

    Args:
        pools: queries and documents; `None` for a generated world.
        scorer: the network.
        inner_optimizer: steps theta in meta-training; its rate is replaced in fine-tuning.
        shots: numbers k of feedback documents of each kind, increasing, the last <= `pools.shots`.
        documents: relevant documents of an outer batch, and as many irrelevant ones, >= 1.
        meta_split: whether F is on the query that was adapted to, or on another one, of the other
            half of the training queries (the released code).
        proximal: lambda, >= 0; what iMAML's `estimator=implicit` needs to be above 0.
        fine_tuning: rates and steps to choose among.
        ranking: a ranking that is measured in place of the scorer's; see `rankings.ranked`.
        baseline: ranking that gains are over.
        train, validation: shares of the queries.
        folds: parts of a cross-validation; the seed says which of them is the test, and the others
            are divided in the ratio of train to validation. `None` for a new split of each seed.
        seed: divides the queries.

    Raises:
        ValueError: an argument outside its range.

    Cost: of metrics, `max(steps)` gradients of each rate and k on all validation queries at once.

    Reference: Baumgärtner et al., EMNLP 2022.

    Example:
        >>> from metaopt import Descent, FirstOrder, run
        >>> from metaopt.problems.few_shot_ranking import FewShotRanking, ranking_world
        >>> problem = FewShotRanking(ranking_world(queries=90), shots=(2,))
        >>> result = run(problem, FirstOrder(3, tasks=4), Descent("adamw", lr=3e-3), 2,
        ...              progress=False)
        >>> sorted(result.metrics)[:4]
        ['eval/gain_2', 'eval/ndcg_2', 'eval/rate_2', 'eval/start']
    """

    warm_start = False
    batched_losses = True

    def __init__(
        self,
        pools: Pools | None = None,
        scorer: Scorer | None = None,
        inner_optimizer: InnerOptimizer | None = None,
        shots: Sequence[int] = (2, 4, 8),
        documents: int = 10,
        meta_split: Literal["same_query", "cross_query"] = "same_query",
        proximal: float = 0.0,
        fine_tuning: FineTuning | None = None,
        ranking: Literal["scorer"] | Ranking = "scorer",
        baseline: Ranking = "first_stage",
        train: float = 0.5,
        validation: float = 1 / 6,
        folds: int | None = None,
        seed: int = 0,
    ) -> None:
        self.pools = ranking_world(seed=seed) if pools is None else pools
        self.scorer: Scorer = scorer or PairScorer(residual=False, document=True)
        self.inner_optimizer: InnerOptimizer = inner_optimizer or SGD(lr=0.1)
        self.fine_tuning = fine_tuning or FineTuning()
        self.shots, self.documents = tuple(shots), documents
        self.meta_split, self.proximal = meta_split, proximal
        self.ranking, self.baseline = ranking, baseline
        check_ranges(self, "documents >= 1", "proximal >= 0")
        check_choices(
            self, meta_split=("same_query", "cross_query"), ranking=("scorer", *RANKINGS),
            baseline=RANKINGS,
        )  # fmt: skip
        self._check_shots()
        self.scorer.read(self.pools)
        for name in (self.baseline, self.ranking):
            if name != "scorer":
                ranked(self.pools, name, self.shots[0])  # refuses one that these pools have not
        # Told, since an evaluation takes as long as many outer steps.
        self.metric_names = self._metric_names()
        self.split = (
            self.pools.split(seed, train, validation)
            if folds is None
            else self.pools.folds(folds, seed, train, validation)
        )
        if meta_split == "cross_query" and len(self.split.train) < 2:
            raise ValueError(
                f"meta_split=cross_query needs 2 training queries, one of each half; got "
                f"{len(self.split.train)}. Give a larger train={train}, or meta_split=same_query."
            )
        # Splits of one collection overlap: their intervals are widened by this ratio.
        if self.pools.made_of is not None:
            self.resplit = len(self.split.test) / len(self.split.train)
        self.report = RankingReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the scorer's first weights."""
        return self.scorer.init(self.pools.queries.shape[-1], generator)

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the scorer of one query, a copy of phi."""
        return {name: value.clone() for name, value in outer.items()}

    def inner_batch(self, draw: Draw) -> Documents:
        """Return the feedback of the outer step's query."""
        query, _, shots = self._task(draw)
        return self.feedback(query, shots)

    def outer_batch(self, draw: Draw) -> Documents:
        """Return documents of its pool that are no feedback, or of another query's."""
        _, query, shots = self._task(draw)
        return self._others(query, shots, draw.generator)

    def inner_loss(self, outer: Tree, inner: Tree, batch: Documents) -> Tensor:
        """Return g of each query."""
        return feedback_loss(self.scorer, outer, inner, batch, self.proximal)

    def outer_loss(self, outer: Tree, inner: Tree, batch: Documents) -> Tensor:
        """Return F of each query."""
        return relevance_loss(self.scorer, inner, batch)

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float | Tensor]:
        """Return means over the test queries after fine-tuning; see the class."""
        figures: dict[str, float | Tensor] = {}
        for k in self.shots:
            test = self.test_ndcg(outer, k)
            baseline = self.ranked_ndcg(self.baseline, self.split.test, k)
            figures[f"ndcg_{k}"] = test.ndcg.mean()
            figures[f"gain_{k}"] = (test.ndcg - baseline).mean()
            figures[f"worse_{k}"] = (test.ndcg < baseline).double().mean()
            if test.fused is not None:
                figures[f"fused_{k}"] = test.fused.mean()
            if test.choice is not None:
                figures[f"rate_{k}"], figures[f"steps_{k}"] = test.choice
        if self.ranking == "scorer":
            none = [(self.fine_tuning.rates[0], 0)]
            (start,) = self.fine_tuned(outer, self.split.test, self.shots[0], none).values()
            figures["start"] = self.pools.ndcg(start, self.split.test).mean()
        return figures

    def test_ndcg(self, outer: Tree, shots: int) -> TestNdcg:
        """Return nDCG@20 of the test queries with k = `shots`, after validation has chosen."""
        test, choice = self.split.test, None
        if self.ranking == "scorer":
            choice = self.chosen(outer, shots)
            (scores,) = self.fine_tuned(outer, test, shots, [choice]).values()
        else:
            scores = ranked(self.pools, self.ranking, shots)[test]
        fused = None
        if self.pools.expanded is not None:
            others = self.pools.left_out[test]
            both = (scores, self.pools.expanded[shots - 1][test])
            fused = self.pools.ndcg(
                reciprocal_rank_fusion(*(s.masked_fill(others, -torch.inf) for s in both)), test
            )
        return TestNdcg(self.pools.ndcg(scores, test), fused, choice)

    def ranked_ndcg(self, name: Ranking, queries: Tensor, shots: int) -> Tensor:
        """Return nDCG@20 of some queries by a ranking that is not trained, (n,)."""
        return self.pools.ndcg(ranked(self.pools, name, shots)[queries], queries)

    def chosen(self, outer: Tree, shots: int) -> Choice:
        """Return the rate and number of steps that are best on the validation queries."""
        validation, tuning = self.split.validation, self.fine_tuning
        scores = self.fine_tuned(outer, validation, shots, tuning.choices)
        return tuning.best({c: self.pools.ndcg(s, validation) for c, s in scores.items()})

    def fine_tuned(
        self, outer: Tree, queries: Tensor, shots: int, choices: Collection[Choice]
    ) -> dict[Choice, Tensor]:
        """Return scores of the pools of n queries, (n, P), by rate and number of steps.

        Args:
            outer: phi, from which a scorer is fine-tuned on k + k documents of each query.
            queries: (n,) long.
            shots: k.
            choices: rates and numbers of steps.
        """
        parts: dict[Choice, list[Tensor]] = {choice: [] for choice in sorted(choices)}
        device = next(iter(outer.values())).device
        everything = torch.arange(self.pools.pool.shape[1])
        for some in queries.split(CHUNK):
            feedback = Documents(*(t.to(device) for t in self.feedback(some, shots)))
            places = everything.expand(len(some), -1)
            x = self.scorer.pairs(self.pools, some, places, shots).to(device)
            for rate in {rate: None for rate, _ in parts}:
                steps = [s for r, s in parts if r == rate]
                optimizer = replace(self.inner_optimizer, lr=rate)  # type: ignore[type-var]
                states = adapted(self.inner_loss, outer, feedback, len(some), max(steps), optimizer)
                for s in steps:
                    parts[rate, s].append(self.scorer(states[s], x).detach().cpu())
        return {choice: torch.cat(scores) for choice, scores in parts.items()}

    def feedback(self, query: Tensor, shots: int) -> Documents:
        """Return k relevant and k irrelevant documents of queries (...), with padding of weight 0.

        All k have the same number of documents, so that tasks of several fit into one batch.
        """
        most = self.shots[-1]
        positions = self.pools.feedback[query][..., :most].flatten(-2)
        relevant = torch.tensor([1.0, 0.0]).repeat_interleave(most)
        weights = (torch.arange(most) < shots).float().repeat(2) / (2 * shots)
        expanded = (relevant.expand(positions.shape), weights.expand(positions.shape))
        return Documents(self.scorer.pairs(self.pools, query, positions, shots), *expanded)

    def _metric_names(self) -> list[str]:
        kinds = ["ndcg", "gain", "worse"] + ["fused"] * (self.pools.expanded is not None)
        learned = self.ranking == "scorer"
        kinds += ["rate", "steps"] * learned
        return [f"{kind}_{k}" for k in self.shots for kind in kinds] + ["start"] * learned

    def _task(self, draw: Draw) -> tuple[Tensor, Tensor, int]:
        """Return the query that is adapted to, that of F, and k: of one outer step and task."""
        task, train = draw.task, self.split.train
        half = len(train) // 2
        crossed = self.meta_split == "cross_query"
        one = torch.randint(half if crossed else len(train), (), generator=task)
        other = torch.randint(half, len(train), (), generator=task) if crossed else one
        k = self.shots[int(torch.randint(len(self.shots), (), generator=task))]
        return train[one], train[other], k

    def _others(self, query: Tensor, shots: int, generator: Generator) -> Documents:
        """Return relevant and irrelevant documents that are no feedback, drawn at random."""
        grades, left_out = self.pools.grades[query], self.pools.left_out[query]
        order = torch.rand(grades.shape, generator=generator).masked_fill(left_out, -1.0)
        count = min(self.documents, len(order))
        drawn = [order.where(mask, -1.0).topk(count) for mask in (grades > 0, grades == 0)]
        positions = torch.cat([top.indices for top in drawn])
        there = torch.stack([top.values >= 0 for top in drawn]).float()
        # Half of the weight each, also where a pool has fewer relevant documents than are drawn.
        weights = (there / there.sum(1, keepdim=True).clamp(min=1)).flatten()
        return Documents(
            self.scorer.pairs(self.pools, query, positions, shots),
            (grades[positions] > 0).float(),
            weights / weights.sum(),
        )

    def _check_shots(self) -> None:
        shots, most = [*self.shots], self.pools.shots
        whole = all(type(k) is int and 1 <= k <= most for k in shots)
        if not shots or not whole or shots != sorted({*shots}):
            raise ValueError(
                f"FewShotRanking needs shots to be integers that increase, in [1, {most}]: the "
                f"pools leave {most} documents of each kind out of the test; got {shots}."
            )
