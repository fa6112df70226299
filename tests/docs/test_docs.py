"""Every command and snippet of the docs and the README runs, in a folder with the samples.

Blocks marked `sh` and `python` run in their order; those with a `title` are written as files; those
marked `console` need what a test has not: a server, a GPU, a fresh clone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "([^":]+):(\d+):(\d+)"$', re.MULTILINE)
TINY = ("debug=tiny", "figures=false")
SCRIPTS = {p.name: p for p in entry_points(group="console_scripts") if p.name.startswith("metaopt")}


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page):
    return [Block(*match) for match in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(text):
    """Yield the words of each command of a block, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def run(words, monkeypatch, capsys):
    """Run a command of metaopt in this process, short; return its exit status and its errors."""
    script, *arguments = words
    runs = script == "metaopt" and any(a.startswith(("problem=", "experiment=")) for a in arguments)
    kept = any(a.startswith("hydra.run.dir=") for a in arguments)  # its products are used
    small = [*arguments, *(TINY[:1] if kept else TINY)] if runs else arguments
    if "-m" in arguments:
        small = [*arguments, *TINY, "seed=0"]
    monkeypatch.setattr(sys, "argv", [script, *small])
    try:
        status = SCRIPTS[script].load()()
    except SystemExit as stop:
        status = stop.code
    return int(status or 0), capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:train")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch, capsys):
    for sample in (DOCS / "samples").iterdir():
        shutil.copy(sample, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page):
        if block.title and not SNIPPET.search(block.text):
            path = tmp_path / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}: {block.text[:40]}", "exec"), names)
        elif block.language == "sh":
            for words in commands(block.text):
                status, err = run(words, monkeypatch, capsys)
                assert status == 0, f"{shlex.join(words)}\n{err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_shows_samples_and_commands_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for name, first, last in SNIPPET.findall(text):
        lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) >= int(last) > int(first) > 0
    languages = {block.language for block in blocks(page)}
    assert languages <= {"sh", "console", "python", "yaml", "json", "text"}
    assert text.count("\n```") == 2 * len(blocks(page)), "a block that this test does not see"
    shown = {w[0] for b in blocks(page) if b.language == "sh" for w in commands(b.text)}
    assert shown <= set(SCRIPTS)
