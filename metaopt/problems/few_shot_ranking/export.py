"""A meta-learned scorer as a folder that `metaopt-score` re-ranks with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.nn.export import new_folder
from metaopt.nn.model_card import ModelCard
from metaopt.problems.few_shot_ranking.fine_tuning import Choice
from metaopt.problems.few_shot_ranking.metrics import reciprocal_rank
from metaopt.problems.few_shot_ranking.pair_scorer import PairScorer
from metaopt.problems.few_shot_ranking.saved_ranker import FORMAT, SETTINGS, WEIGHTS

if TYPE_CHECKING:
    from metaopt.problems.few_shot_ranking.problem import FewShotRanking

USAGE = """
from metaopt.problems.few_shot_ranking.saved_ranker import SavedRanker

ranker = SavedRanker(".")  # this folder
documents = {"d1": "Heat transfer in slabs", "d2": "Shock waves", "d3": "Lift of a wing"}
ranked = ranker("heat conduction", documents, relevant=["d1"], irrelevant=["d2"])
"""

MEANING = """A scorer of (query, document) on frozen sentence vectors, to be fine-tuned on the
documents that a user has marked as relevant and irrelevant, then to re-rank the first documents of
BM25. The score is a logit of relevance."""


def export(problem: FewShotRanking, outer: Tree, folder: Path) -> Path | None:
    """Write the folder `ranker` with scorer, settings and card; replace one of the same run.

    Args:
        problem: whose pools know what they were made of.
        outer: phi.
        folder: of the run.

    Returns:
        Its path; `None` for vectors of no texts, a scorer that reads texts itself, and an inner
        optimizer that is not plain SGD.
    """
    from safetensors.torch import save

    made_of, scorer, optimizer = problem.pools.made_of, problem.scorer, problem.inner_optimizer
    plain = isinstance(optimizer, SGD) and optimizer == SGD(lr=optimizer.lr)
    if made_of is None or not plain or not isinstance(scorer, PairScorer):
        return None
    tuned = {k: problem.chosen(outer, k) for k in problem.shots}
    settings = {
        "format": FORMAT,
        "scorer": scorer.settings,
        "encoder": made_of["encoder"],
        "first_stage": made_of["first_stage"],
        "proximal": problem.proximal,
        "tuned": {k: list(choice) for k, choice in tuned.items()},
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in outer.items()}
    path = folder / "ranker"
    if path.exists():  # of a run that was stopped while it wrote
        shutil.rmtree(path)
    with new_folder(path, card := _card(problem, outer, tuned, made_of)):
        probe = torch.tensor(made_of["probe"])
        (path / WEIGHTS).write_bytes(save({**tensors, "probe": probe}))
        text = json.dumps(settings, indent=2) + "\n"
        (path / SETTINGS).write_text(text, encoding="utf-8")
        page = card.page(
            f"Few-shot re-ranking, meta-learned on {made_of['collection']}", MEANING, USAGE,
            ["information-retrieval", "relevance-feedback", "metaopt"],
            {"library_name": "metaopt", "pipeline_tag": "text-ranking"},
        )  # fmt: skip
        (path / "README.md").write_text(page, encoding="utf-8")
    return path


def _card(
    problem: FewShotRanking, outer: Tree, tuned: Mapping[int, Choice], made_of: Mapping[str, Any]
) -> ModelCard:
    train, validation, test = map(len, problem.split)
    pools, queries, figures = problem.pools, problem.split.test, {}
    out = pools.left_out[queries]
    for k, choice in tuned.items():
        (scores,) = problem.fine_tuned(outer, queries, k, [choice]).values()
        figures[f"nDCG@20, k = {k}"] = pools.ndcg(scores, queries).mean().item()
        first = reciprocal_rank(scores.masked_fill(out, -torch.inf), pools.grades[queries])
        figures[f"MRR, k = {k}"] = first.mean().item()
        knn = problem.ranked_ndcg("knn", problem.split.test, k)
        figures[f"nDCG@20 of kNN with the same vectors, k = {k}"] = knn.mean().item()
    notes = "".join(f"- {note}\n" for note in made_of["notes"])
    return ModelCard(
        data=f"{made_of['collection']}: {train} queries for meta-training, {validation} for the "
        f"choice of rates and steps, {test} for the test; the first "
        f"{made_of['first_stage']['size']} documents of BM25, without the feedback.",
        figures=figures,
        base=made_of["base"],
        licence=made_of["licence"],
        notes=f"Unjudged documents count as irrelevant. A document's gain is its grade.\n\n{notes}",
    )
