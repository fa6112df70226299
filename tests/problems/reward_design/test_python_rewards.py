"""Rewards as Python functions: read by the same whitelist, equal to what Python computes."""

import builtins
import math
import random

import pytest
import torch

from metaopt.engine.random import generator
from metaopt.problems.reward_design.language import InvalidReward, parse, parse_python

NAMES = ("p", "v", "energy", "energy2", "height", "terminated")
GAIN = '''
def reward(energy, energy2, height, terminated):
    """Energy gained (in J, a # is no comment here)."""
    gain = energy2 - energy  # per step
    height_ = 0.5 * clip(height, -1, 1)
    cost = -0.5
    shaped = 500 * gain - height_ + cost
    total = shaped + terminated
    return clip(total, -10, 10)
'''
FUNCTIONS = [
    GAIN,
    "def reward(p):\n    return p",
    "def reward(p, v): return max(p, v, 0) * sin(-p) - 2 * -abs(v)",
    "def reward(p, v):\n    a = p + p\n    b = a * a\n    return b + a + 3 * a",
    "def reward(p, v):\n    speed = abs(v)\n    return speed",
    "def reward(p, v):\n    term2 = abs(p)\n    return term2 + v",
    "def reward(p, v):\n    term2 = abs(p)\n    return p + v + term2 - 3 * term2",
]


def run(text, row):
    """What Python computes: the texts above are this file's own."""
    scope = {
        "sin": math.sin, "cos": math.cos, "square": lambda x: x * x,
        "clip": lambda x, low, high: min(max(x, low), high),
    }  # fmt: skip
    builtins.exec(text, scope)
    code = scope["reward"].__code__
    return scope["reward"](*(row[name] for name in code.co_varnames[: code.co_argcount]))


@pytest.mark.parametrize("text", FUNCTIONS)
def test_equals_what_python_computes(text):
    reward, draw = parse_python(text, NAMES), generator(0)
    assert parse(reward.text, NAMES) == reward
    values = {name: torch.randn(50, generator=draw, dtype=torch.float64) for name in NAMES}
    for i, number in enumerate(reward(values)):
        row = {name: float(numbers[i]) for name, numbers in values.items()}
        expected = min(max(run(text, row), -10.0), 10.0)
        assert float(number) == pytest.approx(expected, abs=1e-12)


def test_local_names_name_the_terms():
    assert parse_python(GAIN, NAMES).text == (
        "gain := 500 * (energy2 - energy)\n"
        "height := -0.5 * clip(height, -1, 1)\n"
        "cost := -0.5\n"
        "term4 := 1 * terminated"
    )


HOSTILE = {
    "import os\ndef reward(p): return p": "an import",
    "def reward(p):\n    import os\n    return p": "an import",
    "def reward(p):\n    return __import__('os').getpid()": "attribute access `.getpid`",
    "def reward(p):\n    return __import__('os')": "`__import__`",
    "def reward(p):\n    a = open('x')\n    return p": "call of `open`",
    "def reward(p):\n    return np.sin(p)": "attribute access `.sin`",
    "def reward(p):\n    return p ** 1000000000": "power operator",
    "def reward(p):\n    return " + "(" * 900 + "p" + ")" * 900: "brackets nested",
    "def reward(p):\n    return (lambda: p)()": "a lambda",
    "def reward(p):\n    a = [p for p in (1, 2)]\n    return p": "a comprehension",
    "def reward(p):\n    return (a := p)": "an assignment within an expression",
    "def reward(p):\n    return f'{p}'": "an f-string",
    "def reward(p):\n    return p * " + "9" * 300: "a number beyond",
    "def reward(р): return 1": "CYRILLIC SMALL LETTER ER",
    "def reward(p):\n    while True: pass": "a loop",
    "def reward(p):\n    if p: return 1\n    return 0": "a branch",
    "def reward(p):\n    p += 1\n    return p": "a name that has a value",
    "def reward(p):\n    global p\n    return p": "a global name",
    "def reward(p):\n    'a'\n    'b'\n    return p": "value is not used",
    "def reward(p):\n    return p\n    return p": "a return before the end",
    "def reward(p):\n    a: float = p\n    return a": "an assignment with a type",
    "def reward(p):\n    a = 1e9 * 1e9\n    return a * p": "a weight of 1e+18",
    "def reward(p):\n    def f(): pass\n    return p": "a function definition",
    "def reward(p):\n    a = b = p\n    return a": "one name on its left",
    "def reward(p):\n    a, b = p\n    return a": "one name on its left",
    "def reward(p):\n    a.b = p\n    return p": "one name on its left",
    "def reward(p):\n    a = p\n    a = a\n    return a": "is assigned",
    "def reward(p):\n    p = 1\n    return p": "is assigned",
    "def reward(p):\n    sin = p\n    return p": "is assigned",
    "def reward(p):\n    a__ = p\n    return p": "is assigned",
    "def reward(p):\n    a = a\n    return p": "`a` is no variable",
    "def reward(p):\n    return p + v": "`v` is no variable",
    "def reward(p):\n    return": "returns nothing",
    "def reward(p):\n    a = p": "returns nothing",
    "def reward(p):\n    'text'": "returns nothing",
    "def reward(p):\n    return clip()": "has 0 arguments",
    "def reward(p, p): return p": "named twice",
    "def reward(position): return 1": "`position` is no variable",
    "def reward(*p): return p": "plain arguments",
    "def reward(p=1): return p": "plain arguments",
    "def reward(p: float): return p": "plain arguments",
    "def reward(p) -> float: return p": "plain arguments",
    "@staticmethod\ndef reward(p): return p": "plain arguments",
    "def prize(p): return p": "plain arguments",
    "async def reward(p): return p": "a function definition",
    "class reward: pass": "a class",
    "p + v": "not one function",
    "def reward(p): return p\ndef reward(v): return v": "not one function",
    "def reward(p) return p": "expected",
    "def reward(p):\n" + "".join(
        f"    a{i} = {f'a{i - 1} + a{i - 1}' if i else 'p + p'}\n" for i in range(60)
    ) + "    return a59": "nodes; at most 60",
    "def reward(p):\n    a = 2 * p\n    b = " + " + ".join("a" * 14) + "\n    return " + (
        " + ".join("b" * 900)): "more than 60 terms",
    "def reward(p):\n    return b'x'": "a string of bytes",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_refuses_by_name(text):
    with pytest.raises(InvalidReward) as refused:
        parse_python(text, NAMES)
    assert HOSTILE[text] in str(refused.value)


@pytest.mark.slow
def test_mutations_are_rewards_or_refused():
    draw, legal = random.Random(0), 0
    pieces = ["(", ")", "**", "=", ".", "\n", "#", "'", "lambda ", "__", "9" * 50, "\t", "é", ":"]
    for number in range(1000):
        characters = list(FUNCTIONS[number % len(FUNCTIONS)])
        for _ in range(draw.randint(1, 2)):
            at = draw.randrange(len(characters) + 1)
            if draw.random() < 0.5:
                characters[at:at] = draw.choice(pieces)
            else:
                del characters[at : at + draw.randint(1, 4)]
        try:
            reward = parse_python("".join(characters), NAMES)
        except InvalidReward:
            continue
        legal += 1
        assert parse(reward.text, NAMES) == reward
    assert 50 < legal < 900
