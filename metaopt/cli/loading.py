"""Hydra on the shipped folder and the user's own; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra

from metaopt.cli import folders

CONFIG = "train"


@contextmanager
def composing() -> Iterator[Hydra]:
    """Make the shipped folder, and the user's own, what `hydra.compose` reads."""
    shipped = str(folders.shipped())
    with initialize_config_dir(config_dir=shipped, job_name="metaopt", version_base="1.3"):
        if folders.of_user():  # hydra reads the list of folders once, when it is made
            path = create_config_search_path(shipped)
            for folder in folders.of_user():
                path.prepend("command-line", f"file://{folder}", SearchPathQuery("schema", None))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(task_name="metaopt", config_search_path=path)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra
