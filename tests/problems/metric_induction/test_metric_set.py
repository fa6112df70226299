"""Sets of metrics as texts: what is written is read, and what is no set is refused."""

import pytest

from metaopt.problems.metric_induction.metric_set import Metric, canonical, parse, render

PLAN = Metric("plan", "Whether it plans.\nIn steps.", ("It lists subgoals.", "It jumps."))
TONE = Metric("tone", "How it speaks.")


def test_what_is_written_is_read():
    assert parse(render([PLAN, TONE])) == [PLAN, TONE]
    assert render([]) == ""
    assert parse("") == []


def test_the_same_metric_twice_is_one():
    assert render([PLAN, PLAN]) == render([PLAN])
    assert parse(render([PLAN]) + "\n" + render([PLAN])) == [PLAN]


def test_the_order_says_nothing():
    assert canonical([TONE, PLAN]) == canonical([PLAN, TONE])


@pytest.mark.parametrize(
    "text",
    [
        "Here it is:\n<metric name='plan'>\nDefinition: Whether it plans.\nIn steps.\n"
        "Examples:\n* It lists subgoals.\n• It jumps.\n</metric>\nDone.",
        '<Metric title="plan">\n**Definition:** Whether it plans.\nIn steps.\n\n'
        "- It lists subgoals.\n- It jumps.\n</Metric>",
        "<metric>\nName: plan\nWhether it plans.\nIn steps.\n- It lists subgoals.\n- It jumps.\n"
        "</metric>",
    ],
)
def test_what_models_make_of_the_form_is_read(text):
    assert parse(text) == [PLAN]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<metric name="a">\nx\n', "needs its </metric>; got 0 whole metrics and 1 tags"),
        ('<metric name="a">\n<metric name="b">\nx\n</metric>', "1 whole metrics and 3 tags"),
        ('<metric name="a">\n- only an example\n</metric>', "a name and a definition"),
        ("<metric>\nonly a name\n</metric>", "a name and a definition"),
        ('<metric name="a">x</metric><metric name="a">y</metric>', "'a' is given to two metrics"),
        (f'<metric name="{"a" * 81}">x</metric>', "at most 80 characters"),
    ],
)
def test_what_is_no_set_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


@pytest.mark.parametrize("name", ["", 'a "b"', "a\nb", "<b>"])
def test_a_name_that_a_text_cannot_hold_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        render([Metric(name, "x")])


def test_a_label_within_a_line_is_part_of_it():
    metric = Metric("sources", "Whether it cites sources, for example: links.\nFilename: kept.")
    assert parse(render([metric])) == [metric]
    assert parse("<metric>\nRename: files\nDefinition: x\n</metric>") == [
        Metric("Rename: files", "x")
    ]
