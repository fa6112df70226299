"""Two hundred mistakes in a command line: each is refused with a sentence, and leaves nothing.

The tables below have a value of every wrong kind for every key of a run, and what cannot be made
of kinds: groups, keys, pairs that contradict each other. Every eighth is in the default suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Metaopt = Callable[..., Any]

KINDS = {
    "an integer": ("abc", "1.5", "null", "true", "[1]", "{a: 1}", "1000000000000000000000"),
    "a finite number": ("abc", "null", "nan", "inf", "-inf", "true", "[1]"),
    "a text": ("3", "true", "[a]", "nan"),
    "true or false": ("1", "maybe", "null"),
    "none or partial": ("abc", "3"),
}
"""What a key must be, and values that are something else."""

TYPES = {
    "seed": "an integer",
    "outer_steps": "an integer",
    "inner_steps": "an integer",
    "log_every": "an integer",
    "eval_every": "an integer",
    "checkpoint_every": "an integer",
    "keep_checkpoints": "an integer",
    "threads": "an integer",
    "outer_lr": "a finite number",
    "name": "a text",
    "label": "a text",
    "objective": "a text",
    "device": "a text",
    "figures": "true or false",
    "problem.features": "an integer",
    "problem.noise": "a finite number",
    "problem.penalty": "a finite number",
    "optimizer.accumulate": "an integer",
    "engine._partial_": "true or false",
    "+optimizer._convert_": "none or partial",
    "problem._target_": "a text",
}

RANGES = {
    "outer_steps": ("-1",), "inner_steps": ("0", "-1"), "log_every": ("0", "-1"),
    "eval_every": ("0",), "checkpoint_every": ("0",), "keep_checkpoints": ("0",),
    "threads": ("0", "-1", "100000"), "problem.features": ("0",),
    "problem.rows": ("-3",), "problem.penalty": ("0", "-1"), "problem.noise": ("-1",),
    "problem.spread": ("-1",), "problem.inner_optimizer.lr": ("-1",),
    "optimizer.clip_norm": ("0", "-1"), "optimizer.accumulate": ("0",),
    "estimator.truncation": ("0", "99"), "estimator.segments": ("0",),
}  # fmt: skip
"""Values of the right kind that are out of range; the message names the key's last part."""

