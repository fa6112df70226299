"""The programs and the notebook in examples/ run and do what they say."""

from __future__ import annotations

import json
import re
import runpy
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_has_a_test():
    programs = {path.stem for path in EXAMPLES.glob("*.py")}
    assert programs == {
        "black_box", "curated_sft", "few_shot_sinusoids", "hyperparameters", "noisy_labels",
    }  # fmt: skip
    assert [path.stem for path in EXAMPLES.glob("*.ipynb")] == ["first_steps"]


@pytest.mark.slow
def test_learned_penalties_beat_fixed_ones(capsys):
    train = main("hyperparameters")
    fixed, learned = train(outer_steps=150, lr=0.0), train(outer_steps=150)
    assert learned[0] < fixed[0] - 0.05
    assert learned[1] > fixed[1]


@pytest.mark.parametrize("name", ["unroll", "implicit", "one_step", "finite_difference"])
def test_each_estimator_finds_mislabelled_examples(name):
    assert main("noisy_labels")(name, outer_steps=40) > 0.75


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_learned_weights_beat_uniform_ones_in_trl(metaopt, monkeypatch, tmp_path):
    pytest.importorskip("trl")
    program = runpy.run_path(str(EXAMPLES / "curated_sft.py"))
    monkeypatch.chdir(tmp_path)
    program["write"]()
    command = re.search(r"metaopt (problem=.*?)\n    python", program["__doc__"], re.DOTALL)[1]
    done = metaopt(*command.replace("\\\n", " ").split())
    assert done.code == 0, done.err
    weights = "runs/curation/weights.parquet"
    assert program["train"](weights) < program["train"]() - 0.1
    lines = (EXAMPLES / "curated_sft.py").read_text().split("that the docs show.\n")[1]
    shown = textwrap.dedent(lines.split("    return")[0])
    assert shown in (EXAMPLES.parent / "docs/data_curation.md").read_text()


def test_search_finds_a_better_network():
    first, best, value = main("black_box")(outer_steps=12)
    assert value < first - 0.05
    assert best["layers"] > 0


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the outputs before a commit"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    errors = {row.estimator: row.error for row in names["rows"]}
    assert "cosine" in capsys.readouterr().out
    assert errors["implicit"] < errors["one_step"]
