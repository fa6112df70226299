"""Rubrics of items: their text, the scores that a reply states, how points become a reward."""

import pytest

from metaopt.problems.meta_policy_optimization.item_scores import (
    factor,
    item_scores,
    one_item_score,
    read_weights,
    render,
)
from metaopt.problems.meta_policy_optimization.prompts import (
    MOST_ITEMS,
    judging_item,
    merging,
    read_rubric,
    refining,
)

WEIGHTS = {"padding": -4.0, "cites a source": 5.0, "depth": 0.25}
GOOD = "Some reasons.\n- padding: -4.00\n- depth: 0.25\n- cites a source: 2.5\nTotal: -1.25"


def test_a_rubric_survives_its_text_with_the_order_of_its_items():
    assert list(read_weights(render(WEIGHTS)).items()) == list(WEIGHTS.items())
    assert list(read_weights(render(dict(reversed(WEIGHTS.items()))))) == [*reversed(WEIGHTS)]


def test_items_without_a_weight_are_left_out_and_a_rubric_of_none_is_refused():
    assert "humour" not in render({**WEIGHTS, "humour": 0.001})
    with pytest.raises(ValueError, match="needs an item with a weight that is not 0"):
        render({"humour": 0.0})
    for text in ("be strict", "- humour: +0.00"):
        with pytest.raises(ValueError, match="a rubric needs lines such as"):
            read_weights(text)


def test_a_reply_that_states_every_item_has_their_scores():
    assert item_scores(GOOD, WEIGHTS) == {"padding": -4.0, "cites a source": 2.5, "depth": 0.25}


@pytest.mark.parametrize(
    "change",
    [
        ("- depth: 0.25\n", ""),  # an item is missing
        ("- depth: 0.25\n", "- depth: 0.25\n- depth: 0.25\n"),  # twice
        ("- depth: 0.25\n", "- depth: 0.25\n- humour: 0\n"),  # of another rubric
        ("2.5\nTotal: -1.25", "100\nTotal: 96.25"),  # beyond its weight
        ("-4.00", "4.00"),  # on the other side of 0
        ("Total: -1.25", "Total: 8"),  # not their sum
        ("Total: -1.25", "Total: -1.25\nThat is all."),  # not at the end
        ("Total: -1.25", "Total: nan"),
        ("Total: -1.25", ""),
    ],
)
def test_any_other_reply_has_no_score(change):
    assert change[0] in GOOD
    assert item_scores(GOOD.replace(*change), WEIGHTS) is None
    assert item_scores("", WEIGHTS) is None


def test_the_scales_of_a_reward():
    assert factor(WEIGHTS, "sum") == 1
    assert factor(WEIGHTS, "mean") == pytest.approx(1 / 3)
    assert factor(WEIGHTS, "total") == pytest.approx(10 / 9.25)


def test_a_reply_holds_a_rubric_or_none():
    def wrapped(text):
        return f"Here it is.\n<rubric>\n{text}\n</rubric>\nDone."

    assert read_rubric(wrapped(render(WEIGHTS))) == render(WEIGHTS)
    assert read_rubric(wrapped("- a: +1.00\n\n- b: -2.50")) == render({"a": 1.0, "b": -2.5})
    assert read_rubric(wrapped("- a: +1.00") + wrapped("- b: +1.00")) == render({"b": 1.0})
    many = "\n".join(f"- {chr(97 + i)}: +1.00" for i in range(MOST_ITEMS + 1))
    for bad in (
        "- a: +1.00\n- Clarity: 5",  # an item in another form would be lost
        "- a: +1.00\n* b: +1.00",
        "- a: +1.00\n- a: +2.00",
        "be strict",
        many,
    ):
        assert read_rubric(wrapped(bad)) is None
    assert read_weights(read_rubric(wrapped(many), most=MOST_ITEMS + 1)).keys() == set(
        "abcdefghijklm"
    )
    assert read_rubric("- a: +1.00") is None
    assert read_rubric("<rubric>\n" + wrapped("- a: +1.00")) == render({"a": 1.0})
    assert read_rubric("<rubric>\n" * 20_000) is None  # in a time that is linear in its length


FREE = {"Cites a source.\n5: for every claim.": 5.0, "Flatters | the reader": -4.0}
STATED = "It cites two.\n**Item 1: 3**\nSome flattery.\n- Item 2: -1.5\n\n**Total:** 1.5"


