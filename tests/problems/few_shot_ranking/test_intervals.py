"""Intervals that resample queries within splits, then splits."""

import numpy as np
import pytest
import torch
import yaml

from metaopt.files.tensors import write_tensors
from metaopt.problems.few_shot_ranking.intervals import main, nested_interval, paired, read, table


def test_the_variance_is_that_of_splits_and_of_queries_within_them():
    draw = np.random.default_rng(0)
    splits = [draw.normal(mean, 1.0, 50) for mean in draw.normal(0, 0.5, 12)]
    mean, low, high = nested_interval(splits)
    means = np.array([s.mean() for s in splits])
    # Of S splits of n queries each: var(split means) / S + mean(var of queries) / (n S).
    variance = means.var() / 12 + np.mean([s.var() for s in splits]) / (50 * 12)
    assert mean == pytest.approx(means.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.1)


def test_a_split_alone_has_the_interval_of_its_queries():
    values = np.random.default_rng(1).exponential(size=200)
    mean, low, high = nested_interval([values])
    assert low < mean < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.1)


def test_each_split_has_the_same_weight():
    assert nested_interval([[1.0] * 9, [0.0]]).mean == 0.5
    assert nested_interval([[2.0], [2.0]]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("splits", [[], [[1.0], []]])
def test_nothing_to_resample_is_refused(splits):
    with pytest.raises(ValueError, match="one number or more of each of one split or more"):
        nested_interval(splits)


def test_differences_are_of_the_same_query_and_seed():
    method = {0: {1: 0.5, 7: 0.25}, 1: {3: 1.0}, 2: {4: 1.0}}
    baseline = {1: {3: 0.5}, 0: {7: 0.0, 1: 0.75}}
    assert [d.tolist() for d in paired(method, baseline)] == [[-0.25, 0.25], [0.5]]


@pytest.fixture
def runs(tmp_path):
    for label, gain in (("supervised", 0.0), ("MAML", 0.125)):
        for seed in (0, 1):
            folder = tmp_path / f"{label}-{seed}"
            folder.mkdir()
            (folder / "config.yaml").write_text(yaml.safe_dump({"label": label, "seed": seed}))
            ndcg = torch.arange(8) / 64 + gain + seed / 4
            by_shots = {"2": {"ndcg": ndcg, "baseline": torch.full((8,), 0.5)}}
            (folder / "snapshots").mkdir()
            for step in (3, 12):  # the last one counts
                content = {"queries": torch.arange(8), "shots": by_shots if step > 3 else {}}
                write_tensors(folder / "snapshots" / f"step_{step:08}.pt", content)
    return tmp_path


def test_an_experiment_is_a_table_with_paired_differences(runs, capsys):
    assert read(runs)["MAML", 2][1][3] == 3 / 64 + 0.125 + 0.25
    rows = {row[0]: row[1:] for row in table(runs, "supervised").rows}
    # Every query gains as much, so that a difference has no variance.
    assert rows["MAML"][-1] == "+0.125 [+0.125, +0.125]"
    assert rows["supervised"][:2] == ["2", "2"]
    assert rows["supervised"][-1] == ""
    assert rows["MAML"][2].startswith("0.305 [")
    main([str(runs), "--baseline", "supervised"])
    assert "| MAML | 2 | 2 | 0.305 [" in capsys.readouterr().out


def test_what_an_experiment_has_not_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="no method is called 'kNN'; there are MAML, supervised"):
        table(runs, "kNN")
    with pytest.raises(ValueError, match="has no fused; it has ndcg, baseline"):
        read(runs, "fused")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="give the folder of an experiment"):
        read(tmp_path / "empty")
