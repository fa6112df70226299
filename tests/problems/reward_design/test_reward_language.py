"""The reward language: what it reads, how it prints, what it refuses, and its values."""

import ast
import math
import random
from pathlib import Path

import pytest
import torch

import metaopt.problems.reward_design
from metaopt.engine.random import generator
from metaopt.problems.reward_design.language import InvalidReward, parse

NAMES = ("p", "v", "p2", "v2", "energy", "energy2", "terminated", "action")
PACKAGE = Path(metaopt.problems.reward_design.__file__).parent

TEXTS = [
    "p",
    "-p",
    "+ 0.5 * p",
    "-0.5",
    "cost := -0.5\ngoal := terminated",
    "gain := 500 * (energy2 - energy)",
    "gain := 500 * (energy2 - energy)  # energy gained",
    "p - (v - p2) + v2",
    "t := p - (v - p2) + v2",
    "t := p * (v * p2) * v2",
    "t := p + (v + p2)",
    "t := 2 * 3 * p",
    "t := -(3 * p) * v",
    "t := 2 * -(-(p * -v))",
    "t := 2 * 3",
    "t := -p * v",
    "t := -(p + v) * -(2)",
    "t := sin(-v) - -0.5 * cos(3 * p)",
    "t := 1e-05 * square(p) - -(v)",
    "t := 1e3 * clip(p, -1.2, 0.6) + min(p, v, p2) * max(abs(p), v)",
    "t := clip(p, v, v2)",
    "t := - - p",
    "\n\n a := p\n\n  b := v\n",
    "500 * (p2 - p)\n+ 1 * terminated\n- 0.5",
]


def scalar(node, values):
    """Value of an expression by Python's own numbers, from Python's own tree."""
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        return (
            -scalar(node.operand, values)
            if isinstance(node.op, ast.USub)
            else scalar(node.operand, values)
        )
    if isinstance(node, ast.BinOp):
        left, right = scalar(node.left, values), scalar(node.right, values)
        kind = type(node.op)
        return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[kind]
    arguments = [scalar(argument, values) for argument in node.args]
    return {
        "min": min, "max": max, "abs": abs, "square": lambda x: x * x,
        "clip": lambda x, low, high: min(max(x, low), high), "sin": math.sin, "cos": math.cos,
    }[node.func.id](*arguments)  # fmt: skip


def reward_by_scalars(text, values):
    """Sum of the lines, clipped: shares no code with the language."""
    total = 0.0
    for line in text.split("\n"):
        body = line.partition("#")[0].split(":=")[-1].strip()
        if body:
            total += scalar(ast.parse(body, mode="eval").body, values)
    return min(max(total, -10.0), 10.0)


def batch(names=NAMES, shape=(3, 4), dtype=torch.float64):
    draw = generator(1)
    return {name: torch.randn(shape, generator=draw, dtype=dtype) for name in names}


@pytest.mark.parametrize("text", TEXTS)
def test_prints_and_parses_to_the_same_tree(text):
    reward = parse(text, NAMES)
    again = parse(reward.text, NAMES)
    assert again == reward
    assert again.text == reward.text


@pytest.mark.parametrize("text", TEXTS)
def test_batches_equal_a_scalar_loop(text):
    values, reward = batch(), parse(text, NAMES)
    rewards = reward(values)
    assert rewards.shape == (3, 4)
    for r in range(3):
        for e in range(4):
            row = {name: float(numbers[r, e]) for name, numbers in values.items()}
            assert float(rewards[r, e]) == pytest.approx(reward_by_scalars(text, row), abs=1e-12)


def test_terms_have_names_and_weights():
    reward = parse("gain := -500 * (energy2 - energy)\n2 * p * v - sin(p)", NAMES)
    assert [(term.name, term.weight, str(term.body)) for term in reward.terms] == [
        ("gain", -500.0, "energy2 - energy"),
        ("term2", 2.0, "p * v"),
        ("term3", -1.0, "sin(p)"),
    ]
    assert reward.names == {"energy", "energy2", "p", "v"}
    values = batch()
    parts = reward.term_values(values)
    assert list(parts) == ["gain", "term2", "term3"]
    assert torch.equal(parts["term2"], 2 * (values["p"] * values["v"]))


def test_clips_the_sum_and_keeps_the_dtype():
    values = batch(dtype=torch.float32)
    rewards = parse("a := 1000 * p\nb := -999 * p", NAMES)(values)
    assert rewards.dtype == torch.float32
    assert torch.allclose(rewards, values["p"], atol=1e-6)
    assert float(parse("1000 * square(p) + 11", NAMES)(values).min()) == 10.0


def test_single_precision_does_not_overflow():
    values = {"p": torch.full((1, 2), 1000.0)}
    rewards = parse("t := sin(square(square(square(1000 * p))))", NAMES)(values)
    assert rewards.isfinite().all()


