"""Pairwise accuracy of any saved reward model, by section, as a command.

    python -m metaopt.problems.reward_model.bench MODEL DATA... [--json FILE]

MODEL is a folder or an id of the hub; DATA are what `metaopt.problems.reward_model.preferences`
reads: hh_harmless, pandalm, llmbar, files, data sets of the hub. RewardBench itself is
allenai/reward-bench with --split filtered. As there, equal rewards count as wrong; other figures of
metaopt count them half, and the column of ties says how far apart the two can be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaopt.data.records import column_names
from metaopt.metrics.binary import wilson
from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.model.scorer import Scorer, check_device
from metaopt.report.table import Table

COUNTS = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95,
        "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250,
        "xstest-should-respond": 154, "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164,
        "hep-python": 164, "hep-rust": 164,
    },
}  # fmt: skip
"""RewardBench's sections, their subsets, and the weight of each (mathematics as much as code)."""

SECTION = {subset: section for section, subsets in COUNTS.items() for subset in subsets}


@dataclass(frozen=True)
class Part:
    """How often a reward model is right in one part of the data.

    Args:
        name: of the subset, section or whole.
        accuracy: share of pairs whose chosen answer has the higher reward, in [0, 1]; equal rewards
            are wrong.
        low, high: its 95 % interval.
        pairs: number of pairs.
        ties: how many of them have equal rewards.
    """

    name: str
    accuracy: float
    low: float
    high: float
    pairs: int
    ties: int


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of a reward model.

    Args:
        subsets: parts as the data names them.
        sections: subsets of RewardBench in their sections, weighted as there; every other subset is
            a section of its own.
        mean: unweighted mean of the sections, RewardBench's score.
        pooled: all pairs alike.
    """

    subsets: tuple[Part, ...]
    sections: tuple[Part, ...]
    mean: Part
    pooled: Part


def evaluate(
    chosen: Sequence[float], rejected: Sequence[float], subsets: Sequence[str]
) -> Evaluation:
    """Return the accuracies of rewards.

    Intervals of a subset and of all pairs are Wilson's. Those of a weighted mean of parts p_k with
    intervals (l_k, u_k) reach sqrt(sum w_k^2 (p_k - l_k)^2) down and the like up, which keeps their
    asymmetry and is not empty where all pairs are right.

    Args:
        chosen, rejected: rewards of the answers, one per pair.
        subsets: of each pair.

    Raises:
        ValueError: lists that are empty or of different lengths, a reward that is not finite.

    References: Wilson, JASA 1927; Zou and Donner, Statistics in Medicine 2008; Lambert et al.,
    RewardBench, 2024.
    """
    if not len(chosen) == len(rejected) == len(subsets) > 0:
        raise ValueError(
            f"an evaluation needs one or more pairs with two rewards and a subset each; got "
            f"{len(chosen)}, {len(rejected)} and {len(subsets)}."
        )
    margins = np.subtract(chosen, rejected)
    wrong = np.flatnonzero(~np.isfinite(margins)).tolist()
    if wrong:
        raise ValueError(f"rewards must be finite; pairs {wrong[:20]} have others.")
    names = np.array(subsets)
    parts = [_part(name, margins[names == name]) for name in dict.fromkeys(subsets)]
    sections: dict[str, list[Part]] = {}
    for part in parts:
        sections.setdefault(SECTION.get(part.name, part.name), []).append(part)
    joined = [
        _weighted(name, members, [COUNTS.get(name, {}).get(p.name, p.pairs) for p in members])
        for name, members in sections.items()
    ]
    mean = _weighted("mean of sections", joined, [1] * len(joined))
    return Evaluation(tuple(parts), tuple(joined), mean, _part("all pairs", margins))


def table(evaluation: Evaluation) -> str:
    """Return the accuracies as lines of text."""
    rows = [
        [p.name, f"{p.accuracy:.4f}", f"[{p.low:.4f}, {p.high:.4f}]", str(p.pairs), str(p.ties)]
        for p in (*evaluation.sections, evaluation.mean, evaluation.pooled)
    ]
    return Table(["section", "accuracy", "95 % interval", "pairs", "ties"], rows).text()


def main(arguments: Sequence[str] | None = None) -> None:
    """Score pairs by a saved reward model and print its accuracies; see `--help`."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        check_device(given.device)
        if given.json is not None:
            _check_file(given.json)
        data = preferences(
            given.data,
            column_names(given.columns),
            given.split,
            given.subset,
            malformed="report",
        )
        score = Scorer(given.model, given.batch, given.max_length, given.device)
        texts = [text for pair in data.pairs for text in score.texts(pair, given.chat)]
        rewards = score(texts, given.chat)
        names = [pair.section for pair in data.pairs]
        evaluation = evaluate(rewards[::2], rewards[1::2], names)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(
        data.report(), f"{score.cut} of {len(texts)} texts were cut.", table(evaluation), sep="\n"
    )
    if given.json is not None:
        report = {
            "model": given.model,
            "data": given.data,
            "data_ties": len(data.ties),
            "malformed": len(data.malformed),
            "cut": score.cut,
            **asdict(evaluation),
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaopt.problems.reward_model.bench",
        description="Pairwise accuracy of a saved reward model, by section.",
    )
    parser.add_argument("model", help="folder, or id of the hub")
    parser.add_argument("data", nargs="+", help="hh_harmless, pandalm, llmbar, a file, owner/name")
    parser.add_argument("--split", default="train", help="part of a data set of the hub")
    parser.add_argument("--subset", help="configuration of a data set of the hub")
    parser.add_argument(
        "--columns", nargs="+", metavar="COLUMN=NAME", default=[],
        help="names in the data, such as chosen=better section=part",
    )  # fmt: skip
    parser.add_argument("--chat", action="store_true", help="use the tokenizer's chat template")
    parser.add_argument("--batch", type=int, default=8, help="texts scored at once")
    parser.add_argument("--max-length", type=int, help="most tokens of a text")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--json", type=Path, help="file to write the accuracies to")
    return parser


def _check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before hours of scoring."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(
            f"--json {path} cannot be written; name a file in a folder that is there and yours."
        )


def _part(name: str, margins: NDArray[np.float64]) -> Part:
    share = float(np.mean(margins > 0))
    low, high = map(float, wilson(share, len(margins)))
    return Part(name, share, low, high, len(margins), int(np.sum(margins == 0)))


def _weighted(name: str, parts: Sequence[Part], weights: Sequence[float]) -> Part:
    total = sum(weights)
    shares = [(weight / total, part) for weight, part in zip(weights, parts, strict=True)]
    mean = sum(w * part.accuracy for w, part in shares)
    down = math.hypot(*(w * (part.accuracy - part.low) for w, part in shares))
    up = math.hypot(*(w * (part.high - part.accuracy) for w, part in shares))
    pairs, ties = sum(part.pairs for part in parts), sum(part.ties for part in parts)
    return Part(name, mean, max(0.0, mean - down), min(1.0, mean + up), pairs, ties)


if __name__ == "__main__":
    main(sys.argv[1:])
