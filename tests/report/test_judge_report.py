"""The report of a calibrated judge: its files, what they say and what they must not hold."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from metaopt.metrics.calibration import CalibratedJudge, compare, measure
from metaopt.problems.template_evolution.figures import draw_evolution
from metaopt.problems.template_evolution.report_files import write_report
from metaopt.report.judge_report import Judged, verdict
from metaopt.report.page import Table, Verbatim, markdown

RANGE = (1.0, 10.0)
FIRST = "Score 1-10.\n- fluency: 3.0\n```\n<b>bold</b> | a & b\n````"
BEST = "Score 1-10.\n- specificity: 3.0 <script>alert(1)</script>"
EVOLUTION = [(0, 0.31), (1, 0.29), (1, 0.35), (2, float("nan")), (3, 0.21)]
WEIGHTS = [
    (0, {"fluency": 3.0}), (1, {"fluency": 2.0, "units": 0.5}), (2, {"units": 1.0}),
    (3, {"units": 3.0}),
]  # fmt: skip
PROVENANCE = {"judge": "simulated", "data": {"rows": 400}, "note": "a|b <i>c</i> [d](e)"}


def rows(seed, n=400):
    draw = np.random.default_rng(seed)
    outcomes = (draw.random(n) < 0.3).astype(int)
    scores = [
        np.clip(np.round(2 * (4 + gap * outcomes + 1.2 * draw.normal(size=n))) / 2, *RANGE)
        for gap in (0.2, 2.5)
    ]
    scores[1][:7] = np.nan
    return outcomes, [f"query-{i // 4}" for i in range(n)], *scores


def held_out(outcomes, queries, *scores):
    return [Judged(queries, outcomes, each) for each in scores]


@pytest.fixture(scope="module")
def judges():
    outcomes, _, first, best = rows(0)
    return (
        CalibratedJudge.fit(FIRST, first, outcomes, RANGE),
        CalibratedJudge.fit(BEST, best, outcomes, RANGE),
    )


@pytest.fixture(scope="module")
def written(judges, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    paths = write_report(
        folder, judges, held_out(*rows(1)), EVOLUTION, PROVENANCE, "A <judge>", "brier", WEIGHTS
    )
    return folder, paths


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps cells, verbatim texts and images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.cells, self.verbatim, self.images = [], set(), [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "pre":
            self.verbatim.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] == "pre":
            self.verbatim[-1] += data


def markdown_cells(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if "---" not in line]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for row in cells for cell in row]


def test_files_are_those_returned(written):
    folder, paths = written
    result = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert result == {
        "judge.json", "report.md", "report.html", "figures/reliability.png",
        "figures/evolution.png",
    }  # fmt: skip
    assert {str(p.relative_to(folder)) for p in paths} == result


def test_judge_json_restores_the_judge_and_holds_the_measured_numbers(written, judges):
    record = json.loads((written[0] / "judge.json").read_text())
    first, best = judges
    assert CalibratedJudge.from_dict(record["judge"]) == best
    assert CalibratedJudge.from_dict(record["first"]["judge"]) == first
    outcomes, queries, *scores = rows(1)
    assert record["held_out"] == measure(best, scores[1], outcomes, queries)
    assert record["first"]["held_out"] == measure(first, scores[0], outcomes, queries)
    assert record["difference"] == compare(first, scores[0], best, scores[1], outcomes, queries)
    assert record["provenance"] == PROVENANCE


def test_page_is_closed_self_contained_and_inert(written):
    folder, _ = written
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "b", "i", "link", "iframe"}
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    images = [base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.images]
    assert images == [
        (folder / "figures" / name).read_bytes() for name in ("reliability.png", "evolution.png")
    ]


def test_markdown_and_html_say_the_same(written):
    folder, _ = written
    text = (folder / "report.md").read_text()
    page = Page((folder / "report.html").read_text())
    assert [cell.strip() for cell in page.cells] == markdown_cells(text)
    assert [verbatim.lstrip("\n") for verbatim in page.verbatim] == [BEST, FIRST]
    assert f"```text\n{BEST}\n```" in text
    assert f"`````text\n{FIRST}\n`````" in text
    assert text.startswith("# A \\<judge\\>\n")


def test_table_sets_first_and_best_side_by_side(written):
    folder, _ = written
    record = json.loads((folder / "judge.json").read_text())
    before, after = record["first"]["held_out"], record["held_out"]
    text = (folder / "report.md").read_text()
    for side in (before, after):
        bounds = f"({side['auroc_low']:.3f} to {side['auroc_high']:.3f})"
        assert f"| {side['auroc']:.3f} {bounds} |" in text
    assert f"{record['difference']['auroc']:+.3f}" in text
    assert f"| best | {after['tp']:.0f} | {after['fp']:.0f} |" in text
    assert f"| coverage | 1.000 | {393 / 400:.3f} |" in text
    assert "better than the first in AUROC, Brier score and kappa" in text
    assert "0.31 at step 0, 0.21 at its lowest, at step 3, each" in text
    assert "Not drawn, for want of a finite objective: 1." in text


def test_partial_coverage_is_said_beside_every_figure(written):
    text = (written[0] / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    figures = [row for row in rows if re.search(r"\d\.\d{3} \(", row)]
    assert len(figures) == 6 + 3
    assert all(row.endswith((" 400 / 393 / 393 of 400 |", " 393 of 400 |")) for row in figures)
    decisions = [row for row in rows if row.startswith(("| first |", "| best |"))]
    assert [row.split("|")[-2].strip() for row in decisions] == ["400 of 400", "393 of 400"]
    left_out = "400 of 400 rows have one under the first template, 393 of 400 under the best."
    assert text.count(left_out) == 2, "after the verdict, and below the figure"


def test_full_coverage_needs_no_words(judges, tmp_path):
    outcomes, queries, first, _ = rows(1, n=80)
    write_report(tmp_path, judges, held_out(outcomes, queries, first, first), EVOLUTION, {})
    text = (tmp_path / "report.md").read_text()
    assert "of 80" not in text
    assert "left out:" not in text


@pytest.mark.slow
def test_the_objective_says_which_examples_it_leaves_out(judges, tmp_path):
    for coverage, said in ((0.93, True), (1.0, False), (None, False)):
        write_report(tmp_path, judges, held_out(*rows(1, n=80)), EVOLUTION, {}, coverage=coverage)
        text = (tmp_path / "report.md").read_text()
        assert ("of which a template had up to 7 %" in text) is said


def test_no_row_is_in_the_report(written):
    for path in written[1]:
        assert b"query-" not in path.read_bytes()


def difference(**ends):
    names = {
        f"{name}_{end}": 1.0 for name in ("auroc", "brier", "kappa") for end in ("low", "high")
    }
    return names | ends


def test_verdict_says_when_the_interval_includes_0():
    result = verdict(difference(auroc_low=-0.01, brier_low=-2.0, brier_high=-1.0))
    assert "better than the first in Brier score and kappa:" in result
    assert "includes 0 for AUROC:" in result
    assert "worse than the first in Brier score:" in verdict(difference())
    assert "too few queries to compare kappa." in verdict(
        difference(kappa_low=None, kappa_high=None)
    )


def test_equal_scores_are_not_told_apart(judges, tmp_path):
    outcomes, queries, first, _ = rows(1, n=80)
    other = CalibratedJudge(BEST, judges[0].threshold, judges[0].knots, RANGE)
    examples = held_out(outcomes, queries, first, first)
    write_report(tmp_path, (judges[0], other), examples, [], {})
    text = (tmp_path / "report.md").read_text()
    assert "includes 0 for AUROC, Brier score and kappa:" in text
    assert "Evolution" not in text
    assert not (tmp_path / "figures" / "evolution.png").exists()


def test_an_unreplaced_first_template_is_said_to_be_one(judges, tmp_path):
    outcomes, queries, first, _ = rows(1, n=80)
    examples = held_out(outcomes, queries, first, first)
    write_report(tmp_path, (judges[0], judges[0]), examples, EVOLUTION[:1], {})
    assert "nothing that was tried replaced it" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("outcomes", "scores"),
    [([0, 0, 0], [2.0, 5.0, 5.0]), ([0, 1, 1], [None, None, None]), ([0, 1, 1], [3.0, None, 4.0])],
)
def test_rows_that_say_little_still_make_a_report(judges, tmp_path, outcomes, scores):
    examples = held_out(outcomes, [1, 2, 3], scores, scores)
    write_report(tmp_path, judges, examples, [(0, float("inf"))], {}, weights=[(0, {"units": 1.0})])
    text = (tmp_path / "report.md").read_text()
    assert "not defined" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert not (tmp_path / "figures" / "evolution.png").exists()
    assert json.loads((tmp_path / "judge.json").read_text())["held_out"]["n"] == 3


def test_figures_show_what_they_are_given(judges, tmp_path, written):
    plain = tmp_path / "plain"
    write_report(plain, judges, held_out(*rows(1, n=80)), EVOLUTION, {})
    with_weights = imread(written[0] / "figures" / "evolution.png")
    without = imread(plain / "figures" / "evolution.png")
    assert with_weights.shape[0] > 1.8 * without.shape[0]
    for image in (with_weights, without, imread(plain / "figures" / "reliability.png")):
        assert image[..., :3].std() > 0.05


def test_weights_are_drawn_at_their_steps(tmp_path, monkeypatch):
    drawn = []
    step = Axes.step
    monkeypatch.setattr(
        Axes, "step", lambda *args, **options: drawn.append(args[1:]) or step(*args, **options)
    )
    tried = [(1, float("inf")), (5, 0.5), (10, 0.3)]
    draw_evolution(tried, "brier", [(5, {"a": 1.0}), (10, {"a": 2.0})], tmp_path / "figure.png")
    drawn = [(x.tolist(), y.tolist()) for x, y in drawn]
    assert drawn == [([5, 10, 10.5], [0.5, 0.3, 0.3]), ([5, 10, 10.5], [1, 2, 2])]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_provenance_that_is_not_json_is_refused_before_anything_is_written(judges, tmp_path, value):
    with pytest.raises(ValueError, match="provenance must hold JSON values"):
        write_report(tmp_path, judges, held_out(*rows(1)), EVOLUTION, {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_marks_of_markdown_are_escaped():
    text = markdown("*a*", [Table(("h",), [["x | `y`\nz [l](u) _e_ in_word"]]), Verbatim("")])
    assert r"# \*a\*" in text
    assert r"| x \| \`y\` z \[l\](u) \_e\_ in_word |" in text
