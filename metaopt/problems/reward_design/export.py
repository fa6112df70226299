"""A delivered reward as files: its text, and a Python function that needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaopt.files.writing import write_text
from metaopt.problems.reward_design.language import LIMIT, Expression
from metaopt.problems.reward_design.language.nodes import variables_of
from metaopt.problems.reward_design.language.operators import FUNCTIONS
from metaopt.problems.reward_design.variables import Variables

TEXT, PYTHON = "reward.txt", "reward.py"
"""Names of the files."""

_HEAD = '''"""A reward of one step, from -{limit:g} to {limit:g}; needs nothing but Python.

{lines}

`step_reward` takes what an environment gives, one step at a time. Its variables:

{variables}
"""

from math import cos, sin


def square(x):
    """Return x^2."""
    return x * x


def clip(x, low, high):
    """Return x, but at least `low` and at most `high`."""
    return min(max(x, low), high)


'''
_STEP = '''

def step_reward(observation, action, next_observation, terminated):
    """Return the reward of a step.

    Args:
        observation, next_observation: {count} numbers before and after the step, as the
            environment gives them.
        action: {action}.
        terminated: whether the task ended in this step; false where a time limit cut the episode.
    """
{body}
    return clip(reward({arguments}), -{limit:g}, {limit:g})
'''


def write_reward(reward: Expression, variables: Variables, folder: Path) -> tuple[Path, Path]:
    """Write `reward.txt`, which `parse` reads, and `reward.py`; return their paths.

    Args:
        reward: what is delivered.
        variables: of the environment that it is for.
        folder: where; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, python = folder / TEXT, folder / PYTHON
    write_text(text, reward.text + "\n")
    write_text(python, python_source(reward, variables))
    return text, python


def python_source(reward: Expression, variables: Variables) -> str:
    """Return the text of a module with `step_reward`, one step's reward as a number.

    It calls `reward`, a function of the variables that `parse_python` reads. The values are those
    of the reward in double precision, up to the rounding of sine and cosine.
    """
    listed = [name for name in variables.names if name in reward.names]
    head = _HEAD.format(
        limit=LIMIT,
        lines="\n".join(f"    {line}" for line in reward.text.split("\n")),
        variables="\n".join(f"    {name}: {variables.names[name]}" for name in listed)
        or "    none",
    )
    step = _STEP.format(
        count=len(variables.observations), action=variables.action, limit=LIMIT,
        body="\n".join(f"    {line}" for line in _values(reward, variables)),
        arguments=", ".join(listed),
    )  # fmt: skip
    return head + function_source(reward, listed) + step


def function_source(reward: Expression, listed: Sequence[str]) -> str:
    """Return the Python function of a reward of the listed variables, not clipped."""
    lines: list[str] = []
    locals_: list[str] = []
    for term in reward.terms:
        name, _, product = term.text.partition(" := ")
        while name in (*listed, *FUNCTIONS, *locals_):  # Python has one space of names
            name += "_"
        locals_.append(name)
        lines.append(f"    {name} = {product}")
    head = f"def reward({', '.join(listed)}):\n" + '    """Return the sum of the terms."""'
    return "\n".join([head, *lines, f"    return {' + '.join(locals_)}"]) + "\n"


def _values(reward: Expression, variables: Variables) -> list[str]:
    """Return the lines that compute what a reward reads, and no more."""
    lines = []
    formulas = {name: tree for name, tree in variables.formulas.items() if name in reward.names}
    read = reward.names.union(*(variables_of(tree) for tree in formulas.values()))
    for end, array in enumerate(("observation", "next_observation")):
        names = [quantity.at(bool(end)) for quantity in variables.observations]
        lines += [f"{name} = float({array}[{i}])" for i, name in enumerate(names) if name in read]
    lines += [f"{name} = {tree}" for name, tree in formulas.items()]
    if "terminated" in read:
        lines.append("terminated = float(terminated)")
    for i, name in enumerate(variables.action_names):
        if name in read:
            index = f"[{i}]" if variables.action_size else ""
            lines.append(f"{name} = float(action{index})")
    return lines
