"""Features of a question's text."""

import numpy as np

from metaopt.problems.agent_programs.features import FEATURES, features_of, thresholds_of

TEXT = (
    "Each of 12 boxes costs $3.50, half of the price. She has 2 more than Ben, twice 1,000 in "
    "total. How many are left, in percent?"
)


def test_a_text_is_counted() -> None:
    counts = {name: int(values[0]) for name, values in features_of([TEXT]).items()}
    assert counts == {
        "words": 26, "numbers": 4, "sentences": 3, "each": 1, "fraction": 1, "percent": 1,
        "times": 1, "total": 1, "left": 1, "compare": 1, "money": 3,
    }  # fmt: skip
    assert {*counts} == {*FEATURES}


def test_thresholds_divide_the_questions() -> None:
    assert thresholds_of(np.array([1, 2, 3, 4, 5])) == (2, 3, 4)
    assert thresholds_of(np.array([0, 0, 0, 0, 1])) == (0,)
    assert thresholds_of(np.array([3, 3, 3])) == ()
