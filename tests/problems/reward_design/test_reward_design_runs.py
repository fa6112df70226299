"""Runs of the command, the variants of the family's page, and MountainCar as it is."""

import shlex
from functools import partial
from pathlib import Path

import pytest
from small import shrunk

from metaopt.environments import MountainCar
from metaopt.environments.q_network import QNetwork
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.trainer import Trainer

PAGE = Path(__file__).parents[3] / "docs" / "families" / "reward_design.md"
VARIANTS = [
    line.partition("  #")[0]
    for line in PAGE.read_text().splitlines()
    if line.startswith("metaopt problem=reward_design ") and not line.endswith("\\")
]


def small(tmp_path, overrides):
    """Return the overrides that make a run small, but those that another environment has not."""
    numbers = shrunk("reward_design", tmp_path)
    if any("environment=" in override for override in overrides):
        numbers = [number for number in numbers if "power" not in number]
    return [*overrides, *numbers, "debug=tiny"]


def test_the_page_has_variants():
    assert len(VARIANTS) == 6


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_the_page_runs(variant, metaopt, tmp_path):
    done = metaopt(*small(tmp_path, shlex.split(variant)[1:]), "figures=false")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_run_prints_what_was_tried_and_delivers_the_best(metaopt, tmp_path):
    overrides = ["problem=reward_design", "hydra.run.dir=run"]
    done = metaopt(*small(tmp_path, overrides))
    assert done.code == 0, done.err
    reward = (tmp_path / "run" / "reward.txt").read_text()
    shown = done.out + done.err
    assert "cost := -1" in shown
    assert "trained again with fresh seeds: success" in shown
    assert all(f"    {line}" in shown for line in reward.splitlines())
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_paid_coder_needs_a_budget(metaopt):
    done = metaopt(
        "problem=reward_design", "+llm@problem.roles.coder=openai_compatible",
        "problem.roles.coder.model=m",
    )  # fmt: skip
    assert done.code != 0
    assert "coder" in done.err
    assert "limits" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_an_environment_of_gymnasium_takes_the_place_of_the_physics(metaopt, tmp_path):
    pytest.importorskip("gymnasium", reason="needs the extra rl")
    environment = [
        "data@problem.trainer.environment=rollout_length/gymnasium",
        "problem.trainer.environment.id=CartPole-v1",
    ]
    overrides = small(tmp_path, ["problem=reward_design", *environment])
    done = metaopt(*overrides, "figures=false")
    assert "Set problem.trainer.success" in done.err
    done = metaopt(*overrides, "problem.trainer.success=truncated", "figures=false")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_on_mountain_car_energy_teaches_what_the_cars_own_reward_does_not():
    trainer = Trainer(MountainCar(), partial(QNetwork, widths=[48, 32]))
    texts = {
        "own": "-1",
        "energy": "500 * (energy2 - energy)",
    }
    rewards = [parse(text, trainer.variables.names) for text in texts.values()]
    _, trainings = trainer.train(rewards, 10, 1, 0)
    own, energy = (training.mean_success for training in trainings)
    assert own == 0.0
    assert energy > 0.5  # 0.85 to 1 over keys; rounding makes another run of it