OTHERS = [
    ("outer_lr=-1", "Adam needs lr >= 0; got optimizer.lr=-1"),
    ("limits={gradients: nan}", "limits must be a mapping to a finite number or null"),
    ("limits={gradients: -1}", "must be a finite number >= 0, or null for no limit; got -1"),
    ("limits={gradients: inf}", "limits must be a mapping to a finite number or null; got"),
    ("problem.features=1000000000000", "Make batches smaller (problem.batch), or the model."),
    (
        "estimator={_target_: metaopt.estimators.Unroll, segments: auto, memory_budget: 1}",
        "memory_budget is 1 byte. Raise it, make batches smaller",
    ),
    ("limits={gradients: abc}", "limits must be a mapping to a finite number or null"),
    ("limits=[3]", "limits must be a mapping"),
    ("limits=3", "limits must be a mapping"),
    ("limits={steps: 3}", "the unit 'steps'"),
    ("+outer_stps=3", "There is no key 'outer_stps', and nothing of this run reads it. Did you"),
    ("+foo=3", "nothing of this run reads it"),
    ("++foo=3", "nothing of this run reads it"),
    ("outer_stps=3", "Did you mean outer_steps?"),
    ("problem.nois=1", "Did you mean problem.noise?"),
    ("+problem.nois=1", "has no argument 'nois'. Did you mean noise?"),
    ("+estimator.inner_stps=1", "Did you mean inner_steps?"),
    ("+optimizer.learning_rate=1", "has no setting 'learning_rate'"),
    ("+problem.inner_optimizer.momentun=0.9", "Did you mean momentum?"),
    ("+problem.inner_optimizer.momentum=1.5", "0 <= momentum < 1"),
    ("+problem.inner_optimizer.nesterov=true", "needs momentum > 0"),
    ("+problem.inner_optimizer.schedule=cosine", "a node with a _target_"),
    ("estimator=null", "There is no estimator=null. `metaopt --help estimator` lists all"),
    ("optimizer=null", "There is no optimizer=null."),
    ("tracker=3", "There is no tracker=3."),
    ("method=null", "There is no method=null."),
    ("estimator=", "There is no estimator="),
    ("estimator=Unroll", "There is no estimator=Unroll. The nearest: unroll"),
    ("optimizer=adm", "There is no optimizer=adm. The nearest: adam"),
    ("tracker=tensorbord", "The nearest: tensorboard"),
    ("~estimator", "estimator is missing: a run cannot do without it"),
    ("~optimizer", "optimizer is missing"),
    ("~engine", "engine is missing"),
    ("~threads", "threads is missing"),
    ("~seed", "There is no key 'seed', and the config refers to it"),
    ("~outer_steps", "There is no key 'outer_steps'"),
    ("~name", "There is no key 'name'"),
    ("name=", "name must be a path below the folder of the results"),
    ("name=' '", "name must be a path below the folder of the results"),
    ("name=a/../../b", "name must be a path below the folder of the results"),
    ("hydra.mode=FOO", "hydra.mode=FOO must be one of [RUN, MULTIRUN]"),
    ("name=null", "name must be a text; got null"),
    ("device=meta", "device=meta: nothing of this run reads it"),
    ("device=cuda", "device=cuda: nothing of this run reads it"),
    ("problem.inner_optimizer=3", "must be a node with a _target_ that makes a InnerOptimizer"),
    ("problem.inner_optimizer=[1]", "cannot take the place of what problem.inner_optimizer is"),
    ("estimator.segments=many", "an integer or auto; got 'many'"),
    ("estimator.memory_budget=1.0", "needs at least"),
    ("optimizer.algorithm=rmsprop", "algorithm must be sgd, adam, adamw"),
    ("optimizer.algorithm=[1]", "optimizer.algorithm must be a text or"),
    ("problem.dtype=float16", "dtype to be one of float32, float64"),
    ("problem._target_=metaopt.problems.examples.Rigde", "Did you mean Ridge"),
    ("problem._target_=math.pi", "nothing to call at 'math.pi'"),
    ("problem.noise=${foo}", "There is no key 'foo', and the config refers to it"),
    ("estimator=score_function", "ScoreFunction needs"),
    ("estimator=score", "needs feedback with a gradient"),
    ("optimizer=mirror", "MirrorDescent"),
    ("objective=budget/gradient", "is not a metric of this run. Did you mean budget/gradients?"),
    ("objective=time/elapsed_s", "seconds are not a metric, since no run repeats them"),
    ("objective=outer/los", "is not a metric of this run. Did you mean outer/loss?"),
    ("objective=eval/tset_loss", "is not a metric of this run. Did you mean eval/test_loss?"),
    ("problem.inner_optimizer.lr={a: 1}", "names 'a'; the parameters are weight"),
    ("methods=[unroll]", "There is no key 'methods', and nothing of this run reads it."),
    ("optimizer=rollout_length/dqn", "DQN needs a problem that acts"),
    ("method=reward_model/flip", "reward_model/flip is one of problem=reward_model"),
    ("data=cifar10", "problem=ridge takes no option of the group data"),
    ("experiment=ridge/estimatrs", "no experiment=ridge/estimatrs"),
    ("launcher=joblib", "There is no key 'launcher'. It is hydra/launcher=NAME."),
    ("hydra.run.dri=runs/a", "There is no key 'hydra.run.dri'. Did you mean hydra.run.dir?"),
    ("hydra.run.dir=runs/a=b", "quotes within those of the shell: 'hydra.run.dir=\"runs/a=b\"'"),
    ("seed", "an argument of a run is KEY=VALUE"),
    ("--steps=3", "unrecognized arguments: --steps=3"),
]


def typed() -> Iterator[tuple[str, str]]:
    for key, kind in TYPES.items():
        for value in KINDS[kind]:
            said = "none or partial or object or all" if kind == "none or partial" else kind
            yield f"{key}={value}", f"{key.lstrip('+')} must be {said}"
    for key, values in RANGES.items():
        for value in values:
            yield f"{key}={value}", key.rpartition(".")[2]


MISTAKES = [*typed(), *OTHERS]


def test_there_are_two_hundred() -> None:
    assert len(MISTAKES) >= 200


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        pytest.param(*case, id=case[0], marks=[pytest.mark.slow] if i % 8 else [])
        for i, case in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_answered_and_leaves_nothing(
    metaopt: Metaopt, mistake: str, sentence: str
) -> None:
    done = metaopt("problem=ridge", "debug=tiny", "figures=false", mistake)
    assert done.code != 0
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not list(Path().iterdir())


