"""BOAT (Liu et al., 2025): operations of its libraries, composed by a configuration."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import TERM_STEP, TERMS, UNROLLS, Reweighting
from benchmarks.peers.peer import Peer, Weights
from benchmarks.peers.with_higher import EPS

# BOAT imports the losses by their names, and calls them with (batch, upper model, lower model).


def lower_loss(feed: dict[str, Any], upper: Any, lower: Any, params: Any = None) -> Tensor:
    """Return g."""
    loss: Tensor = feed["problem"].training_loss(upper.phi, lower, feed["rows"])
    return loss


def upper_loss(feed: dict[str, Any], upper: Any, lower: Any, params: Any = None) -> Tensor:
    """Return F."""
    loss: Tensor = feed["problem"].meta_loss(lower, feed["rows"])
    return loss


def solver(problem: Reweighting, outer_lr: float, operation: str, folder: str) -> Any:
    """Return BOAT's problem: plain descent (NGD), and `operation` for the hypergradient."""
    boat: Any = importlib.import_module("boat_torch")
    upper, lower = Weights(problem.rows), problem.model
    inner: torch.optim.Optimizer
    if problem.algorithm == "sgd":
        inner = torch.optim.SGD(lower.parameters(), lr=problem.lr)
    else:
        inner = torch.optim.Adam(lower.parameters(), lr=problem.lr, eps=problem.eps)
    here = "benchmarks.peers.with_boat"
    config = {
        "fo_op": None, "gm_op": ["NGD"], "na_op": [operation],
        "lower_level_model": lower, "upper_level_model": upper,
        "lower_level_var": list(lower.parameters()), "upper_level_var": list(upper.parameters()),
        "lower_level_opt": inner, "upper_level_opt": torch.optim.SGD(upper.parameters(), outer_lr),
        "lower_iters": problem.inner_steps, "device": "cpu", "accumulate_grad": False,
        "return_grad": False, "copy_last_param": problem.warm_start,
        "CG": {"k": TERMS - 1, "tolerance": 1e-20}, "RGT": {"truncate_iter": 0},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.5},
        "loss_log_path": os.path.join(folder, "losses.json"),
    }  # fmt: skip
    losses = {
        f"{level}_level_loss": {"function": f"{here}.{level}_loss"} for level in ("lower", "upper")
    }
    made = boat.Problem(config, losses)
    made.build_ll_solver()
    made.build_ul_solver()
    return made


def steps(problem: Reweighting, outer_lr: float, operation: str) -> Iterator[Tensor]:
    """Take BOAT's iterations."""
    with tempfile.TemporaryDirectory() as folder:
        made = solver(problem, outer_lr, operation, folder)
        for step in range(10**6):
            feed = {"problem": problem, "rows": problem.batch_of(step)}
            made.run_iter(feed, feed, step)
            yield made.boat_configs["upper_level_model"].phi


def unroll(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """Reverse-mode differentiation (RAD)."""
    return steps(problem, outer_lr, "RAD")


def neumann(problem: Reweighting, outer_lr: float) -> Iterator[Tensor]:
    """The Neumann series (NS), whose step is the inner learning rate."""
    if problem.lr != TERM_STEP:
        raise ValueError(f"BOAT's series steps by the inner rate {problem.lr}, not {TERM_STEP}")
    return steps(problem, outer_lr, "NS")


PEER = Peer(
    "BOAT",
    "boat_torch",
    ("boat-torch==1.1.1", "higher==0.2.1", "numpy==1.26.4"),
    {**dict.fromkeys(UNROLLS, unroll), "Neumann series": neumann},
    {"unroll, Adam": f"BOAT steps by higher; {EPS}"},
)
