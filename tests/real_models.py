"""Pretrained models that `metaopt-fetch` brings, for the tests that are marked `realmodel`."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaopt.data.folder import find_data


def real_model(name: str) -> Path:
    """Return the folder of a model; skip the test where it is not there."""
    try:
        return find_data(f"models/{name}", name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
