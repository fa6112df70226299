"""Search: archive, acceptance, screening, averaging, resume."""

import math

import pytest
import torch

from metaopt import Feedback
from metaopt.engine.random import fold
from metaopt.optimizers import Mutation, Search, Trial, reject_known
from metaopt.optimizers.search import merge, same


class Counting:
    """Proposes 1, 2, 3, ... and remembers what it was shown."""

    def __init__(self):
        self.shown, self.count = [], 0

    def __call__(self, parents, key):
        self.shown.append([t.outer for t in parents])
        self.count += 1
        return self.count


def begun(*args, initial=0, **settings):
    search = Search(*args, **settings)
    search.init(initial)
    return search


def run(search, values, artifacts=None, start=0):
    """Ask and tell once for each value; return what was asked for."""
    asked = []
    for step, value in enumerate(values, start):
        asked.append(search.ask(fold(0, step)))
        search.tell(Feedback(value, artifacts=artifacts))
    return asked


def test_initial_comes_first_then_proposals():
    assert run(begun(Counting(), initial=7), [3.0, 2.0, 1.0]) == [7, 1, 2]


def test_without_proposer_the_initial_variable_stays_and_is_averaged():
    search = begun(initial="a text")
    assert run(search, [1.0, 2.0, 6.0]) == ["a text"] * 3
    assert search.trials == [Trial("a text", 3.0, 3)]
    assert search.solution == "a text"


@pytest.mark.parametrize(
    ("accept", "shown"),
    [
        ("always", [[0], [1], [2], [3]]),
        ("if_better", [[0], [1], [1], [3]]),
        ("archive", [[0], [1, 0], [1, 0, 2], [3, 1, 0]]),
    ],
)
def test_acceptance_decides_what_the_proposer_sees(accept, shown):
    proposer = Counting()
    search = begun(proposer, accept=accept, archive_size=3)
    run(search, [5.0, 3.0, 9.0, 1.0, 4.0])
    assert proposer.shown == shown
    assert search.solution == 3


def test_the_latest_trial_is_kept_where_values_are_not_to_be_compared():
    search = begun(Counting(), accept="always", archive_size=1, keep="latest")
    assert search.solution == 0
    run(search, [5.0, 1.0, 9.0])
    assert search.solution == 2
    other = begun(Counting(), accept="always", archive_size=1, keep="latest")
    other.load_state_dict(search.state_dict())
    assert other.solution == 2


def test_ties_keep_the_earlier_one():
    search = begun(Counting())
    run(search, [1.0, 1.0])
    assert search.solution == 0


def test_archive_keeps_the_best_and_shows_the_latest_to_the_screen():
    shown = []

    def screen(candidate, trials):
        shown.append([t.outer for t in trials])
        return 0.0

    search = begun(Counting(), screen, archive_size=2)
    run(search, [2.0, 1.0, 9.0, 3.0])
    assert shown[-1] == [1, 0, 2]
    assert [t.outer for t in search.trials] == [1, 0, 3]


def test_screen_rejects_before_an_inner_run():
    def even(candidate, trials):
        return 0.0 if candidate % 2 == 0 else math.inf

    search = begun(Counting(), even)
    assert run(search, [5.0, 4.0, 3.0]) == [0, 2, 4]
    assert search.proposer.count == 4


def test_best_screened_of_several_proposals_is_run():
    def closest_to_six(candidate, trials):
        return abs(candidate - 6)

    search = begun(Counting(), closest_to_six, proposals=4)
    assert run(search, [5.0, 4.0, 3.0]) == [0, 4, 6]
    assert search.proposer.count == 8


def test_after_the_last_redraw_the_parent_is_run_again():
    search = begun(Counting(), lambda candidate, trials: math.inf, redraws=4)
    assert run(search, [5.0, 4.0, 3.0]) == [0, 0, 0]
    assert search.proposer.count == 10
    assert search.trials == [Trial(0, 4.0, 3)]


def test_reject_known_rejects_what_is_in_the_archive():
    trials = [Trial({"a": torch.ones(2)}, 1.0)]
    assert reject_known({"a": torch.ones(2)}, trials) == math.inf
    assert reject_known({"a": torch.zeros(2)}, trials) == 0.0


def test_screen_reads_artifacts():
    def predicted(candidate, trials):
        labelled = {k: v for t in trials for k, v in t.artifacts.items()}
        return labelled.get(candidate, math.inf)

    search = begun(Counting(), predicted)
    asked = run(search, [5.0, 4.0], artifacts={3: 1.0, 5: 0.5})
    assert asked == [0, 3]


