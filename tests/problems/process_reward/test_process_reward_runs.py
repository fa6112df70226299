"""Runs that end with a process reward model in a folder, and labels that become training data."""

from __future__ import annotations

import functools
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from published_rows import ROWS

from metaopt.cli.labelling import main as label
from metaopt.engine.random import generator
from metaopt.problems.process_reward import ProcessSupervision
from metaopt.problems.process_reward.data.arithmetic import arithmetic
from metaopt.problems.process_reward.data.formats import FORMATS
from metaopt.problems.process_reward.data.process_files import process_files
from metaopt.problems.process_reward.model.export import load
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.steps import scores

RUN = ("problem=domain_reweighting", "debug=tiny", "hydra.run.dir=run")
SMALL = (
    "problem.task.data.domains=[clean,inverted]",  # each has three panels in a figure
    "problem.task.data.chains=40", "problem.task.data.meta_size=20",
    "problem.task.data.questions=4", "problem.task.data.candidates=4",
    "problem.task.data.held_out=20",
)  # fmt: skip
FILES = ("data@problem.task.data=process_reward/process_files", "problem.batch=4")
NETWORK = tuple(
    f"problem.task.scorer.source.{size}"
    for size in (
        "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2",
        "num_key_value_heads=2", "intermediate_size=16",
    )
)  # fmt: skip
FEATURES = (
    "model@problem.task.scorer=process_reward/prm_features", "problem.task.scorer.size=4",
    "problem.task.scorer.widths=[4]",
)  # fmt: skip


LABELLED = [name for name, form in FORMATS.items() if form.labels]


def by_transformers(folder, prompt, steps):
    """Scores of a chain by the program on the model's card, which imports transformers alone."""
    page = (folder / "README.md").read_text()
    program = page.split("```python\n")[1].split("\n# the same")[0]
    names = {"FOLDER": folder, "PROMPT": prompt, "STEPS": steps}
    with torch.no_grad():
        exec(program, names)
    return names["log_odds"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reweighted", "uniform", "rows"])
def test_a_run_writes_its_model_which_transformers_loads(metaopt, tmp_path, method):
    done = metaopt(*RUN, *SMALL, *NETWORK, f"method=domain_reweighting/{method}")
    assert done.code == 0, done.err
    assert "process reward model: run/process_reward_model, read back" in done.out
    folder = tmp_path / "run" / "process_reward_model"
    page = (folder / "README.md").read_text()
    assert "80 chains with step labels of 2 domains, weighted by a meta-set of 20 chains" in page
    assert "| best_of_4 |" in page
    assert "| clean | " in page
    scorer, tensors = load(folder)
    data = arithmetic(
        ("clean", "inverted"), chains=40, meta_size=20, questions=4, candidates=4, held_out=20
    )
    chains = [chain for row in data.candidates for chain in row][:6]
    steps = scorer.encode(chains)
    expected = scores(scorer, tensors, steps)
    assert expected[steps.mask].std() > 0
    for i, chain in enumerate(chains):
        log_odds = by_transformers(folder, chain.prompt, chain.steps)
        torch.testing.assert_close(log_odds, expected[i][steps.mask[i]], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_model_is_not_written_where_nobody_wants_it(metaopt, tmp_path):
    done = metaopt(*RUN, *SMALL, *FEATURES, "problem.task.save_model=false")
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "process_reward_model").exists()


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def meta(tmp_path):
    """Responses with an outcome to questions that nothing else asks."""
    return put(
        tmp_path / "meta.jsonl",
        [{"question": f"{i}?", "response": f"{i}\nno", "outcome": i % 2} for i in range(8)],
    )


@pytest.fixture
def candidates(tmp_path):
    return put(
        tmp_path / "candidates.jsonl",
        [{"query": f"{i}.", "response": f"{j}\nyes", "outcome": j} for i in (1, 2) for j in (0, 1)],
    )


@pytest.mark.parametrize("name", LABELLED)
def test_files_of_each_format_are_training_data(tmp_path, meta, candidates, name):
    data = process_files(put(tmp_path / "train.jsonl", ROWS[name]), meta, candidates)
    task = ProcessSupervision(data, functools.partial(FeatureScorer, size=4, widths=(4,)))
    params, buffers = task.init(generator(0))
    losses = task.row_losses(params | buffers, torch.arange(len(data.train)))
    assert bool((losses > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELLED)
def test_files_of_each_format_are_trained_on(metaopt, tmp_path, meta, candidates, name):
    train = put(tmp_path / "train.jsonl", ROWS[name])
    done = metaopt(
        *RUN, *FILES, *FEATURES, f"problem.task.data.train={train}",
        f"problem.task.data.meta={meta}", f"problem.task.data.candidates={candidates}",
    )  # fmt: skip
    assert done.code == 0, done.err
    _, tensors = load(tmp_path / "run" / "process_reward_model")
    assert tensors["0.weight"].isfinite().all()


OUTCOMES = {
    "chain": [*ROWS["chain"], {**ROWS["chain"][0], "outcome": 1}],
    "dreamprm_meta": [ROWS["dreamprm_meta"][i] for i in (0, 2)],
    "dreamprm15_meta": [*ROWS["dreamprm15_meta"], {**ROWS["dreamprm15_meta"][0], "true_false": 1}],
    "process_bench": ROWS["process_bench"],
    "bigbench_mistake": ROWS["bigbench_mistake"],
    "solution": [*ROWS["solution"], {**ROWS["solution"][0], "outcome": True}],
}


def test_every_format_with_outcomes_of_both_kinds_is_tried():
    assert OUTCOMES.keys() == {k for k, form in FORMATS.items() if form.outcome} - {"prm800k"}


@pytest.mark.parametrize("name", OUTCOMES)
def test_files_of_each_format_with_outcomes_are_a_meta_set(tmp_path, name):
    train = put(tmp_path / "train.jsonl", ROWS["stepwise"])
    data = process_files(train, put(tmp_path / "meta.jsonl", OUTCOMES[name]))
    assert len(data.meta) >= 2
    assert 2 * sum(chain.outcome for chain in data.meta) == len(data.meta)


def test_a_run_without_test_data_states_its_training_loss(metaopt, tmp_path, meta):
    train = put(tmp_path / "train.jsonl", ROWS["stepwise"])
    done = metaopt(
        *RUN,
        *FILES,
        *FEATURES,
        f"problem.task.data.train={train}",
        f"problem.task.data.meta={meta}",
    )
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "process_reward_model" / "README.md").read_text()
    assert "training loss; there is no test data" in page


@pytest.mark.slow
def test_labels_of_a_simulated_solver_are_trained_on(metaopt, tmp_path, meta):
    rows = [
        {"question": "1 +2 *3", "response": f"1+2 = 3\n3*3 = {x}", "answer": "4"} for x in range(5)
    ]
    label((put(tmp_path / "mine.jsonl", rows), "labels", "--policy", "arithmetic"))
    done = metaopt(
        *RUN, *FILES, *FEATURES, "problem.task.data.train=labels", f"problem.task.data.meta={meta}"
    )
    assert done.code == 0, done.err
    assert "mine" in done.out
