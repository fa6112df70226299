"""Few-shot re-ranking: a scorer to start from, and steps from it on a user's relevance feedback.

Baumgärtner, Ribeiro, Reimers and Gurevych, Incorporating Relevance Feedback for
Information-Seeking Retrieval using Few-Shot Document Re-Ranking, EMNLP 2022.

| paper | here |
|---|---|
| initial parameters of the re-ranker | phi, `outer` |
| the re-ranker of one query | theta, `inner` |
| k relevant and k irrelevant documents | `Pools.feedback` |
| BM25's ranking, which is re-ranked | `Pools.pool`, `Pools.first_stage` |
| meta-training with first-order gradients | `estimator=first_order` |
| inner and outer loss of the release, on two queries | `FewShotRanking(meta_split="cross_query")` |

To read in this order: `pools.py` and `metrics.py` (what is ranked, and how well),
`ranking_world.py` (generated queries), `pair_scorer.py`, `fine_tuning.py`, `rankings.py` (what is
not trained), `problem.py`, `report.py`; of texts `collections.py`, `bm25.py`,
`relevance_feedback.py`, `cross_encoder.py`, `export.py`, `saved_ranker.py`; `intervals.py`.
"""

from metaopt.problems.few_shot_ranking.fine_tuning import FineTuning
from metaopt.problems.few_shot_ranking.pair_scorer import PairScorer
from metaopt.problems.few_shot_ranking.pools import Pools, Split
from metaopt.problems.few_shot_ranking.problem import FewShotRanking
from metaopt.problems.few_shot_ranking.ranking_world import ranking_world

__all__ = ["FewShotRanking", "FineTuning", "PairScorer", "Pools", "Split", "ranking_world"]
