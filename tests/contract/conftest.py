from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def composed() -> Iterator[Callable]:
    """Return a function from overrides to a function that makes the three roles they name."""

    def parts(*overrides: str) -> Callable:
        config = compose("train", overrides=list(overrides))

        def make():
            roles = (config.problem, config.estimator, config.optimizer)
            return tuple(instantiate(role, _convert_="all") for role in roles)

        return make

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield parts
