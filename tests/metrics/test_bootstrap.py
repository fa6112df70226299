"""Bootstrap by query: against scipy, and what a resample holds."""

import numpy as np
import pytest
from scipy import stats

from metaopt.metrics import bootstrap


def test_clustered_interval_of_a_mean_is_the_t_interval_of_cluster_means():
    values = np.random.default_rng(8).normal(size=200)
    result = bootstrap.clustered_intervals(
        lambda w: {"mean": w @ np.repeat(values, 3) / w.sum(1)}, np.repeat(np.arange(200), 3)
    )
    half = stats.sem(values) * stats.norm.ppf(0.975)
    assert result["mean"] == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    queries = np.repeat(np.arange(50), 2)
    whole = np.concatenate(list(bootstrap.cluster_weights(queries, 30)))
    monkeypatch.setattr(bootstrap, "BLOCK", 700)
    parts = list(bootstrap.cluster_weights(queries, 30))
    assert len(parts) == 5
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole.sum(1), 100)
    np.testing.assert_array_equal(whole[:, ::2], whole[:, 1::2])


def test_undefined_resamples_count_against_both_ends():
    rare = bootstrap.clustered_intervals(
        lambda w: {"rate": np.where(w[:, 0] > 0, w[:, 0], np.nan)}, np.arange(40)
    )
    assert rare["rate"] == (None, None)  # a row is missing from 36 % of the resamples


def test_few_queries_have_no_interval_however_many_examples():
    def mean(w):
        return {"mean": w @ np.arange(60) / w.sum(1)}

    for queries, none in ((1, True), (5, True), (6, False)):
        ends = bootstrap.clustered_intervals(mean, np.arange(60) % queries)["mean"]
        assert (ends == (None, None)) is none


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="resamples must be"):
        list(bootstrap.cluster_weights([1], 0))
