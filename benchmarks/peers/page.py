"""The table of the peers, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.measure import TOLERANCE, TURNS
from benchmarks.peers.peer import load

TEMPLATE = Path(__file__).with_name("page.md")


def page(results: Mapping[str, Mapping[str, Any]], origin: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        results: by peer, what `measure` found, or the `error` that kept it from running.
        origin: commit, Python, hardware and date.
    """
    table = [
        "| library | case | size | metaopt, ms | library, ms | ratio | quartiles | differs by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reasons: list[str] = []
    for name, result in results.items():
        table += lines(name, result, reasons)
    if reasons:
        table += ["", *(f"{i}. {reason}." for i, reason in enumerate(reasons, 1))]
    where = [environment(name, result) for name, result in results.items()]
    where += [f"- {key}: {value}" for key, value in origin.items()]
    return TEMPLATE.read_text().format(
        tolerance=TOLERANCE, turns=TURNS, table="\n".join(table), origin="\n".join(where)
    )


def lines(name: str, result: Mapping[str, Any], reasons: list[str]) -> list[str]:
    """Return a peer's lines of the table, and add to `reasons` what they refer to."""
    peer = load(name)
    if "error" in result:
        return [f"| {peer.title} | not run: {cell(result['error'])} | | | | | | |"]
    made = []
    for row in result["rows"]:
        start = f"| {peer.title} | {row['case']} | {row['size']} "
        if "error" in row:
            made.append(f"{start}| failed: {cell(row['error'])} | | | | |")
        elif "ratio" not in row:
            reason = peer.differs.get(row["case"], "the reason is not known")
            if reason not in reasons:
                reasons.append(reason)
            number = reasons.index(reason) + 1
            made.append(f"{start}| not timed, see {number} | | | | {row['difference']:.1e} |")
        else:
            made.append(
                f"{start}| {row['metaopt_ms']:.2f} | {row['peer_ms']:.2f} | {row['ratio']:.2f} "
                f"| {row['low']:.2f} to {row['high']:.2f} | {row['difference']:.0e} |"
            )
    return made


def environment(name: str, result: Mapping[str, Any]) -> str:
    """Return a line on what a peer ran with."""
    if "error" in result:
        return f"- {load(name).title}: {', '.join(load(name).requirements)}"
    packages = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    before, after = result["load"]
    return f"- {load(name).title}: {packages}; load {before:.1f} before, {after:.1f} after"


def cell(text: str) -> str:
    """Return a text that a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")
