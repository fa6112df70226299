"""Few-shot re-ranking: a scorer to start from, and steps from it on a user's relevance feedback.

Baumgaertner, Ribeiro, Reimers and Gurevych, Incorporating Relevance Feedback for
Information-Seeking Retrieval using Few-Shot Document Re-Ranking, EMNLP 2022.

| paper | here |
|---|---|
| initial parameters of the re-ranker | phi, `outer` |
| the re-ranker of one query | theta, `inner` |
| k relevant and k irrelevant documents | `Pools.feedback` |
| BM25's ranking, which is re-ranked | `Pools.pool`, `Pools.first_stage` |

To read in this order: `pools.py` and `metrics.py` (what is ranked, and how well).
"""

from metaopt.problems.few_shot_ranking.pools import Pools, Split

__all__ = ["Pools", "Split"]
