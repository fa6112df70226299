"""The search behind the rows "tuned": vanilla reward models on eight worlds of their own.

Step size, passes and weight decay are judged by accuracy on 2,048 further pairs whose labels are as
noisy as those of training; the right labels decide nothing. Writes `tuning.csv`, best first at each
noise: `python experiments/reward_model/tuning.py`, five minutes of one core.
"""

from __future__ import annotations

import csv
import itertools
from functools import partial
from pathlib import Path

import torch

from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.model.training import Recipe, batches, every, fit, ordered
from metaopt.problems.reward_model.world_task import PreferenceWorlds

NOISE = (0.0, 0.2, 0.3, 0.4)
GRID = {
    "lr": (5e-4, 1e-3, 2e-3, 4e-3),
    "epochs": (1, 2, 4, 8),
    "weight_decay": (0.01, 0.1, 1.0, 3.0, 10.0, 20.0),
}
HEADER = ["noise", *GRID, "accuracy on noisy pairs", "accuracy on right labels"]


def search(noise: float) -> list[list[float]]:
    """Return a row for each point of the grid, the most accurate on noisy pairs first."""
    model = partial(FeatureReward, widths=(64, 64))
    worlds = PreferenceWorlds(model, runs=8, seed=1000, noise=noise, steps=5, prompts=4)
    training, clean = worlds.features.training, worlds.features.tests["held_out"]
    noisy = worlds.world.pairs(worlds._draws("validation"), 2048, noise)
    rows = []
    for point in itertools.product(*GRID.values()):
        recipe = Recipe(**dict(zip(GRID, point, strict=True)))
        order = batches(worlds._draws("tb"), every(training.chosen), recipe)
        start = worlds.model.init(worlds._draws("tm"))
        params = fit(worlds.model, start, training.chosen, training.rejected, order, recipe)
        scores = []
        for pairs in (noisy, clean):
            with torch.no_grad():
                chosen, rejected = (
                    worlds.model.rewards(params, x) for x in (pairs.chosen, pairs.rejected)
                )
            scores.append(float(ordered(chosen - rejected).mean()))
        rows.append([noise, *point, *(round(score, 5) for score in scores)])
    return sorted(rows, key=lambda row: -row[-2])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Path(__file__).with_name("tuning.csv").open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for noise in NOISE:
            writer.writerows(search(noise))
