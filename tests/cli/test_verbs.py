"""The table of commands and the console scripts made of it."""

from importlib.metadata import entry_points

import pytest

from metaopt import cli
from metaopt.cli.verbs import VERBS


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.script])
def test_a_script_is_found_again_after_its_module_is_imported(name):
    # A module of the script's name would take its place in the package once it is imported.
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == f"metaopt-{name}"]
    module = VERBS[name].function.partition(":")[0]
    __import__(module)
    assert callable(script.load())
    assert callable(getattr(cli, name))
