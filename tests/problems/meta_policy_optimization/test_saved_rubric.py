"""What a run hands over: rubric, history, validity, page; and a rubric that scores again."""

import json
import re

import numpy as np
import pytest

from metaopt.cli.scoring import main as score
from metaopt.llm import Client, SimulatedLM
from metaopt.metrics.calibration import CalibratedJudge
from metaopt.problems.meta_policy_optimization import (
    MetaPolicyOptimization,
    RubricWorld,
    TabularPolicy,
    load_rubric,
)
from metaopt.problems.meta_policy_optimization.history import changes, diff, history_markdown
from metaopt.problems.meta_policy_optimization.item_scores import render
from metaopt.problems.meta_policy_optimization.judging import (
    WrittenPoints,
    YesNo,
    not_understood,
)
from metaopt.problems.meta_policy_optimization.saved_rubric import SavedRubric, to_json

SMALL = (
    "problem=meta_policy_optimization", "outer_steps=4", "inner_steps=5", "problem.rollouts=8",
    "seed=3",
)  # fmt: skip


@pytest.fixture
def run(metaopt, tmp_path):
    done = metaopt(*SMALL, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return tmp_path / "run", done.out


@pytest.mark.slow
def test_a_run_hands_over_its_rubric(run, tmp_path, capsys):
    folder, out = run
    for said in ("true quality, less the first", "hack rate", "KL", "first rubric:", "last rubric"):
        assert said in out
    record = json.loads((folder / "rubric.json").read_text())
    rubric = load_rubric(folder)
    assert rubric.text == record["rubric"] == record["history"][-1]
    assert (folder / "outer.txt").read_text() == rubric.text  # and not the one of the best value
    assert len(rubric.history) == 4
    assert [len(line) for line in rubric.history] == [len(line) for line in record["history"]]

    # the judge is that of the run's world
    world = RubricWorld(seed=3)
    drawn = np.random.default_rng(0).integers(2**13, size=20).tolist()
    responses = [world.response(index) for index in drawn]
    expected = world.points(rubric.text)[drawn]
    assert rubric.score([("any", text) for text in responses]) == pytest.approx(expected.tolist())
    items = rubric.item_scores([("any", responses[0])])[0]
    assert items.keys() == rubric.items.keys()
    assert sum(items.values()) == pytest.approx(expected[0])

    # its validity, recomputed
    _, mixture = world.mixture
    assert rubric.reference == sorted(rubric.reference)
    assert rubric.reference == pytest.approx(sorted(world.points(rubric.text)[mixture].tolist()))
    judge = CalibratedJudge.from_dict(record["validity"]["judge"])
    assert judge.template == rubric.text
    assert record["validity"]["held_out"]["n"] == 384
    truth = world.quality.numpy()[mixture]
    outcomes, odd = (truth > np.median(truth)).astype(int), world.mixture[0] % 2 == 1
    points = world.points(rubric.text)[mixture]
    above = [a > b for a in points[odd & (outcomes == 1)] for b in points[odd & (outcomes == 0)]]
    ties = [a == b for a in points[odd & (outcomes == 1)] for b in points[odd & (outcomes == 0)]]
    auroc = np.mean(above) + np.mean(ties) / 2
    assert record["validity"]["held_out"]["auroc"] == pytest.approx(auroc)

    # files of responses
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"response": text}) + "\n" for text in responses))
    assert score([str(folder), str(path)]) == 0
    assert "above the median of the responses that the rubric" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.scored.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == pytest.approx(expected.tolist())
    below = [np.mean(np.array(rubric.reference) <= row["score"]) for row in rows]
    assert [row["score_cdf"] for row in rows] == pytest.approx(below)
    path = tmp_path / "lines.txt"
    path.write_text(responses[0] + "\nAnything else.\n")
    with pytest.raises(ValueError, match=r"1 of 2 responses have no score; the first is row 2"):
        score([str(folder), str(path)])


@pytest.mark.slow
def test_the_page_and_the_history_say_what_happened(run):
    folder, _ = run
    page, text = ((folder / name).read_text() for name in ("report.html", "rubric.md"))
    assert "<html" in page
    assert page.count("<img") == 2
    for section in (
        "true quality",
        "How the rubric came about",
        "Validity on a fixed mixture",
        "Before and after",
        "Reliability",
    ):
        assert section in page
    assert "template" not in re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.DOTALL)
    history = json.loads((folder / "rubric.json").read_text())["history"]
    rewrites = list(changes(history))
    assert text.count("```diff") == len(rewrites) > 0
    for _, before, after in rewrites:
        assert diff(before, after) in text


class Listed(WrittenPoints):
    """A judging of one's own: the judge replies with a list of points."""

    def read(self, reply, rubric):
        return json.loads(reply)


def reread(judging, given=None):
    """Return the judging of a rubric that was judged by another one in its run."""
    problem = MetaPolicyOptimization(TabularPolicy(RubricWorld(seed=0)))
    problem.judging = judging
    rubric = problem.policy.rubric
    text = to_json(problem, {"rubric": rubric, "history": [rubric]}, None, {})
    return SavedRubric(json.loads(text), problem.client, judging=given).judging


