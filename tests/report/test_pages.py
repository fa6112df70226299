"""The pages of a report: self-contained, escaped, linked to each other."""

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from run_folders import REPORT, write_run

from metaopt.report.command import main
from metaopt.report.page import Gallery, Heading, Links, Sortable, Verbatim, page
from metaopt.report.table import Table

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"
RUNS = [(row, seed) for row in ("better", "plain") for seed in range(2)]
VOID = {"meta", "img"}


class Parsed(HTMLParser):
    """A page, of which every tag must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "srcset", "data", "action"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;")
        if "href" in attributes:
            assert tag == "a"
            assert attributes["href"].startswith("./")
            self.links.append(unquote(attributes["href"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pages(folder):
    return {path: Parsed(path.read_text()) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    sweep = tmp_path_factory.mktemp("sweep")
    for row, seed in RUNS:
        write_run(sweep / f"{row}-{seed}", seed, row, report=REPORT)
    (sweep / "plain-0" / "outer.txt").write_text(EVIL)
    (sweep / "better-1" / "weights.csv").touch()
    assert main([str(sweep)]) == 0
    return sweep / "report", pages(sweep / "report")


def test_there_is_a_page_of_the_experiment_and_one_of_each_run(reported):
    folder, made = reported
    runs = [f"{row}-{seed}" for row, seed in RUNS]
    assert list(made) == [folder / "index.html", *(folder / "runs" / f"{r}.html" for r in runs)]
    for path, parsed in made.items():
        for link in parsed.links:
            assert Path(os.path.normpath(path.parent / link)).is_file()
    assert {f"./runs/{run}.html" for run in runs} == set(made[folder / "index.html"].links)
    assert "./../index.html" in made[folder / "runs" / "plain-0.html"].links
    assert "./../../better-1/weights.csv" in made[folder / "runs" / "better-1.html"].links


def test_the_experiments_page_has_tables_figures_commands_and_provenance(reported):
    folder, made = reported
    index = made[folder / "index.html"]
    for words in ("Two methods", "Paired differences", "accuracy, %", "commit", "torch", "abc"):
        assert words in index.text
    assert index.text.count("metaopt seed=1") == 2
    assert index.tags.count("img") == 1 + 2
    assert index.tags.count("script") == 1


def test_what_a_model_wrote_stays_text(reported):
    folder, made = reported
    run = made[folder / "runs" / "plain-0.html"]
    assert EVIL in run.text
    assert run.tags.count("script") == 1, "the one that sorts"


def test_configs_overrides_errors_and_metrics_stay_text(tmp_path):
    report = {"title": EVIL, "labels": {"eval/accuracy": EVIL}, "metrics": ["eval/accuracy"]}
    metrics = {"eval/accuracy": 0.5, EVIL: 1.0}
    for seed in range(2):
        write_run(
            tmp_path / f"a<b>{seed}", seed, EVIL, [f"x={EVIL}"], report=report, commit=EVIL,
            metrics=metrics, versions={EVIL: EVIL}, budget={EVIL: 1.0},
        )  # fmt: skip
    (write_run(tmp_path / "failed", 2) / "result.json").unlink()
    (tmp_path / "failed" / "error.log").write_text(f"ValueError: {EVIL}\n")
    assert main([str(tmp_path)]) == 0
    for parsed in pages(tmp_path / "report").values():
        assert set(parsed.tags) <= {
            "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "a",
            "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption",
            "details", "summary", "pre", "script",
        }  # fmt: skip
        assert (parsed.tags.count("script"), parsed.text.count("alert(1)") > 2) == (1, True)


def test_a_link_is_never_a_scheme():
    text = page("x", [Links([("<i>", "javascript:alert(1)")])], Path())
    assert '<a href="./javascript%3Aalert%281%29">&lt;i&gt;</a>' in text


def test_the_policy_names_the_only_script_by_its_hash():
    table = Table(["method", "value"], [["a", "1"]])
    with_script, without = (
        page("x", [block], Path()) for block in (Sortable(table, ["a b.html"]), Heading("y"))
    )
    assert len(re.findall(r"script-src 'sha256-[\w+/=]{44}'", with_script)) == 1
    assert '<td><a href="./a%20b.html">a</a></td><td class="number">1</td>' in with_script
    assert "script" not in without


def test_a_picture_is_as_wide_as_it_was_drawn():
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (320).to_bytes(4, "big") + bytes(20)
    assert 'width="192"' in page("x", [Gallery([(png, "y")]), Verbatim("z")], Path())


@pytest.mark.slow
def test_the_report_of_one_run_and_one_elsewhere(tmp_path):
    run = write_run(tmp_path / "run", 0, "plain", ["problem=ridge"], report=REPORT)
    assert main([str(run)]) == 0
    assert set(pages(run / "report")) == {
        run / "report" / name for name in ("index.html", "runs/run.html")
    }
    assert main([str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    (moved,) = (tmp_path / "elsewhere" / "runs").glob("*.html")
    assert Parsed(moved.read_text()).links == ["./../index.html"], "what would go along"


@pytest.mark.slow
def test_a_run_without_figures_has_its_curves_on_its_page(reported):
    folder, made = reported
    run = made[folder / "runs" / "plain-0.html"]
    assert "Learning curves" in run.text
    assert run.tags.count("img") == 1
    assert not (folder.parent / "plain-0" / "figures").exists()


@pytest.mark.slow
def test_curves_are_drawn_again_when_the_log_is_newer(tmp_path):
    run = write_run(tmp_path / "plain", 0, "plain", report=REPORT)
    curves = tmp_path / "report" / "runs" / "plain" / "learning_curves.png"
    times = []
    for change in (0, 0, 60):
        drawn = curves.stat().st_mtime if curves.exists() else 0
        if change:
            os.utime(run / "metrics.jsonl", (drawn + change, drawn + change))
        assert main([str(tmp_path)]) == 0
        times.append(curves.stat().st_mtime_ns)
    assert times[0] == times[1] != times[2]


@pytest.mark.slow
def test_pages_of_runs_that_are_gone_are_removed(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "a&b" / f"plain {seed}", seed, "plain", report=REPORT)
    write_run(tmp_path / "later" / "plain", 3, "plain", report=REPORT)
    assert main([str(tmp_path)]) == 0
    runs = tmp_path / "report" / "runs"
    (runs / "mine.html").write_text("not of a report")
    for name in ("a&b/plain 1", "later/plain"):
        shutil.rmtree(tmp_path / name)
    assert main([str(tmp_path)]) == 0
    left = sorted(str(p.relative_to(runs)) for p in runs.rglob("*"))
    kept = [f"a&b/plain {seed}{end}" for seed in (0, 2)
            for end in ("", ".html", "/learning_curves.png")]  # fmt: skip
    assert left == sorted(["a&b", *kept, "mine.html"])


def test_a_long_name_of_a_run_is_cut(tmp_path):
    name = ",".join(f"key{i}=value" for i in range(20))
    write_run(tmp_path / name, 0, "plain")
    assert main([str(tmp_path)]) == 0
    (path,) = (tmp_path / "report" / "runs").glob("*.html")
    assert len(path.name) < 70
