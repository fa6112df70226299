"""What an interrupted reverse pass goes on from, and how it is known to be of this one.

It is in `<run>/reverse/step_<outer step>/<key>/`, and of several processes in a folder of each
there. The run deletes it once the checkpoint of the outer step is on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.estimators.reverse.journal import Journal, PassState
from metaopt.estimators.reverse.schedules import Schedule
from metaopt.estimators.reverse.stores import DiskStore, MemoryStore, Store


@contextmanager
def opened(
    loop: InnerLoop, phi: Tree, key: int, steps: range, schedule: Schedule, start: GradientState,
    *, disk: bool, every: int | None,
) -> Iterator[tuple[Store, Journal | None, PassState | None]]:  # fmt: skip
    """Return a store, a journal and how far an interrupted pass had come, while the pass lasts.

    Args:
        loop, phi, key, steps, schedule: of the pass.
        start: the state before its first step.
        disk: whether states are kept on disk: in a folder for temporary files where the loop has
            none.
        every: most steps between two entries of the journal, or `None` for no journal. There is
            none in a pass that is shorter and where the loop has no folder.
    """
    folder = _folder(loop, key)
    journaled = every is not None and len(steps) > every and folder is not None
    if schedule.first(steps[-1]) == steps.start or not (disk or journaled):
        yield MemoryStore(), None, None
        return
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="metaopt-reverse-")))
        own = fingerprint(loop, phi, key, steps, schedule, start)
        journal = Journal(folder, own, every) if journaled and every is not None else None
        progress = None if journal is None else journal.read()
        last = steps[-1] if progress is None else progress.target
        yield DiskStore(folder, own, last) if disk else MemoryStore(), journal, progress


def fingerprint(
    loop: InnerLoop, phi: Tree, key: int, steps: range, schedule: Schedule, start: GradientState
) -> str:
    """Return a hash of all that a reverse pass follows from.

    phi, the state that it starts from, the problem's own numbers, the inner optimizer, the frozen
    weights, and both losses at the start to the bit, which tell other data, other code and another
    precision. Cost: two evaluations.
    """
    problem = loop.problem
    numbers = {k: v for k, v in vars(problem).items() if isinstance(v, (bool, int, float, str))}
    optimizer = loop.optimizer(phi, start.step)
    processes = distributed.world_size()
    said = (
        type(problem).__qualname__, numbers, optimizer, steps, schedule, loop.frozen_hash, processes
    )  # fmt: skip
    with torch.no_grad():
        draws = loop.draw(start, key, steps.start), loop.outer_draw(start, key)
        inner_loss = loop.inner_value(phi, start.at(start.params), draws[0])
        outer_loss = loop.outer_value(phi, start, draws[1])
    # Objects without a text of their own are told by their address, which is another each time.
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{key} {loop.outer_step} {start.step} {said}")
    digest = blake2b(text.encode(), digest_size=16)
    for tensor in tree.tensors([phi, start, inner_loss, outer_loss]):
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(f"{flat.dtype} {tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _folder(loop: InnerLoop, key: int) -> Path | None:
    if loop.folder is None:
        return None
    folder = loop.folder / "reverse" / f"step_{loop.outer_step + 1:08d}" / f"{key:016x}"
    # What a process keeps is of its own batches.
    several = distributed.world_size() > 1
    return folder / f"process_{distributed.rank()}" if several else folder
