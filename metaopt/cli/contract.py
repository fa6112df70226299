"""The published contract tests on a problem that a config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from metaopt.cli import folders
from metaopt.cli.composing import parts
from metaopt.cli.loading import CONFIG, composing
from metaopt.testing import ProblemContract

ROLES = ("problem", "estimator", "optimizer")


def contract(*overrides: str, config_dir: str | Path = "conf", steps: int = 20) -> type:
    """Return the tests of what a problem promises, for the config that the overrides compose.

    Args:
        overrides: as on the command line, such as `problem=mine`.
        config_dir: the config folder, as `--config-dir`.
        steps: outer steps in which the outer loss must fall.
    """

    class Contract(ProblemContract):
        falling_steps = steps

        @pytest.fixture
        def make(self) -> Callable[[], tuple[Any, ...]]:
            folders.use(["--config-dir", str(config_dir)])
            with composing():
                config = compose(CONFIG, list(overrides))
            plain = {name: OmegaConf.to_container(config[name], resolve=True) for name in ROLES}
            return lambda: tuple(parts(plain, ROLES)[name] for name in ROLES)

    return Contract
