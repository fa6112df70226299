"""A user's own trajectories with feedback, and errors that name the row."""

import json

import pytest

from metaopt.llm import SimulatedLM
from metaopt.problems.metric_induction import FeedbackFile, MetricInduction

ROW = {"trajectory": "1. opens the page", "feedback": "It never asked."}


def file(tmp_path, *rows):
    path = tmp_path / "feedback.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def test_rows_are_read(tmp_path):
    known = {"trajectory": "t", "aspects": [{"text": "it  asked", "sign": 1}]}
    data = FeedbackFile(file(tmp_path, ROW, ROW, known))
    assert data.source == "feedback.jsonl"
    assert data.instances[0] == ("1. opens the page", "It never asked.", None)
    assert data.instances[2] == ("t", "", (("it asked", 1),))
    assert len(FeedbackFile(file(tmp_path, *[ROW] * 5), limit=3).instances) == 3


def test_columns_have_other_names(tmp_path):
    row = {"run": "t", "comment": "c"}
    data = FeedbackFile(file(tmp_path, row, row, row), trajectory="run", feedback="comment")
    assert data.instances[0][:2] == ("t", "c")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"trajectory": "t"}, "no column 'feedback'; columns are trajectory.*feedback=NAME"),
        ({"trajectory": "t", "feedback": " "}, "'feedback' is empty"),
        ({"trajectory": 3, "feedback": "x"}, "'trajectory' must be a text"),
        ({**ROW, "aspects": "good"}, "'aspects' must be a list"),
        ({**ROW, "aspects": [{"text": "x", "sign": 0}]}, "an aspect must be"),
        ({**ROW, "aspects": [{"text": "", "sign": 1}]}, "an aspect must be"),
        ("[1]", "is not an object"),
        ("{", "feedback.jsonl"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, words):
    with pytest.raises(ValueError, match=words) as caught:
        FeedbackFile(file(tmp_path, ROW, row, ROW, ROW))
    assert "feedback.jsonl:2" in str(caught.value) or "line 2" in str(caught.value)


def test_too_few_rows_and_no_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 2 rows; metrics are induced from one part"):
        FeedbackFile(file(tmp_path, ROW, ROW))
    with pytest.raises(ValueError, match="limit >= 3"):
        FeedbackFile(file(tmp_path, ROW), limit=2)
    with pytest.raises(FileNotFoundError, match="source="):
        FeedbackFile(str(tmp_path / "none.jsonl"))


def test_your_own_data_need_models(tmp_path):
    data = FeedbackFile(file(tmp_path, *[ROW] * 6))
    with pytest.raises(ValueError, match=r"plays the role extractor.*\+llm@problem\.model"):
        MetricInduction(data)


def test_feedback_of_several_people_on_one_trajectory_is_in_one_part(tmp_path):
    said = [{"text": "it asked", "sign": 1}]
    rows = [{"trajectory": f"run {i % 6}", "feedback": "", "aspects": said} for i in range(18)]
    model = SimulatedLM(lambda role, messages, key: "none", "silent")
    task = MetricInduction(FeedbackFile(file(tmp_path, *rows)), model=model)
    runs = [{i.trajectory for i in part} for part in task.parts.values()]
    assert sum(map(len, task.parts.values())) == 18
    assert sorted(map(len, runs)) == [2, 2, 2]
    assert len(set.union(*runs)) == 6


def test_aspects_stand_in_cells_of_csv(tmp_path):
    path = tmp_path / "feedback.csv"
    path.write_text(
        'trajectory,feedback,aspects\na,It asked.,\nb,,"[{""text"": ""it asked"", ""sign"": 1}]"\n'
        "c,It did.,\n"
    )
    instances = FeedbackFile(str(path)).instances
    assert [i.aspects for i in instances] == [None, (("it asked", 1),), None]
