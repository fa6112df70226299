"""Where the inner states that a reverse pass keeps are: in memory or on disk."""

from __future__ import annotations

from bisect import insort
from pathlib import Path
from typing import Any, Protocol

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.files.tensors import CheckpointError, read_tensors, write_tensors


class Store(Protocol):
    """Inner states by the number of steps taken before them."""

    @property
    def steps(self) -> list[int]:
        """The numbers of the states that are there, ascending."""
        ...

    def put(self, step: int, state: GradientState) -> GradientState:
        """Keep a state beyond the last one; return an equal one, which may be stepped in place."""
        ...

    def get(self) -> GradientState:
        """Return a copy of the last state, which may be stepped in place."""
        ...

    def pop(self) -> GradientState:
        """Return the last state and forget it."""
        ...

    def release(self) -> None:
        """Give up what forgotten states occupy: the pass will not be taken up from before here."""
        ...


class MemoryStore:
    """States in memory. The first one stays the caller's own tensors, which nothing changes."""

    def __init__(self) -> None:
        self._states: dict[int, GradientState] = {}

    @property
    def steps(self) -> list[int]:
        """The numbers of the states that are there, ascending."""
        return list(self._states)

    def put(self, step: int, state: GradientState) -> GradientState:
        """Keep a state beyond the last one; return a copy."""
        self._states[step] = state
        return tree.clone(state)

    def get(self) -> GradientState:
        """Return a copy of the last state."""
        return tree.clone(self._states[self.steps[-1]])

    def pop(self) -> GradientState:
        """Return the last state and forget it."""
        return self._states.pop(self.steps[-1])

    def release(self) -> None:
        """Do nothing: memory is given up at once."""


class DiskStore:
    """States in files of a folder, which an interrupted pass finds again.

    A file that a crash of the machine has cut, or that belongs to another pass, is deleted.

    Args:
        folder: where the files are; it is made.
        fingerprint: of the pass; each file holds it.
        last: the last state that the pass has a use for.
    """

    def __init__(self, folder: Path, fingerprint: str, last: int) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._forgotten: list[int] = []
        self.steps: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("state_*.pt"):
            step = int(path.stem.partition("_")[2])
            if step <= last and read_own(path, fingerprint) is not None:
                insort(self.steps, step)
            else:
                path.unlink()
        # Ranks step together: what one has lost, all run again.
        self.steps = distributed.common(self.steps)

    def put(self, step: int, state: GradientState) -> GradientState:
        """Write a state; return it."""
        # Without waiting for the disk: what is lost is computed again.
        content = {"fingerprint": self.fingerprint, "state": state}
        write_tensors(self._path(step), content, sync=False)
        insort(self.steps, step)
        return state

    def get(self) -> GradientState:
        """Read the last state."""
        state: GradientState = read_tensors(self._path(self.steps[-1]))["state"]
        return state

    def pop(self) -> GradientState:
        """Read the last state and forget it; its file stays until `release`."""
        state = self.get()
        self._forgotten.append(self.steps.pop())
        return state

    def release(self) -> None:
        """Delete the files of forgotten states."""
        for step in set(self._forgotten) - set(self.steps):
            self._path(step).unlink()
        self._forgotten.clear()

    def _path(self, step: int) -> Path:
        return self.folder / f"state_{step:08d}.pt"


def read_own(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the content of a file of a pass; `None` where it is another's, or damaged."""
    try:
        content = read_tensors(path)
    except (CheckpointError, tree.UnknownStateError):
        return None
    own = isinstance(content, dict) and content.get("fingerprint") == fingerprint
    return content if own else None
