"""The examples in docstrings run and print what they say; the main classes have one."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import metaopt
from metaopt import estimators

PACKAGE = Path(metaopt.__file__).parent
NEED_FILES = {
    "metaopt.data.records:records",
    "metaopt.problems.meta_policy_optimization.text_policy.prompt_file:PromptFile",
    "metaopt.problems.template_evolution.judge:load_judge",
    "metaopt.trainers.attaching:attach",
}
DOCUMENTED = (
    *estimators.__all__, "Descent", "MirrorDescent", "Search", "Random", "Grid", "Schedule",
    "SGD", "Adam", "AdamW", "Engine",
)  # fmt: skip


def examples():
    """Yield (module:name, docstring) of what has an example, without importing the modules."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" not in text:
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                docstring = ast.get_docstring(node) or ""
                if ">>>" in docstring and f"{module}:{node.name}" not in NEED_FILES:
                    yield f"{module}:{node.name}", docstring


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda name: name.rpartition(":")[2])
def test_an_example_prints_what_it_says(name):
    names = dict(vars(importlib.import_module(name.partition(":")[0])))
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, 0)
    printed = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=printed.append)
    assert not printed, "".join(printed)


def test_the_main_classes_have_an_example():
    assert set(DOCUMENTED) <= {name.rpartition(":")[2] for name in EXAMPLES}
