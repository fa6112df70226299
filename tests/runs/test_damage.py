"""What is damaged in a run's folder is named, or changes nothing that is read from it."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import metaopt as package
from metaopt import ConfigError
from metaopt.files import sums
from metaopt.files.reading import steps
from metaopt.testing.trees import identical

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "outer_steps=6", "checkpoint_every=2", "eval_every=3", "figures=false")
COMMANDS = (("ls", "run"), ("show", "run"), ("report", "run"), ("resume=run",))
NAMED = re.compile(
    r"damaged|edited|does not match|cannot be read|another config|no run|missing|cannot write"
)
TIMES = re.compile(r"\d+\.\d+ s\b|seconds.*|^files .*", re.MULTILINE)

Comparison = tuple[int, str, dict[str, bytes]]


class Damage:
    """Compares what the commands make of a damaged run with what they make of the whole one.

    Args:
        metaopt: the command line.
        finished: whether the run has ended; else it was killed after its fourth step.
    """

    def __init__(self, metaopt: Metaopt, finished: bool) -> None:
        self.metaopt = metaopt
        assert metaopt(*RUN, "hydra.run.dir=kept").code == 0
        if not finished:
            for name in ("result.json", "timing.json"):
                Path("kept", name).unlink()
            sums.write(Path("kept"), [Path("kept/provenance.json")], {})
            steps(Path("kept/checkpoints"))[-1][1].unlink()
        self.restore()
        self.files = sorted(path for path in Path("run").rglob("*") if path.is_file())
        self.original = self.loaded()
        self.expected: dict[tuple[str, ...], Comparison] = {}
        for command in COMMANDS:
            self.restore()
            self.expected[command] = self.outcome(command, Path())

    def restore(self) -> None:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("kept", "run")

    def outcome(self, command: tuple[str, ...], damaged: Path) -> Comparison:
        """Return the status of a command, what it says, and the other files of the run."""
        done = self.metaopt(*command)
        text = done.out + done.err
        assert "Traceback" not in text
        assert not re.search(r"\w+Error: ", text), text
        files = ("result.json", "metrics.jsonl", "outer.safetensors", "inner.safetensors")
        left = {f: Path("run", f).read_bytes() for f in files if Path("run", f).is_file()}
        left.pop(damaged.name, None)
        if "metrics.jsonl" in left:
            left["metrics.jsonl"] = re.sub(rb'"time/\S+": [\d.e-]+', b"", left["metrics.jsonl"])
        return done.code, TIMES.sub("", text), left

    def loaded(self) -> tuple[Any, ...]:
        result = package.load("run")
        return result.outer, result.inner.params, result.metrics, [*result.history], result.config

    def check(self, damage: Callable[[Path], object], path: Path) -> int:
        """Damage a file, and return how many commands have named it."""
        named = 0
        for command in COMMANDS:
            self.restore()
            what = damage(path)
            code, text, left = self.outcome(command, path)
            if NAMED.search(text):
                named += 1
                continue
            expected = {k: v for k, v in self.expected[command][2].items() if k != path.name}
            assert (code, text, left) == (*self.expected[command][:2], expected), (command, what)
        self.restore()
        what = damage(path)
        try:
            assert identical(self.loaded(), self.original), what
        except ConfigError:
            named += 1
        return named


def flip(rng: random.Random) -> Callable[[Path], str]:
    """Return what flips a bit, each time the same one of a file."""
    share, bit = rng.random(), rng.randrange(8)

    def damage(path: Path) -> str:
        content = bytearray(path.read_bytes())
        at = int(share * len(content))
        content[at] ^= 1 << bit
        path.write_bytes(content)
        return f"bit {bit} of byte {at} of {path}: {bytes(content[max(at - 20, 0) : at + 20])!r}"

    return damage


def put(content: bytes | None) -> Callable[[Path], object]:
    """Return what replaces a file: by a half of it where there is no content."""
    return lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2] if content is None else content
    )


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "cut": put(None), "empty": put(b""), "bytes": put(b"\xff\xfe\x00"), "list": put(b"[1, 2]\n"),
    "other": put(b'{"metrics": 3, "config": 4, "outer_step": "x"}\n'),
    "deep": put(b"[" * 100_000), "folder": replace_by_folder,
}  # fmt: skip


def change_digit(path: Path) -> None:
    """Change the first digit behind a point."""
    path.write_bytes(
        re.sub(rb"(?<=\.)\d", lambda m: b"%d" % (9 - int(m[0])), path.read_bytes(), count=1)
    )


@pytest.mark.slow
def test_another_digit_is_named(metaopt: Metaopt) -> None:
    damage = Damage(metaopt, finished=True)
    for name in ("result.json", "metrics.jsonl", "timing.json", "provenance.json"):
        assert damage.check(change_digit, Path("run", name)), name


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_bits_that_flip(metaopt: Metaopt, finished: bool) -> None:
    damage, rng = Damage(metaopt, finished), random.Random(0)
    named = [damage.check(flip(rng), rng.choice(damage.files)) for _ in range(30)]
    assert sum(map(bool, named)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("how", DAMAGE)
def test_files_that_are_broken(metaopt: Metaopt, finished: bool, how: str) -> None:
    damage = Damage(metaopt, finished)
    half = ([*DAMAGE].index(how) + finished) % 2  # each file in every way, finished or not
    for path in damage.files[half::2]:
        damage.check(DAMAGE[how], path)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_files_that_are_missing(metaopt: Metaopt, finished: bool) -> None:
    damage = Damage(metaopt, finished)
    result = damage.expected["resume=run",][2]["result.json"]
    for path in damage.files:
        damage.restore()
        path.unlink()
        for command in COMMANDS[:-1]:
            damage.outcome(command, path)
        with suppress(ConfigError):
            damage.loaded()
        damage.outcome(COMMANDS[-1], path)
        if path.name != "provenance.json":  # without it the overrides are forgotten
            assert Path("run/result.json").read_bytes() == result, path
