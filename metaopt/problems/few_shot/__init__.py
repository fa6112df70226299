"""Few-shot learning: where to start, so that a few gradient steps on a few examples suffice.

Finn, Abbeel and Levine, Model-Agnostic Meta-Learning (MAML), ICML 2017, whose sinusoids these are.

| papers | here |
|---|---|
| theta, the initial parameters | phi, `outer` |
| theta'_i, adapted to task i | theta, `inner` |
| alpha, beta | `inner_optimizer.lr`, `outer_lr` |
| D_i, D'_i: support and query set | `Sinusoids.support`, `Sinusoids.query` |
| MAML, FOMAML | `estimator=unroll`, `first_order` |
| ANIL (Raghu et al., ICLR 2020) | `FewShot(adapts="head")` under `unroll` |
| Reptile (Nichol et al., arXiv 1803.02999, 2018) | `estimator=reptile` |
| iMAML (Rajeswaran et al., NeurIPS 2019), lambda | `estimator=implicit`, `FewShot(proximal=...)` |

To read in this order: `tasks.py` and `images.py` (the data), `problem.py`, `report.py`.
"""

from metaopt.problems.few_shot.images import ImageClasses
from metaopt.problems.few_shot.problem import FewShot
from metaopt.problems.few_shot.tasks import Sinusoids

__all__ = ["FewShot", "ImageClasses", "Sinusoids"]
