"""Counter-based randomness: every draw is a pure function of a key, so nothing needs saving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import torch

from metaopt.engine import distributed


class Keys(int):
    """The keys of R replicates, folded together; as a number, that of the first.

    Attributes:
        each: theirs.
    """

    each: tuple[int, ...]

    def __new__(cls, each: Sequence[int]) -> Keys:
        """Return the keys in this order."""
        keys = super().__new__(cls, each[0])
        keys.each = tuple(each)
        return keys


def fold(key: int, *ids: int | str) -> int:
    """Return a new key from a key and the names of what it is for.

    `fold(seed, outer_step, "batch")` is one of 2**63 keys, the same on every machine and in every
    process; torch's generator on a CPU uses the low 32 bits of one. Different names give
    unrelated keys, and `fold(fold(k, a), b)` differs from `fold(k, a, b)`.
    """
    if isinstance(key, Keys):
        return Keys([fold(each, *ids) for each in key.each])
    # With the type's initial and a separator, (1, "1"), ("1", 1) and (11,) are different names.
    name = f"{type(key).__name__[0]}{key}"
    for i in ids:
        name += f"\x1f{type(i).__name__[0]}{i}"
    # `hash` differs between processes. One bit less: generators take signed 64-bit seeds.
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by `key`."""
    _refuse_several(key)
    return torch.Generator(device).manual_seed(key)


def _refuse_several(key: int) -> None:
    if isinstance(key, Keys):
        raise TypeError("one generator would draw the same numbers for all replicates.")


GeneratorStates = tuple[torch.Tensor, list[torch.Tensor] | None]
"""Where torch's global generators are: that of the CPU, and those of CUDA devices in use."""


def generator_states() -> GeneratorStates:
    """Return where torch's global generators are."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.default_generator.get_state(), cuda


def set_generator_states(states: GeneratorStates) -> None:
    """Bring torch's global generators to where they were."""
    cpu, cuda = states
    torch.default_generator.set_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


class restored_generators:
    """Restore torch's global generators after the block."""

    # Classes, not generator functions: every evaluation of a loss enters one.
    def __enter__(self) -> None:
        self._saved = generator_states()

    def __exit__(self, *error: object) -> None:
        set_generator_states(self._saved)


class replay(restored_generators):
    """Seed torch's global generators with `key` inside the block and restore them after it.

    Dropout and other layers draw from the global generators. Two evaluations under the same key
    see the same masks, which a finite difference needs.
    """

    def __init__(self, key: int) -> None:
        _refuse_several(key)
        self._key = key

    def __enter__(self) -> None:
        super().__enter__()
        torch.default_generator.manual_seed(self._key)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(self._key)


@dataclass(frozen=True)
class Draw:
    """Which batch is drawn: everything that a batch may depend on, apart from the problem itself.

    Example:
        def inner_batch(self, draw):
            chosen = torch.randint(len(self.x), (32,), generator=draw.generator)
            return self.x[chosen], self.y[chosen]

    Args:
        key: of this inner step, of this outer batch, of this solve.
        outer_step: outer steps taken before.
        inner_step: inner steps of this outer step's inner run taken before; `None` for an outer
            batch after them.
        total_inner_step: the same since theta_0, so that with a warm start it counts through.
        use: what the batch is for: an inner step, the outer loss, the inner loss at the end of the
            run in an implicit solve, or training after the outer loop.
        run_key: the same for all batches of one outer step, and of one task in a meta-batch.
        stream: what is drawn: batch, outer batch, or what `prepare_batch` adds to one.
        task_index: which task of a meta-batch this is, from 0: `epoch_batch(n, B, outer_step,
            seed)[task_index]` draws tasks without replacement.
        fixed_block: the block that this must be, where an estimator takes all of them in turn.
    """

    key: int
    outer_step: int = 0
    inner_step: int | None = 0
    total_inner_step: int = 0
    use: Literal["inner", "outer", "solve", "retrain"] = "inner"
    run_key: int = 0
    stream: Literal["batch", "outer batch", "decide"] = "batch"
    task_index: int = 0
    fixed_block: int | None = None

    @cached_property
    def generator(self) -> torch.Generator:
        """This batch's own generator: another one in each batch, and on ranks that draw their own.

        Ranks that split a batch draw all of it, each of them.
        """
        return generator(fold(self.key, self.stream, distributed.draw_rank()))

    @property
    def task(self) -> torch.Generator:
        """A generator of the same seed in every batch of one outer step and task, on every rank.

        It says which sinusoid, which query, which support set: the task of few-shot learning. It
        is made from scratch each time it is read, since a shared one would go on where the inner
        batch has left it and give the outer batch another task.
        """
        return generator(fold(self.run_key, "task"))

    def fresh(self, stream: Literal["batch", "outer batch", "decide"] | None = None) -> Draw:
        """Return this draw, of another stream where one is given, before anything is drawn."""
        stream = stream or self.stream
        if stream == self.stream and "generator" not in vars(self):
            return self
        return replace(self, stream=stream)  # a copy makes a generator of its own

    def of_block(self, block: int) -> Draw:
        """Return this draw of a given block."""
        return replace(self, fixed_block=block)

    def block(self, count: int, seed: int | None = None) -> int:
        """Return which of `count` fixed blocks of the data this batch is; see `generator` on ranks.

        Args:
            count: number of blocks, >= 1.
            seed: `None` draws with replacement, each block equally likely. A seed draws without:
                every block once in an epoch, in the orders of `epoch_batch`; inner steps, outer
                batches along them and outer batches after them each go through epochs of their
                own. Solves draw with replacement all the same.
        """
        if self.fixed_block is not None:
            return self.fixed_block
        rank = distributed.draw_rank()
        own = (rank,) if rank else ()  # the first draws as one process alone does
        if seed is None or self.use == "solve":
            return int(torch.randint(count, (), generator=generator(fold(self.key, "block", *own))))
        step = self.outer_step if self.inner_step is None else self.total_inner_step
        return int(epoch_batch(count, 1, step, fold(seed, self.stream, *own)))


def epoch_batch(n: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """Return the examples of a step, (batch_size,): a new order in every epoch over all n.

    What is left of an epoch after its last whole batch waits for the next epoch.

    Example:
        def inner_batch(self, draw):
            chosen = epoch_batch(len(self.x), 32, draw.total_inner_step, seed=0)
            return self.x[chosen], self.y[chosen]

    Args:
        n: number of examples, >= 1.
        batch_size: in [1, n].
        step: steps taken before.
        seed: another one has other orders.

    Raises:
        ValueError: a batch size outside [1, n].
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"epoch_batch needs 1 <= batch_size <= n={n}; got {batch_size}.")
    epoch, position = divmod(step, n // batch_size)
    # The whole order is made again in each step, so that nothing of it lives in a checkpoint.
    order = torch.randperm(n, generator=generator(fold(seed, "pass", epoch)))
    return order[position * batch_size : (position + 1) * batch_size]
