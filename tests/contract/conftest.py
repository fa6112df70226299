from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONFIGS = Path(__file__).parents[2] / "configs"


@cache
def config(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.fixture
def composed() -> Callable:
    """Return a function from overrides to a function that makes the three roles they name."""

    def parts(*overrides: str) -> Callable:
        found = config(*overrides)
        roles = (found.problem, found.estimator, found.optimizer)
        return lambda: tuple(instantiate(role, _convert_="all") for role in roles)

    return parts
