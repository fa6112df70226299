"""The states of some layers of a transformers model, without computing those above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class HiddenStates:
    """h_k of chosen layers k, numbered as in transformers' `hidden_states`.

    Args:
        backbone: a model that returns last_hidden_state; it loses the layers above the last chosen.
        layers: indices: 0 the embeddings, k after k layers, and the last one, also -1, after the
            final norm.
        keep: whether the last state is needed all the same.

    Attributes:
        layers: the indices, counted from 0.

    Raises:
        ValueError: an index out of range, or a model whose layers are not found.
    """

    def __init__(self, backbone: Any, layers: Sequence[int], keep: bool = False) -> None:
        count = backbone.config.get_text_config().num_hidden_layers
        if any(not -count - 1 <= k <= count for k in layers):
            raise ValueError(
                f"layers must list indices from {-count - 1} to {count}, of the {count} layers of "
                f"{type(backbone).__name__}; got {list(layers)}. The last one is -1."
            )
        self.layers = tuple(k % (count + 1) for k in layers)
        lists = (x for x in backbone.modules() if isinstance(x, nn.ModuleList))
        blocks: Any = next((x for x in lists if len(x) == count), None)
        if blocks is None and set(self.layers) - {count}:
            raise ValueError(
                f"layers={list(layers)}: no list of {count} layers was found in "
                f"{type(backbone).__name__}; read its last one, layers=[-1]."
            )
        last = max(self.layers, default=count)
        if last < count and not keep:
            del blocks[max(last, 1) :]  # they would be computed for nothing
        self._backbone, self._blocks, self._count = backbone, blocks, count

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Return the states (B, T, width) of the layers in their order, and last_hidden_state."""
        states: dict[int, Tensor] = {}

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            states[0] = args[0] if args else kwargs["hidden_states"]

        def after(k: int) -> Any:
            def read(module: nn.Module, args: Any, output: Any) -> None:
                states[k] = output[0] if isinstance(output, tuple) else output

            return read

        hooks = [
            self._blocks[k - 1].register_forward_hook(after(k))
            for k in set(self.layers) - {0, self._count}
        ]
        if 0 in self.layers:
            hooks.append(self._blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        try:
            last: Tensor = self._backbone(**inputs).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        states[self._count] = last
        return [states[k] for k in self.layers], last