def test_a_rubric_of_free_items_survives_its_text_in_their_order():
    for items in (FREE, dict(reversed(FREE.items()))):
        assert list(read_weights(render(items, free=True)).items()) == list(items.items())
    with pytest.raises(ValueError, match="a rubric needs an item"):
        render({}, free=True)


def test_the_scores_of_free_items_are_read_by_their_numbers():
    assert item_scores(STATED, FREE, free=True) == dict(zip(FREE, (3.0, -1.5), strict=True))
    swapped = "Item 2: -1.5/4\nItem 1: 3 out of 5\nTotal: 1.5"
    assert item_scores(swapped, FREE, free=True) == item_scores(STATED, FREE, free=True)
    assert item_scores(STATED, WEIGHTS) is None


@pytest.mark.parametrize(
    "change",
    [
        ("**Total:** 1.5", "### Total: 1.5"), ("**Total:** 1.5", "- total = +1.5 points."),
        ("**Total:** 1.5", "Total: 3 - 1.5 = 1.5"), ("**Total:** 1.5", "Total: 3 + (-1.5) = 1.5/5"),
        ("- Item 2: -1.5", "Item 2: \u22121.5"), ("- Item 2: -1.5", "### Item 2: -1.5/-4 pts"),
        ("It cites two.\n", "```text\n"), ("**Total:** 1.5", "Total: 1.5\n```"),
    ],
)  # fmt: skip
def test_what_models_decorate_points_with_is_read(change):
    assert change[0] in STATED
    assert item_scores(STATED.replace(*change), FREE, free=True) == item_scores(STATED, FREE, True)


def test_criteria_may_be_decorated_and_a_deduction_of_0_is_0():
    decorated = GOOD.replace("- depth:", "* **depth**:").replace("Total", "**Total**")
    assert item_scores(decorated, WEIGHTS) == item_scores(GOOD, WEIGHTS)
    nothing = item_scores("- a: -0.000\nTotal: 0", {"a": -4.0})
    assert (str(nothing["a"]), str(one_item_score("Score: 0", -4.0))) == ("0.0", "0.0")


@pytest.mark.parametrize(
    "change",
    [
        ("- Item 2: -1.5\n", ""), ("- Item 2: -1.5\n", "- Item 2: -1.5\nItem 3: 0\n"),
        ("- Item 2: -1.5\n", "- Item 2: -1.5\nItem 1: 3\n"), ("Item 1: 3", "Item 1: 3/10"),
        ("Item 1: 3", "Item 1: 100"), ("-1.5\n\n", "1.5\n\n"), ("**Total:** 1.5", "Total: 2"),
        ("**Total:** 1.5", ""), ("**Total:** 1.5", "Total: 1.5\nThat is all."),
        ("Item 1: 3", "Item 1: \u0663"), ("**Total:** 1.5", "Total: 1.5 = 2"),
        ("Item 1: 3", "Item 1: 3/4"),
    ],
)  # fmt: skip
def test_any_other_reply_about_free_items_has_no_score(change):
    assert change[0] in STATED
    assert item_scores(STATED.replace(*change), FREE, free=True) is None


def test_the_score_of_one_item_is_in_its_range():
    assert one_item_score("It does.\nScore: 4/5", 5.0) == 4.0
    assert one_item_score("It does.\n**Score: 4**", -4.0) == -4.0
    for reply, weight in (("Score: 6", 5.0), ("Score: -1", -4.0), ("Score: 4/10", 5.0), ("4", 5.0)):
        assert one_item_score(reply, weight) is None
    (question,) = judging_item(list(FREE)[1], -4.0, "q", "r")
    assert "to 4 (fully the case)" in question["content"]


def test_a_reply_holds_a_rubric_in_the_form_of_the_current_one():
    current = render(FREE, free=True)
    for question in (refining(current, "an analysis"), merging(current, [current], 1)):
        assert "'<item points=5>'" in question[0]["content"]
    text = "<rubric>\n<item points=2>Is short.</item>\n<item points=2>Is short.</item>\n</rubric>"
    assert read_rubric(text, free=True) == render({"Is short.": 2.0}, free=True)
    assert read_rubric(f"<rubric>\n{current}\n</rubric>", free=True) == current
    many = "".join(f"<item points=1>{i}</item>\n" for i in range(MOST_ITEMS + 1))
    for bad in (many, "- a: +1.00", "<item points=2>Is short.", "be strict"):
        assert read_rubric(f"<rubric>\n{bad}\n</rubric>", free=True) is None
    assert read_rubric(text) is None
