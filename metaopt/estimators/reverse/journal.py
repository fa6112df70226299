"""How far a reverse pass has come, written down so that a killed run goes on inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.estimators.reverse.adjoints import Adjoint
from metaopt.estimators.reverse.stores import read_own
from metaopt.files.tensors import write_tensors


class PassState(NamedTuple):
    """How far a reverse pass has come.

    Args:
        target: the step that is differentiated next.
        end: the last inner state.
        value: F.
        grads: dF/dphi through the steps after `target`, in the order of phi.
        adjoint: of the state after `target`.
        size: norm of the last state's adjoint, of parameters alone.
    """

    target: int
    end: GradientState
    value: Tensor
    grads: list[Tensor]
    adjoint: Adjoint
    size: Tensor

    @property
    def growth(self) -> Tensor:
        """Norm of the adjoint over that of the last state's, of parameters alone.

        NaN where the latter is 0: where F reads an average of the parameters alone.
        """
        return torch.where(self.size > 0, norm(self.adjoint, self.end) / self.size, torch.nan)


def norm(adjoint: Adjoint, inner: GradientState) -> Tensor:
    """Return the norm of an adjoint, averaged over ranks; of the part of the parameters alone."""
    return tree.norm(distributed.mean(tree.like(inner.params, adjoint[: len(inner.params)])))


class Journal:
    """The progress of one pass in a folder.

    `journal.pt` has the last entry and `end.pt` the last inner state, which the outer loop goes on
    from; both are on the disk when `enter` returns. Of several processes each has a folder, and
    all go on from the last entry that all of them have: until each has written the next one, it is
    kept as `journal_before.pt`.

    Args:
        folder: where the files are; it is made.
        fingerprint: of the pass; each file holds it.
        every: most steps between two entries, but for a segment that is longer.
    """

    def __init__(self, folder: Path, fingerprint: str, every: int) -> None:
        self.folder, self.fingerprint, self.every = folder, fingerprint, every
        self._target: int | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> PassState | None:
        """Return the last entry, or `None` where there is none of this pass."""
        end = read_own(self._path("end"), self.fingerprint)
        read = [
            read_own(self._path(name), self.fingerprint) for name in ("journal_before", "journal")
        ]
        entries = {e["progress"]["target"]: e["progress"] for e in read if e and end}
        shared = distributed.common(entries)
        if not shared or end is None:
            return None
        self._target = shared[0]  # the pass goes down
        return PassState(**entries[shared[0]], end=end["state"])

    def enter(self, progress: PassState, first: int) -> bool:
        """Write progress down if that is due; return whether it was.

        Args:
            progress: of the pass.
            first: the first of its steps, after which it is due in any case.
        """
        if self._target is None:
            self._write("end", state=progress.end)
        elif progress.target >= first and self._target - progress.target < self.every:
            return False
        entry = progress._asdict()
        del entry["end"]
        several = distributed.world_size() > 1
        if several and self._path("journal").exists():
            self._path("journal").replace(self._path("journal_before"))
        self._write("journal", progress=entry)
        if several:
            distributed.wait_for_all()
            self._path("journal_before").unlink(missing_ok=True)
        self._target = progress.target
        return True

    def _write(self, name: str, **content: Any) -> None:
        write_tensors(self._path(name), {"fingerprint": self.fingerprint, **content})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"
