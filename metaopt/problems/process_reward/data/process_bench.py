"""Nine domains of human step labels, steered and tested on GSM8K solutions of four systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaopt.data.final_answers import final_answer
from metaopt.data.folder import find_data
from metaopt.data.solutions import solutions as recorded_solutions
from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.formats import Chain, read
from metaopt.problems.process_reward.data.meta_set import meta_set, question_key

SOURCES = ("bigbench_mistake", "processbench")
ORIGINS = {
    "bigbench_mistake": "https://github.com/WHGTyen/BIG-Bench-Mistake",
    "processbench": "https://huggingface.co/datasets/Qwen/ProcessBench",
}


def process_bench(
    source: str | None = None,
    solutions: str | None = None,
    domains: Sequence[str] | None = None,
    held_out_share: float = 0.3,
    meta_share: float = 0.4,
    meta_size: int | None = None,
    limit: int | None = None,
    questions: int | None = None,
    seed: int = 0,
) -> ProcessData:
    """Return chains with a human label of the first wrong step, and GSM8K for outcomes.

    Training domains are the five of BIG-Bench-Mistake (Tyen et al., Findings of ACL 2024) and the
    four of ProcessBench (Zheng et al., ACL 2025); a part of each domain's questions is held out for
    the detection of first errors. The meta-set and the test are recorded solutions of GSM8K's test
    questions (Cobbe et al., 2021), which four systems have answered: the meta-set has chains of one
    part of the questions, half of them right; the other part is answered by the best of four.
    Questions that a domain asks (375 in ProcessBench's gsm8k) are in neither, also where that
    domain is not trained on, so that the test is the same for every choice of domains.

    Args:
        source: a folder with the folders bigbench_mistake/ and processbench/; `None` is
            the data folder.
        solutions: as for `gsm8k_solutions`; any file of questions with equally many responses.
        domains: names of the training domains (the files' names); `None` is all of them.
        held_out_share: of each domain's questions, in [0, 1).
        meta_share: of the questions with solutions, strictly between 0 and 1.
        meta_size: chains of the meta-set, even; `None` is the most that balance allows.
        limit: most training chains and most held-out chains of each domain; `None` is all.
        questions: most test questions, >= 1; `None` is all that the meta-set leaves.
        seed: of the choice of questions, and of chains where there is a limit.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: an argument out of its range, an unknown domain, or malformed rows.

    Cost: about two seconds.
    """
    shares = 0 <= held_out_share < 1 and 0 < meta_share < 1
    if not shares or any(most is not None and most < 1 for most in (limit, questions)):
        raise ValueError(
            f"process_bench needs 0 <= held_out_share < 1, 0 < meta_share < 1, limit >= 1 and "
            f"questions >= 1; got held_out_share={held_out_share}, meta_share={meta_share}, "
            f"limit={limit}, questions={questions}."
        )
    by_domain = _sources(source)
    train: list[Chain] = []
    held_out: dict[str, list[Chain]] = {}
    for name in _chosen(domains, sorted(by_domain)):
        draw = np.random.default_rng([seed, *name.encode()])
        training, out = _split(by_domain[name], held_out_share, draw)
        train += training[:limit]
        if out:
            held_out[name] = out[:limit]
    asked = {question_key(chain.prompt) for chains in by_domain.values() for chain in chains}
    draw = np.random.default_rng(seed)
    meta, tests = _outcomes(gsm8k_solutions(solutions), asked, meta_share, draw)
    candidates = tests[:questions]
    return ProcessData(
        train=train,
        meta=meta_set(meta, [chain for row in candidates for chain in row], meta_size, seed),
        candidates=candidates,
        held_out=held_out,
        answers=[[final_answer("\n".join(c.steps)) for c in row] for row in candidates],
        resplit=max(
            (1 - meta_share) / meta_share * len(candidates) / len(tests),
            held_out_share / (1 - held_out_share),
        ),
    )


def _sources(source: str | None) -> dict[str, list[Chain]]:
    """Return the chains of each domain, by name."""
    by_domain: dict[str, list[Chain]] = {}
    for folder in SOURCES:
        if source is None:
            path = find_data(folder, folder)
        else:
            path = Path(source).expanduser() / folder
            if not path.is_dir():
                raise FileNotFoundError(
                    f"there is no folder {folder} in problem.data.source={source}. Get it from "
                    f"{ORIGINS[folder]}."
                )
        for chain in read(path):
            by_domain.setdefault(chain.domain, []).append(chain)
    return by_domain


def gsm8k_solutions(source: str | None = None) -> list[Chain]:
    """Return the recorded solutions as chains: steps are lines, and only the outcome is known.

    Chains of one question share `qid`, its index; `policy` is the system that wrote them (four in
    the published file: Cobbe et al., 2021). The last line holds the answer.

    Args:
        source: as for `metaopt.data.solutions.solutions`, which leaves out responses of unknown
            outcome; `None` is gsm8k/example_model_solutions.jsonl in the data folder.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows, listed with file and line; or no row with an outcome.
    """
    recorded = recorded_solutions(source)
    return [
        Chain(
            recorded.queries[row.query],
            tuple(line for line in row.response.split("\n") if line.strip()),
            outcome=row.outcome,
            qid=str(row.query),
            domain="gsm8k_solutions",
            policy=row.system,
        )
        for row in recorded.rows
    ]


def _chosen(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the domains to train on, sorted."""
    unknown = sorted(set(names or ()) - set(known))
    if unknown or (names is not None and not names):
        raise ValueError(
            f"domains must be of {', '.join(known)}; got {', '.join(unknown) or 'none'}."
        )
    return sorted(set(known if names is None else names))


def _split(
    chains: Sequence[Chain], share: float, draw: np.random.Generator
) -> tuple[list[Chain], list[Chain]]:
    """Return training and held-out chains, in random order; a question's chains stay together."""
    order = [chains[i] for i in draw.permutation(len(chains))]
    keys = list(dict.fromkeys(question_key(chain.prompt) for chain in order))
    out = set(keys[: round(share * len(keys))])
    parts: tuple[list[Chain], list[Chain]] = ([], [])
    for chain in order:
        parts[question_key(chain.prompt) in out].append(chain)
    return parts


def _outcomes(
    chains: Sequence[Chain], asked: set[str], share: float, draw: np.random.Generator
) -> tuple[list[Chain], list[list[Chain]]]:
    """Return chains for the meta-set, and the candidates of each test question."""
    rows: dict[str, list[Chain]] = {}
    for chain in chains:
        rows.setdefault(question_key(chain.prompt), []).append(chain)
    free = [row for key, row in rows.items() if key not in asked]
    if len(free) < 2:
        raise ValueError(
            f"{len(free)} of {len(rows)} questions with solutions are asked by no domain; the "
            f"meta-set and the test need one at least each."
        )
    order = [free[i] for i in draw.permutation(len(free))]
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return [chain for row in order[:count] for chain in row], order[count:]
