"""`torch.utils.checkpoint` in a loss, refused where it recomputes with other weights.

A module is called with theta in the places of its own weights (`functional_call`), and has these
back when a reverse pass recomputes one of its layers. A problem may begin to checkpoint after some
steps, so that each call of a loss is watched; what is not checkpointed costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.engine import tree

CHECKPOINT: Any = torch.utils.checkpoint
HOOKS = "_checkpoint_without_reentrant_generator", "CheckpointFunction"
"""What `checkpoint` calls, wherever it was imported: without and with `use_reentrant=True`."""

OTHER_TENSORS = "and reads other tensors than before, such as the module's own weights or buffers"
SEVERAL = "for several seeds or tasks at once, where torch has no recomputation"
"""How layers are recomputed wrongly, for `recomputed`."""


class watched_checkpoints:
    """A block for a loss, whose checkpointed layers must be recomputed with the weights they had.

    Args:
        problem, loss: names, for the message.

    Raises:
        ValueError: in the block, a layer is checkpointed with `use_reentrant=True`; in a reverse
            pass after it, a layer that is recomputed reads a weight or buffer that it did not read
            before.
    """

    def __init__(self, problem: str, loss: str) -> None:
        self.problem, self.loss = problem, loss

    def __enter__(self) -> None:
        self._own = [getattr(CHECKPOINT, name) for name in HOOKS]
        for name, watched in zip(HOOKS, (self.recomputed_later, self), strict=True):
            setattr(CHECKPOINT, name, watched)

    def __exit__(self, *error: object) -> None:
        for name, own in zip(HOOKS, self._own, strict=True):
            setattr(CHECKPOINT, name, own)

    def recomputed_later(
        self, function: Any, preserve: bool, contexts: Callable[[], Any], *rest: Any, **kwargs: Any
    ) -> Any:
        """Return torch's generator, the function and its recomputation run in contexts of ours."""
        if torch._C._functorch.maybe_current_level() is not None:
            raise ValueError(recomputed(self.problem, self.loss, SEVERAL))
        reads = _Reads(recomputed(self.problem, self.loss, OTHER_TENSORS))

        def watched() -> Any:
            return tuple(_Within(context, reads) for context in contexts())

        return self._own[0](function, preserve, watched, *rest, **kwargs)

    def apply(self, *arguments: Any) -> Any:
        """Refuse what `CheckpointFunction` differentiates by `backward()` alone."""
        if torch.is_grad_enabled():
            raise ValueError(recomputed(self.problem, self.loss, "with use_reentrant=True"))
        return self._own[1].apply(*arguments)


def recomputed(problem: str, loss: str, how: str) -> str:
    """Return the message for layers that are recomputed with other weights."""
    return (
        f"{loss} of {problem} recomputes layers in its backward pass {how} "
        f"(torch.utils.checkpoint): under functional_call their gradients would be those of other "
        f"weights, or missing. Take the checkpoint() out of the module; where memory is short, "
        f"metaopt.remat_blocks(module, pattern) recomputes layers in derivatives of every order."
    )


class _Reads(TorchDispatchMode):
    """Which memory a layer reads when it is first called; later it must read no other.

    But for what it makes itself: a buffer of the module is no parameter, and may differ as well.
    """

    def __init__(self, message: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.message, self.memory, self.again = message, set[int](), False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is imported (2 s) to keep it out of this method

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.again = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        constant = func is torch.ops.aten.lift_fresh.default  # made by torch.tensor(), just now
        if not self.again:
            self.memory |= _memory((args, kwargs))
        elif not constant and not self.memory.issuperset(_memory((args, kwargs))):
            raise ValueError(self.message)
        result = func(*args, **(kwargs or {}))
        self.memory |= _memory(result)
        return result


def _memory(tensors: Any) -> set[int]:
    """Return where storages begin: a row of a weight is on the weight's."""
    strided = (t for t in tree.tensors(tensors) if t.layout is torch.strided)
    return {t.untyped_storage().data_ptr() for t in strided}


class _Within:
    """What a layer reads inside a context of the user's own; entered at each recomputation."""

    def __init__(self, context: Any, reads: _Reads) -> None:
        self.context, self.reads = context, reads

    def __enter__(self) -> None:
        self.context.__enter__()
        self.reads.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> Any:
        self.reads.__exit__(*error)
        return self.context.__exit__(*error)
