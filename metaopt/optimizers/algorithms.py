"""The algorithms of `torch.optim` by name, without its classes.

The first `torch.optim` class that is instantiated imports torch's compiler (2 s). Here the same
kernels are called on plain lists of tensors; every step equals that of the class, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from metaopt.engine import tree

_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {
        "lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False,
    },
    "adam": _ADAM,
    "adamw": {**_ADAM, "weight_decay": 1e-2},
}  # fmt: skip
"""The settings of each algorithm, those of `torch.optim`, with their defaults."""

CLASSES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def check_settings(algorithm: str, settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` unless the algorithm is known and has these settings, in range."""
    if algorithm not in SETTINGS:
        raise ValueError(
            f"algorithm must be {', '.join(SETTINGS)}, or make a torch optimizer, such as "
            f"functools.partial(torch.optim.RAdam, lr=1e-3); got {algorithm!r}."
        )
    legal = SETTINGS[algorithm]
    unknown = sorted(set(settings) - set(legal))
    if unknown:
        raise ValueError(
            f"algorithm {algorithm!r} has no setting {unknown[0]!r}; it has {', '.join(legal)}."
        )
    for name in ("lr", "momentum", "weight_decay", "eps"):
        if not settings.get(name, 0) >= 0:
            raise ValueError(f"{algorithm} needs {name} >= 0; got {settings[name]}.")
    betas = settings.get("betas", (0.0, 0.0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{algorithm} needs two betas in [0, 1); got {betas}.")
    if settings.get("nesterov") and not settings.get("momentum"):
        raise ValueError("sgd with nesterov=True needs momentum > 0.")


class NamedAlgorithm:
    """SGD, Adam or AdamW on groups of tensors, which are updated in place along their `grad`.

    Args:
        name: a key of `SETTINGS`.
        groups: {"params": tensors, and the settings to change} each.
        settings: of all groups.
    """

    def __init__(
        self, name: str, groups: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._groups: list[tuple[list[Tensor], dict[str, Any]]] = []
        for group in groups:
            own = {**SETTINGS[name], **settings, **group}
            params = own.pop("params")
            check_settings(name, own)
            self._groups.append((params, own))
        self._states: list[list[dict[str, Tensor]]] = [[{} for _ in g] for g, _ in self._groups]

    @torch.no_grad()
    def step(self) -> None:
        """Update every tensor."""
        for (params, settings), states in zip(self._groups, self._states, strict=True):
            grads = [p.grad for p in params if p.grad is not None]
            if self.name == "sgd":
                _step_sgd(params, grads, states, settings)
            else:
                _step_adam(params, grads, states, settings, decoupled=self.name == "adamw")

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for params, _ in self._groups:
            for param in params:
                param.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the moments: by group, a dict for each tensor."""
        return {"moments": self._states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._states = tree.clone(state["moments"])


def _step_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    states: Sequence[dict[str, Tensor]],
    settings: Mapping[str, Any],
) -> None:
    # The first gradient becomes the buffer, undamped; the kernel writes it into this list.
    buffers = [state.get("momentum") for state in states]
    sgd(params, grads, buffers, maximize=False, **settings)
    for state, buffer in zip(states, buffers, strict=True):
        if buffer is not None:
            state["momentum"] = buffer


def _step_adam(
    params: list[Tensor],
    grads: list[Tensor],
    states: Sequence[dict[str, Tensor]],
    settings: Mapping[str, Any],
    decoupled: bool,
) -> None:
    amsgrad, (beta1, beta2) = settings["amsgrad"], settings["betas"]
    for param, state in zip(params, states, strict=True):
        if not state:
            state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(param)}
            state |= {
                name: state["mean"].clone()
                for name in ("square", *(["largest"] if amsgrad else []))
            }
    adam(
        params, grads, [s["mean"] for s in states], [s["square"] for s in states],
        [s["largest"] for s in states] if amsgrad else [], [s["step"] for s in states],
        amsgrad=amsgrad, beta1=beta1, beta2=beta2, lr=settings["lr"],
        weight_decay=settings["weight_decay"], eps=settings["eps"], maximize=False,
        decoupled_weight_decay=decoupled,
    )  # fmt: skip