@pytest.mark.parametrize(
    "judging", [WrittenPoints(77, per_item=True), WrittenPoints(), YesNo((" Yes", " No"), "So:")]
)
def test_a_saved_rubric_is_judged_as_in_its_run(judging):
    again = reread(judging)
    assert type(again) is type(judging)
    assert again.to_dict() == judging.to_dict()


def test_a_judging_of_ones_own_is_not_replaced_by_another():
    with pytest.raises(ValueError, match=r"judged by Listed, which .* as judging= of load_rubric"):
        reread(Listed())
    assert isinstance(reread(Listed(), Listed()), Listed)


@pytest.mark.parametrize(
    ("reply", "points"),
    [("[3, -2]", [3, -2]), ("[0, 0]", [0, 0]), ("[6, 0]", None), ("[3]", None), ("[3, NaN]", None),
     ("[3, 1]", None), ("[3, -2, 0]", None), ("null", None)],
)  # fmt: skip
def test_a_judge_may_reply_in_a_form_of_its_own(reply, points):
    """What it states is held to the weights of the items, whoever reads it."""
    client = Client({"judge": SimulatedLM(lambda role, messages, key: reply)})
    rubric = render({"Is good": 5.0, "Flatters": -4.0}, free=True)
    (scores,) = Listed()(client, rubric, [("q", "r")])
    assert scores == (points and dict(zip(("Is good", "Flatters"), points, strict=True)))


@pytest.mark.parametrize(
    ("judging", "said"),
    [
        (WrittenPoints(), ".*sum in its last line.*per_item=true"),
        (WrittenPoints(per_item=True), "(?!.*per_item=true).*end with its points, between 0"),
        (YesNo(), r"(?!.*per_item=true).*one of \['Yes', 'No'\] a probability above 0"),
    ],
)
def test_the_error_of_a_judge_without_scores_says_what_was_asked(judging, said):
    pattern = f"judge: 9 of 9 rollouts have no score: {said}"
    assert re.match(pattern, str(not_understood(0, 9, judging)))


def test_a_diff_says_what_is_new_gone_and_changed():
    before = render({"depth": 5.0, "humour": 5.0, "padding": 5.0})
    after = render({"padding": -4.0, "depth": 5.0, "clarity": 1.25})
    assert diff(before, after).splitlines() == [
        "  depth: +5.00", "- humour: +5.00", "- padding: +5.00", "+ padding: -4.00",
        "+ clarity: +1.25",
    ]  # fmt: skip
    assert list(changes([before, before, after])) == [(3, before, after)]


def test_a_history_of_free_items_is_read_by_people():
    first = render({"Overall | quality": 5.0}, free=True)
    last = render({"Overall | quality": 5.0, "Cites.\n```\n[1]\n```": -2.0}, free=True)
    assert diff(first, last).splitlines() == [
        "  Overall | quality: +5.00", "+ Cites.: -2.00", "+     ```", "+     [1]", "+     ```",
    ]  # fmt: skip
    text = history_markdown([first, last])
    assert "| Overall \\| quality | +5.00 |" in text
    assert f"````text\n{last}\n````" in text


@pytest.mark.slow
def test_a_fixed_rubric_is_reported_as_one(metaopt, tmp_path):
    done = metaopt(*SMALL, "optimizer.proposer=null", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "last rubric: the first one" in done.out
    assert "The rubric was not changed." in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.slow
def test_another_judge_is_given_or_asked_for(run):
    folder, _ = run
    with pytest.warns(UserWarning, match="was judged by 'rubric-world-judge/3'"):
        other = load_rubric(folder / "rubric.json", SimulatedLM(lambda *_: "no", "other"))
    assert other.score([("q", "r")] * 2) == [None, None]
    record = json.loads((folder / "rubric.json").read_text())
    path = folder / "rubric.json"
    path.write_text(json.dumps({**record, "world": None}))
    with pytest.raises(ValueError, match="was judged by the model rubric-world-judge/3; give it"):
        load_rubric(folder)


@pytest.mark.slow
def test_a_damaged_file_is_refused(run):
    folder, _ = run
    path = folder / "rubric.json"
    record = json.loads(path.read_text())
    for change in (
        {"format": 2}, {"rubric": "be strict"}, {"world": {"seed": 1, "wit": 2}},
        {"provenance": {}}, {"rubric": None}, {"history": None},
        {"reference": ["a"]}, {"reference": [float("nan")]},
        {"reference": record["reference"][::-1]},
        {"rubric": record["rubric"].replace("- c", "- C")},  # a line that is an item no more
        {"rubric": record["rubric"].replace(": +5.00", ": +1.00")},
    ):  # fmt: skip
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match="holds no rubric of a run"):
            load_rubric(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no rubric of a run"):
        load_rubric(folder)
    with pytest.raises(FileNotFoundError, match=r"give the rubric\.json"):
        load_rubric(folder / "figures")
