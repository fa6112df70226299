"""What a config says of several processes: who draws which batches, and what results depend on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from metaopt.cli import torchrun
from metaopt.engine import Engine, distributed
from metaopt.engine.across_ranks import refuse_without_gradients
from metaopt.engine.batch_parts import PartsError
from metaopt.files.errors import ConfigError

RANKS = ("split", "own")


def with_ranks(config: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a resolved config in which `ranks` and `processes` stand where results depend on them.

    Args:
        config: resolved.
        before: the config that a run in the folder was started with.

    Raises:
        ConfigError: `ranks` is neither of `RANKS`.
    """
    processes, ranks = torchrun.processes(), config.get("ranks", "split")
    if ranks not in RANKS:
        raise ConfigError(f"ranks must be split or own; got {ranks}.")
    config = {k: v for k, v in config.items() if k != "ranks"}
    if processes > 1 and ranks == "own":
        return {**config, "ranks": "own", "processes": processes}
    if processes > 1 and "processes" in (before or {}):  # as `with_processes` has found
        return {**config, "processes": processes}
    return config


def check_ranks(config: Mapping[str, Any]) -> None:
    """Check a run's config against the processes that torchrun has started.

    Raises:
        ConfigError: the run depends on another number of them, or its device is one for all.
    """
    processes, device = torchrun.processes(), str(config.get("device"))
    if (before := config.get("processes", processes)) != processes:
        raise ConfigError(
            f"The run was started with {before} processes, on which its results depend, and there "
            f"{'is' if processes == 1 else 'are'} {processes} now. Continue it with\n"
            f"  torchrun --nproc_per_node={before} -m metaopt resume=<folder>"
        )
    if processes == 1:
        return
    if re.fullmatch(r"cuda:\d+", device):
        raise ConfigError(
            f"device={device}: under torchrun each process has a GPU of its own; use device=cuda."
        )
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", processes)), torch.cuda.device_count()
    if device == "cuda" and 0 < gpus < local:
        raise ConfigError(
            f"device=cuda: this machine has {gpus} GPUs for {local} processes; start as many "
            f"processes as there are GPUs, or use device=cpu."
        )


def with_processes(config: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """Return a config with the number of processes where the results of an engine depend on it.

    Raises:
        ConfigError: several processes cannot share the work.
    """
    processes, problem = distributed.world_size(), engine.problem
    if processes == 1:
        return config
    try:
        refuse_without_gradients(engine.loop, processes)
        if problem.records is not None:
            raise PartsError(
                f"{type(problem).__name__} keeps records of answers that are paid for, and "
                f"{processes} processes would pay {processes} times. Run it in one process."
            )
        if config.get("ranks") != "own" and engine.depends_on(processes):
            return {**config, "processes": processes}
    except PartsError as error:
        raise ConfigError(str(error)) from error
    return config