PROBLEMS = [
    (("problem=null",), "There is no problem=null"),
    (("problem=knapsack", "estimator=unroll"), "Unroll needs a GradientProblem"),
    (("problem=knapsack", "optimizer=adam"), "and Score gives none"),
    (
        ("problem=knapsack", "optimizer=grid"),
        "-2 cannot take the place of the outer variable 'add'",
    ),
    (("problem=knapsack", "optimizer.archive_size=0"), "archive_size >= 1"),
    (
        ("problem=knapsack", "outer_lr=0.1"),
        "outer_lr=0.1: nothing of this run reads it. It is read by optimizer=adam, adamw, mirror, ",
    ),
    (
        ("problem=ridge", "estimator=soba", "inner_steps=3"),
        "inner_steps=3: nothing of this run reads it. It is read by estimator=amigo, direct, ",
    ),
    (("problem=ridge", "estimator.inner_steps=2", "inner_steps=3"), "nothing of this run reads it"),
    (("-m", "problem=ridge", "seed=range(3,0)"), "seed=range(3,0) has no value, so that there is"),
    (("-m", "problem=ridge", "estimator=unroll,foo"), "There is no estimator=foo."),
    (("-m", "problem=ridge", "methods=[{foo: [1]}]"), "There is no key 'foo'."),
    (("-m",), "name must be given: it names the folder of the results."),
    (("-m", "problem=ridge", "estimator=soba,unroll", "+foo=3"), "nothing of this run reads it"),
    (
        ("problem=template_evolution", "objective=eval/sucess"),
        "is not a metric of this run. Did you mean eval/success?",
    ),
    (("resume=a", "resume=b"), "resume= takes one folder; got a and b"),
    (
        ("-m", "problem=knapsack", "outer_lr=0.1,0.2"),
        "outer_lr=0.1: nothing of this run reads it.",
    ),
    (("problem=ridge", "outer_steps=0", "objective=outer/loss"), "needs outer_steps >= 1"),
    (
        ("problem=rollout_length", "objective=eval/retrun"),
        "is not a metric of this run. Did you mean eval/all_groups_return?",
    ),
    (("problem=knapsack", "optimizer.repeats=1.5"), "optimizer.repeats must be an integer"),
    (("problem=knapsack", "optimizer.accept=best"), "always or if_better or archive; got 'best'"),
    (("problem=quadratic", "problem.rho=nan"), "problem.rho must be a finite number; got nan"),
    (("problem=quadratic", "estimator.solve.iterations=0"), "iterations >= 1"),
    (("problem=meta_pseudo_labels", "problem.student.widths=[-1]"), "cannot be made of its"),
    (("problem=meta_pseudo_labels", "problem.batch=0"), "batch >= 1"),
    (("problem=rollout_length", "problem.steps=-1"), "steps >= 1"),
]


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        pytest.param(*case, id=" ".join(case[0]), marks=[pytest.mark.slow] if i % 4 else [])
        for i, case in enumerate(PROBLEMS)
    ],
)
def test_so_is_a_mistake_in_another_problem(
    metaopt: Metaopt, mistake: tuple[str, ...], sentence: str
) -> None:
    done = metaopt(*mistake, "debug=tiny", "figures=false")
    assert done.code != 0
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not list(Path().iterdir())


def test_a_key_of_another_option_of_a_group_names_the_option(metaopt: Metaopt) -> None:
    done = metaopt("problem=data_curation/sft", "problem.task.data.train=rows.jsonl")
    assert "data@problem.task.data=data_curation/rows has." in done.err
    done = metaopt(
        "problem=data_curation/sft", "weights@problem.weights=rater", "problem.weights.per=row"
    )
    assert "weights@problem.weights=table has." in done.err


def test_a_key_that_one_method_of_a_sweep_reads_is_no_mistake_of_the_others(
    metaopt: Metaopt,
) -> None:
    done = metaopt(
        "-m", "problem=ridge", "estimator=soba,unroll", "inner_steps=3", "debug=tiny",
        "figures=false",
    )  # fmt: skip
    assert done.code == 0
    assert "2 cells: 2 computed" in done.out


def test_what_a_result_counts_can_be_the_objective(metaopt: Metaopt) -> None:
    given = ("problem=ridge", "debug=tiny", "figures=false", "eval_every=9")
    for name in ("budget/gradients", "outer/loss", "eval/test_loss"):
        assert metaopt(*given, f"objective={name}").code == 0


def test_a_tracker_that_is_not_installed_is_named_before_the_run(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaopt.runs.tracking.services.find_spec", lambda _: None)
    done = metaopt("problem=ridge", "debug=tiny", "tracker=tensorboard")
    assert "tracker=tensorboard needs the package tensorboard" in done.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"problem: \xff\xfe", "is not UTF-8 text (invalid start byte); save it as UTF-8"),
        (b"\xef\xbb\xbfname: mine", "begins with a byte order mark"),
        (b" \n", "is empty; write its keys, or delete it"),
        (b"problem: {a: 1", "is not YAML: "),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(
    metaopt: Metaopt, content: bytes, sentence: str
) -> None:
    path = Path("conf/problem/mine.yaml")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    done = metaopt("--config-dir=conf", "problem=mine")
    assert done.code == 1
    assert f"conf/problem/mine.yaml {sentence}" in done.err
    assert not Path("runs").exists()
