from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metaopt.cli.composing import parts

CONFIGS = Path(__file__).parents[2] / "configs"


@cache
def config(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.fixture
def composed() -> Callable:
    """Return a function from overrides to a function that makes the three roles they name."""

    def made(*overrides: str) -> Callable:
        roles = ("problem", "estimator", "optimizer")
        whole = config(*overrides)
        plain = {name: OmegaConf.to_container(whole[name], resolve=True) for name in roles}

        def make() -> tuple:
            new = parts(plain, roles)
            return tuple(new[name] for name in roles)

        return make

    return made
