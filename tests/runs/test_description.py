"""A run started from Python is remade from its folder: every argument is kept under its name."""

import inspect

import pytest

from metaopt import estimators, optimizers
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import ConjugateGradient, Implicit, Nystrom, ScoreFunction
from metaopt.problems import examples
from metaopt.runs.description import from_config, to_config

CLASSES = [
    kind
    for module in (estimators, optimizers)
    for kind in (getattr(module, name) for name in module.__all__)
    if inspect.isclass(kind)
    and not inspect.isabstract(kind)
    and not getattr(kind, "_is_protocol", False)
]


def needed(kind):
    """Return the arguments without a default."""
    parameters = inspect.signature(kind).parameters.values()
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


PROBLEMS = [getattr(examples, name) for name in examples.__all__]


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_a_problem_is_remade_with_what_it_was_given(kind):
    first = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
    changed = {"noise": 0.25, "spread": 2.0, "seed": 5, "inner_optimizer": SGD(lr=0.15)}
    node = to_config(kind(**{k: v for k, v in changed.items() if k in first}))
    assert "_missing_" not in node
    assert {k: node[k] for k in changed if k in first} == {
        k: to_config(v) for k, v in changed.items() if k in first
    }
    assert to_config(from_config(node, "it")) == node


DEFAULT = [kind for kind in CLASSES if not needed(kind)]


@pytest.mark.parametrize("kind", DEFAULT, ids=lambda kind: kind.__name__)
def test_what_is_made_by_defaults_is_remade(kind):
    node = to_config(kind())
    assert "_missing_" not in node
    assert to_config(from_config(node, "it")) == node


@pytest.mark.parametrize(
    "value",
    [
        ScoreFunction(reversed=True, clip=2.0, weight=0.5),
        Implicit(ConjugateGradient(7, preconditioner=Nystrom(rank=3)), 4, any_start=True),
    ],
    ids=["score function", "implicit"],
)
def test_arguments_that_differ_are_told_apart(value):
    node = to_config(value)
    assert to_config(from_config(node, "it")) == node != to_config(type(value)())


def test_most_classes_are_made_by_defaults():
    assert len(DEFAULT) > 15
