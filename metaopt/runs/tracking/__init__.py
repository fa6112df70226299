"""Where a run's scalars go: a file always, and a tracking service when asked for.

    with Jsonl(folder / "metrics.jsonl") as tracker:
        tracker.log(step, {"outer/loss": 0.5})

`Wandb` and `TensorBoard` are the options of the config group `tracker`. Both take the run's folder,
its config and the step that it continues from, so that a partial of either is a `Service` of
`metaopt.runs.run`. What a person sees of a run is in `metaopt.runs.progress`.

In reading order: `protocol`, `records`, `services`, `weights_and_biases`, `tensorboard`.
"""

from metaopt.runs.tracking.protocol import Tracker, Values, means, of_replicates, values_of
from metaopt.runs.tracking.records import History, Jsonl, first_record, nullable
from metaopt.runs.tracking.services import Guarded, refuse_unusable
from metaopt.runs.tracking.tensorboard import TensorBoard
from metaopt.runs.tracking.weights_and_biases import Wandb

__all__ = [
    "Guarded", "History", "Jsonl", "TensorBoard", "Tracker", "Values", "Wandb", "first_record",
    "means", "nullable", "of_replicates", "refuse_unusable", "values_of",
]  # fmt: skip
