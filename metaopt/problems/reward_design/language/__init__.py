"""The language of rewards: weighted terms over an environment's variables, and nothing else.

    reward  = line, one or more
    line    = name ":=" weight "*" body, or a sum of terms without names
    body    = number | variable | body ("+" | "-" | "*") body | "-" body
            | function "(" body ("," body)* ")" | "(" body ")"

`parsing` reads lines and `python_rewards` a Python function, both through the whitelist of
`syntax`; `nodes` and `operators` are the trees, `expression` their sum.

Example:
    >>> reward = parse("gain := 500 * (energy2 - energy)\\ngoal := terminated",
    ...                ["energy", "energy2", "terminated"])
    >>> print(reward.text)
    gain := 500 * (energy2 - energy)
    goal := 1 * terminated
"""

from metaopt.problems.reward_design.language.errors import InvalidReward
from metaopt.problems.reward_design.language.expression import LIMIT, Expression, Term
from metaopt.problems.reward_design.language.parsing import parse
from metaopt.problems.reward_design.language.python_rewards import parse_python
from metaopt.problems.reward_design.language.syntax import MAX_DEPTH, MAX_NODES

__all__ = [
    "LIMIT", "MAX_DEPTH", "MAX_NODES", "Expression", "InvalidReward", "Term", "parse",
    "parse_python",
]  # fmt: skip
