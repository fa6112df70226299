"""DreamPRM's meta rows: a question with a whole response, and whether it is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import (
    flag,
    identifier,
    optional,
    others,
    text,
)
from metaopt.problems.process_reward.data.formats.dreamprm import own_id, own_image
from metaopt.problems.process_reward.data.formats.numbered import (
    bare,
    headings,
    same,
    with_headings,
)
from metaopt.problems.process_reward.data.formats.refusals import each

COLUMNS = ("id", "true_false", "input", "response", "image_path")
ANSWER = re.compile(r"^[ \t]*(?:[#>*_-]+[ \t]*)*final answer", re.MULTILINE | re.IGNORECASE)


def from_dreamprm_meta(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of DreamPRM's meta.json: an outcome, and no label of any step.

    `input` holds the question and the response, or the question alone where `response` is a column
    of its own. A step begins at a line "Step 1", "Step 2", ...; the line "Final answer" and what
    follows are no step. A row whose response is missing has no steps: in the released file 372 of
    500 are so, every one of the wrong chains among them, and `meta_set` refuses them.

    Raises:
        ValueError: says which column is malformed.
    """
    outcome = flag(row, "true_false")
    given = text(row, "input")
    apart = row.get("response") is not None
    whole = text(row, "response") if apart else given
    starts = headings(whole)
    end = len(whole)
    if starts:
        answer = ANSWER.search(whole, starts[-1])
        end = answer.start() if answer else end
    bounds = [*starts, end]
    split = [bare(whole[a:b]) for a, b in pairwise(bounds)]
    head, space = bare(whole[: bounds[0]])
    image = optional(row, "image_path")
    kept = {
        "id": row.get("id"),
        "head": [space, head if apart else "", apart],
        "spaces": [space for _, space in split],
        "tail": whole[end:],
        "columns": others(row, COLUMNS),
    }
    return Chain(
        given if apart else head,
        tuple(step for step, _ in split),
        outcome=outcome,
        qid=identifier(row),
        images=(image,) if image else (),
        extra={"dreamprm_meta": kept},
    )


def to_dreamprm_meta(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of DreamPRM's meta.json; steps of chains from elsewhere get "Step 1: ", ...

    Raises:
        ValueError: chains with an unknown outcome, with several images, or with a heading of a
            step in another text.
    """

    def row(chain: Chain) -> dict[str, Any]:
        if chain.outcome is None:
            raise ValueError("its outcome is unknown")
        kept = chain.extra.get("dreamprm_meta", {})
        count = len(chain.steps)
        steps = list(chain.steps)
        if len(kept.get("spaces", ())) != count or not kept:
            kept, steps = {}, with_headings(steps)
        spaces = kept.get("spaces", [["", "\n\n"]] * max(count - 1, 0) + [["", ""]] * min(count, 1))
        default = ["", "\n\n" if count else ""]
        (lead, trail), opening, apart = kept.get("head", [default, "", False])
        body = "".join(a + step + b for step, (a, b) in zip(steps, spaces, strict=True))
        whole = lead + (opening if apart else chain.prompt) + trail + body + kept.get("tail", "")
        said = {"input": chain.prompt, "response": whole} if apart else {"input": whole}
        own = {
            "id": own_id(chain, kept),
            "true_false": chain.outcome,
            "image_path": own_image(chain),
        }
        found = {**own, **said, **kept.get("columns", {})}
        same(from_dreamprm_meta(found), chain.prompt, steps)
        return found

    return each(chains, row)