HOSTILE = {
    "__import__('os').system('id')": "attribute access `.system`",
    "__import__('os')": "double-underscore name `__import__`",
    "p.__class__": "attribute access `.__class__`",
    "().__class__.__bases__": "attribute access",
    "import os": "an import",
    "from os import path": "an import",
    "open(p)": "call of `open`",
    "eval(p)": "call of `eval`",
    "sin(p)(v)": "Python's Call",
    "p ** 1000000000": "the power operator",
    "9 ** 9 ** 9": "the power operator",
    "(" * 10_000 + "p" + ")" * 10_000: "characters",
    "(" * 1_000 + "p" + ")" * 1_000: "brackets nested",
    "-" * 3_900 + "p * (" + "v)": "nested too deeply",
    "p * (" + "-" * 3_900 + "v)": "nested too deeply",
    "sin(" * 8 + "p" + ")" * 8: "nested too deeply",
    "t := " + " + ".join(["p"] * 200): "nested too deeply",
    " + ".join(["p * v"] * 30): "at most 60",
    "lambda: p": "a lambda",
    "[p for p in v]": "a comprehension",
    "sum(p for p in v)": "call of `sum`",
    "sin(p for p in v)": "a comprehension",
    "t := (p := v)": "an assignment within an expression",
    "f'{p}'": "an f-string",
    "t := 'p'": "a string",
    "b'" + "p" * 3000 + "' * p": "a string of bytes",
    "\n".join(["a:=p"] * 700): "more than 60 terms",
    "+p" * 1900: "more than 60 terms",
    "p[0]": "indexing",
    "p if v else p2": "a conditional expression",
    "p and v": "a logical operator",
    "not p": "a logical operator",
    "p > v": "a comparison",
    "p / v": "division",
    "p, v": "a tuple",
    "sin(*p)": "a starred argument",
    "sin(x=p)": "keyword",
    "sin(p, v)": "has 2 arguments; legal is 1",
    "t = p": "an assignment",
    "del p": "Python's Delete",
    "p; v": "one term",
    "True * p": "the constant True",
    "1j * p": "the constant 1j",
    "... * p": "the constant Ellipsis",
    "9" * 400 + " * p": "a number beyond",
    "9" * 3_999: "a number beyond",
    "1e999 * p": "a number beyond",
    "t := 1e9 * 1e9 * p": "a weight of 1e+18",
    "p // 2": "division",
    "p % 2": "the remainder",
    "~p": "the operator ~",
    "square(square(square(square(square(1e12)))))": "not finite",
    "р := 1": "CYRILLIC SMALL LETTER ER",
    "ｐ": "FULLWIDTH LATIN SMALL LETTER P",
    "p\u200b": "ZERO WIDTH SPACE",
    "p\x00": "control character",
    "p × v": "MULTIPLICATION SIGN",
    "q": "`q` is no variable",
    "positon": "is no variable",
    "sin": "is a function",
    "clip(p, 1, -1)": "lower one first",
    "p +": "invalid syntax",
    "p v": "invalid syntax",
    "1if p else v": "a conditional expression",
    "a := p\na := v": "is not legal",
    "a__b := p": "is not legal",
    "def := p": "keywords",
    "": "empty",
    "# p": "empty",
    "p\\\n+ v": "unexpected EOF",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_refuses_by_name(text):
    with pytest.raises(InvalidReward) as refused:
        parse(text, NAMES)
    message = str(refused.value)
    assert HOSTILE[text] in message
    assert message.startswith("Reward")
    assert len(message) < 400


def test_an_error_says_where():
    with pytest.raises(InvalidReward, match=r"line 2, column 12: .*no variable.*mean `energy`"):
        parse("a := p\n  b := 2 * enrgy", NAMES)


def mutated(text, draw):
    """The text with a few characters replaced, doubled, dropped or moved."""
    characters = list(text)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(characters) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            characters[at:at] = draw.choice(
                ["(", ")", "*", "**", ":=", "=", ".", "\n", "#", "'", "lambda ", "__", "9" * 50,
                 "[", "for", "é", "\\", "\t", "@", "{", "e", ";", "if "]
            )  # fmt: skip
        elif kind == 1:
            del characters[at : at + draw.randint(1, 4)]
        elif kind == 2:
            characters[at:at] = characters[: draw.randint(0, 30)]
        else:
            characters[at : at + 1] = chr(draw.randrange(0, 0x2FF))
    return "".join(characters)


@pytest.mark.slow
def test_mutations_are_rewards_or_refused():
    draw, legal = random.Random(0), 0
    for number in range(1000):
        text = mutated(TEXTS[number % len(TEXTS)], draw)
        try:
            reward = parse(text, NAMES)
        except InvalidReward:
            continue
        legal += 1
        assert parse(reward.text, NAMES) == reward
    assert 50 < legal < 900


def test_the_package_runs_no_text():
    paths = list(PACKAGE.rglob("*.py"))
    assert len(paths) > 5
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                whole = ast.unparse(node)
                assert whole == "re.compile" or name not in {
                    "eval", "exec", "compile", "__import__", "import_module", "literal_eval",
                }, f"{path} line {node.lineno}"  # fmt: skip