def test_repeats_are_averaged_before_a_trial_is_filed():
    search = begun(Counting(), repeats=3)
    assert run(search, [1.0, 2.0, 6.0, 0.0, 10.0, 20.0]) == [0, 0, 0, 1, 1, 1]
    assert search.trials == [Trial(0, 3.0, 3), Trial(1, 10.0, 3)]


def test_a_lucky_value_does_not_survive_repeats():
    def noisy(outer, step):
        return float(outer) + (-5.0 if step == 3 else 0.0)

    once, often = begun(Counting()), begun(Counting(), repeats=5)
    for search in (once, often):
        for step in range(20):
            outer = search.ask(step)
            search.tell(Feedback(noisy(outer, step)))
    assert once.solution == 3
    assert often.solution == 0


def test_proposed_again_is_averaged_with_the_earlier_runs():
    search = begun(lambda parents, key: "b", initial="a", accept="archive")
    run(search, [2.0, 1.0, 9.0, 5.0])
    assert search.trials == [Trial("a", 2.0, 1), Trial("b", 5.0, 3)]


def test_rank_by_screen_reorders_the_archive_as_evidence_changes():
    evidence = {"a": 0.0, "b": 1.0}
    search = begun(
        lambda parents, key: "b", lambda c, trials: evidence[c], initial="a",
        accept="archive", rank="screen",
    )  # fmt: skip
    run(search, [9.0, 1.0])
    assert search.solution == "a"
    evidence["a"] = 2.0
    run(search, [1.0])
    assert search.solution == "b"


def test_asking_again_gives_the_same_and_telling_twice_is_refused():
    search = begun(Counting())
    assert search.ask(1) == search.ask(2) == 0
    search.tell(Feedback(0.0))
    with pytest.raises(RuntimeError, match="needs an ask"):
        search.tell(Feedback(0.0))


def test_resume_is_bitwise_between_repeats(tmp_path):
    def make():
        outer = {"w": torch.zeros(3, dtype=torch.float64), "text": "a b", "kind": "x"}
        proposer = Mutation(vocabulary=["a", "b"], choices={"kind": ["x", "y", "z"]})
        return begun(proposer, reject_known, initial=outer, accept="archive", repeats=2)

    def values(asked):
        return float((asked["w"] - 1).square().sum()) + len(asked["text"])

    def steps(search, start, stop):
        asked = []
        for step in range(start, stop):
            asked.append(search.ask(fold(0, step)))
            search.tell(Feedback(values(asked[-1]), artifacts={"seen": torch.ones(1)}))
        return asked

    whole = steps(make(), 0, 30)
    first = make()
    steps(first, 0, 13)
    torch.save(first.state_dict(), tmp_path / "a.pt")
    second = make()
    second.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert all(same(a, b) for a, b in zip(steps(second, 13, 30), whole[13:], strict=True))


def test_artifacts_are_copied():
    artifact = torch.zeros(1)
    search = begun(Counting())
    run(search, [1.0], artifacts={"a": artifact})
    artifact.add_(1)
    assert search.trials[0].artifacts["a"].item() == 0.0


def test_hill_climbing_reaches_the_minimum():
    search = begun(Mutation(scale=0.3), initial={"w": torch.zeros(2, dtype=torch.float64)})
    for step in range(300):
        w = search.ask(fold(0, step))["w"]
        search.tell(Feedback(((w - torch.tensor([1.0, -2.0])) ** 2).sum()))
    assert search.trials[0].value < 0.01


def test_merge_weights_by_evaluations():
    assert merge(Trial("a", 1.0, 3), Trial("a", 5.0, 1, "new")) == Trial("a", 2.0, 4, "new")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a", "a", True),
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2), "a", False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [torch.ones(1), 2]}, {"a": [torch.ones(1), 2]}, True),
        ([1, 2], [1], False),
        ([1], 1, False),
    ],
)
def test_same(a, b, expected):
    assert same(a, b) is expected
    assert same(b, a) is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "first"}, "keep to be one of best, latest; got keep="),
        ({"accept": "sometimes"}, "accept to be one of always, if_better, archive; got accept="),
        ({"rank": "luck"}, "rank to be one of value, screen; got rank="),
        ({"archive_size": 0}, "archive_size"),
        ({"repeats": 0}, "repeats"),
        ({"proposals": 0, "screen": reject_known}, "proposals"),
        ({"redraws": -1}, "redraws"),
        ({"proposals": 2}, "needs a screen"),
        ({"rank": "screen"}, "needs a screen"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(Counting(), **settings)
