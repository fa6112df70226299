"""When a run writes checkpoints, and which one it continues from, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaopt.engine import Engine, distributed
from metaopt.engine.across_ranks import refuse_different
from metaopt.files.errors import FolderError
from metaopt.files.reading import steps
from metaopt.files.writing import refuse_links
from metaopt.runs import checkpoint
from metaopt.runs.contents import refuse_misplaced
from metaopt.runs.continuing import log_until, refuse_foreign
from metaopt.runs.folder import read_provenance


class Checkpointer:
    """Reads and writes the checkpoints of a run; see `metaopt.runs.checkpoint` for the files.

    Of several processes each reads, in step with the others, and the first alone writes.

    Args:
        engine: whose state is saved; `engine.loop.folder` is the run's, or `None`.
        config: the run's, which a checkpoint must be of.
        keep: number of newest checkpoints to keep, >= 1.
        state: returns what a checkpoint holds; called by the first process alone.

    Attributes:
        log: what metrics.jsonl held when the checkpoint that `latest` returned was written.
    """

    def __init__(
        self,
        engine: Engine,
        config: Mapping[str, Any],
        keep: int,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self.engine, self.config, self.keep = engine, config, keep
        self.log = b""
        self._state = state
        self._saved: int | None = None  # a step that has its checkpoint is not saved again

    def latest(self) -> dict[str, Any] | None:
        """Return the state of the last checkpoint, or `None` where the run is to begin.

        Raises:
            CheckpointError: there are checkpoints and none can be read.
            FolderError: the checkpoint is of a run of another config, the folder holds a symbolic
                link or a damaged file, or processes do not see one folder.
        """
        state = None

        def read() -> int:
            nonlocal state
            state = self._read()
            return 0 if state is None else int(state["engine"]["outer_step"])

        step, folder = distributed.from_first(read), self.engine.loop.folder
        if step and state is None and folder is not None:
            state = checkpoint.latest(folder / "checkpoints")
            if state is None or state["engine"]["outer_step"] != step:
                raise FolderError(
                    f"{folder} holds the checkpoint of outer step {step} for the first process and "
                    f"not for process {distributed.rank()}; all must see one folder."
                )
        return state

    def _read(self) -> dict[str, Any] | None:
        """Read the last checkpoint, or return `None` where there is none.

        Whatever is wrong with the folder is said here, before anything in it changes.
        """
        folder = self.engine.loop.folder
        if folder is None:
            return None
        refuse_links(folder)
        refuse_misplaced(folder)
        read_provenance(folder)
        state = checkpoint.latest(folder / "checkpoints")
        if state is not None:
            refuse_foreign(folder / "checkpoints", state, self.config)
            self.log = log_until(folder, state)
        return state

    def prune(self, step: int) -> None:
        """Remove the checkpoints that a run which continues from `step` would not have."""
        self._saved = distributed.from_first(lambda: self._prune(step))

    def _prune(self, step: int) -> int | None:
        """Tidy up the checkpoints; return the step, if its is one that this would write again."""
        folder = self._folder()
        if folder is None:
            return None
        checkpoint.prune(folder, step, self.keep)  # a kill may have come before
        return step if step in dict(steps(folder)) else None

    def save(self, step: int) -> None:
        """Write the checkpoint of an outer step, unless it is there.

        Raises:
            ValueError: processes that split batches no longer have the same numbers.
        """
        if step == self._saved:
            return
        refuse_different(self.engine)
        distributed.from_first(lambda: self._write(step))
        self._saved = step

    def _write(self, step: int) -> None:
        if (folder := self._folder()) is not None:
            checkpoint.save(folder, step, self._state(), self.keep)

    def save_best(self, step: int) -> None:
        """Write the best checkpoint of an outer step, unless it is there.

        After `save` of this step: a run that continues from that one comes by here again.
        """
        distributed.from_first(lambda: self._write_best(step))

    def _write_best(self, step: int) -> None:
        folder = self._folder()
        if folder is not None and step not in dict(checkpoint.best_files(folder)):
            checkpoint.save_best(folder, step, self._state())

    def _folder(self) -> Path | None:
        folder = self.engine.loop.folder
        return None if folder is None else folder / "checkpoints"
