"""`metaopt score` by a rubric that a language model follows, behind a server on this machine."""

from __future__ import annotations

import csv
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import Asked, Scripted, Served, completion, error

from metaopt.cli.scoring import main as score
from metaopt.files.errors import FolderError
from metaopt.llm import LMError
from metaopt.llm.rubric_items import parse_items
from metaopt.problems.meta_policy_optimization.item_scores import read_weights, render

pytestmark = pytest.mark.slow

RUBRIC = render({"Answers what is asked.\n5: fully.": 5.0, "Flatters": -2.0}, free=True)
BASE = {"name": "a", "seed": 0, "outer_steps": 3, "problem": {"roles": {}}}
ROWS = [{"prompt": f"question {i}", "response": f"answer {i}", "n": i} for i in range(6)]


def points(asked: Asked) -> list[int]:
    text = asked.text
    return [
        (zlib.crc32(f"{item.text}{text}".encode()) % 3) * (1 if item.points > 0 else -1)
        for item in parse_items(text)
    ]


def answer(asked: Asked) -> Served:
    if "answer 3" in asked.text:
        return completion("I cannot say.")
    given = points(asked)
    lines = [f"Item {i}: {each}" for i, each in enumerate(given, 1)]
    return completion("\n".join([*lines, f"Total: {sum(given)}"]))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.llm.pace._backoff", lambda state: 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, as far as its rubric goes, and a file of rows."""
    record = {
        "format": 1, "rubric": RUBRIC, "items": dict(read_weights(RUBRIC)), "history": [RUBRIC],
        "validity": None, "reference": [], "world": None, "yes_no": None, "per_item": False,
        "provenance": {"models": {"judge": "judge"}},
    }  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "rubric.json").write_text(json.dumps(record))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def judge(server: Scripted, *more: str) -> list[str]:
    words = ["model=m", f"base_url={server.url}", "key_variable=null", "name=judge", *more]
    return ["--llm", "openai_compatible", *words, "--limits", "lm_calls=6"]


def config(folder: Path, **fields: Any) -> None:
    """Write who judged in the run."""
    node = {"_target_": "metaopt.llm.openai_compatible.OpenAICompatibleLM", "model": "m"}
    roles = {"judge": {**node, "key_variable": None, "name": "judge", **fields}}
    problem = {"_target_": "metaopt.problems.x", "roles": roles}
    (folder / "config.yaml").write_text(yaml.safe_dump({**BASE, "problem": problem}))


def scored(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_scored_by_a_model_and_answers_are_paid_for_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "rows.scored.jsonl"
    down = True

    def script(asked: Asked) -> Served:
        fails = "answer 5" in asked.text and down
        return error(500, "out of order") if fails else answer(asked)

    with Scripted(script) as server:
        with pytest.raises(ValueError, match=r"budget of 6 lm_requests.*: 2 of 6 rows have no sc"):
            score([str(run), str(file), *judge(server)])
        more = [*judge(server), "lm_requests=30"]
        with pytest.raises(LMError, match="1 of 6 requests failed"):
            score([str(run), str(file), *more])
        assert not out.exists()
        asked = server.counts
        assert sum(asked.values()) > len(asked) == 6
        down = False
        assert score([str(run), str(file), *more]) == 0
        assert sum(server.counts.values()) == sum(asked.values()) + 1  # the one that had failed
        by_text = {each.text: sum(points(each)) for each in server.log}
    rows = scored(out)
    assert [row["n"] for row in rows] == list(range(6))
    for row in rows:
        (question,) = [t for t in by_text if f"Task: {row['prompt']}\n" in t]
        assert f"Response:\n{row['response']}" in question
        assert row["score"] == (None if row["n"] == 3 else by_text[question])
        assert row["score_cdf"] is None  # the run measured its rubric on nothing
    said = capsys.readouterr().out
    assert "6 rows; 1 have no score" in said
    assert (tmp_path / "rows.scored.jsonl.cassette").exists()


def test_the_top_share_is_of_what_has_a_score_and_tables_leave_the_rest_empty(
    run: Path, tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response", "n"])
        writer.writeheader()
        writer.writerows(ROWS[2:5])
    with Scripted(answer) as server:
        assert score([str(run), str(table), *judge(server)]) == 0
        assert score([str(run), str(table), "--top", "0.5", *judge(server)]) == 0
    every = list(csv.DictReader((tmp_path / "rows.scored.csv").read_text().splitlines()))
    assert [row["score"] == "" for row in every] == [False, True, False]
    (best,) = csv.DictReader((tmp_path / "rows.top.csv").read_text().splitlines())
    assert float(best["score"]) == max(float(row["score"]) for row in every if row["score"])


def test_the_judge_of_the_run_is_asked_where_it_is_on_this_machine(
    run: Path, tmp_path: Path
) -> None:
    with Scripted(answer) as server:
        config(run, base_url=server.url)
        file = str(tmp_path / "rows.jsonl")
        with pytest.raises(
            ValueError, match=r"take 6 calls of it: allow .* --limits lm_calls=6 lm_requests=12"
        ):
            score([str(run), file])
        with pytest.raises(ValueError, match=r"take 6 calls of it: allow them"):
            score([str(run), file, "--limits", "lm_calls=5"])
        assert server.log == []
        assert score([str(run), file, "--limits", "lm_calls=6"]) == 0
        assert len(server.log) == 6
    for fields in ({"base_url": "https://example.com/v1"}, {"_target_": "os.system"}):
        config(run, **fields)
        with pytest.raises(FolderError, match=r"not asked unless you name it: .*judge"):
            score([str(run), file, "--out", str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "was judged by the model judge"),
        (["--llm", "openai_compatibel"], "openai_compatible"),
        (["--llm", "openai_compatible"], r"llm\.model must be given"),
        (["--llm", "openai_compatible", "m"], "words KEY=VALUE, .*; got m"),
        (["--llm", "openai_compatible", "model=m", "nmae=j"], "llm.nmae"),
        (["--llm", "criteria"], "is no language model"),
        (["--limits", "lm_calls=many"], "--limits needs UNIT=AMOUNT"),
    ],
)
def test_a_mistake_is_a_sentence(run: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(ValueError, match=said):
        score([str(run), str(tmp_path / "rows.jsonl"), *words])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl", "run"]


def test_what_no_reply_states_is_no_score(run: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text(json.dumps(ROWS[3]) + "\n")
    with Scripted(answer) as server, pytest.raises(ValueError, match="no reply states the points"):
        score([str(run), str(tmp_path / "few.jsonl"), *judge(server)])
    assert not (tmp_path / "few.scored.jsonl").exists()


def test_a_file_without_prompts_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("answer\n")
    with Scripted(answer) as server:
        with pytest.raises(ValueError, match="this run reads prompt, response"):
            score([str(run), str(tmp_path / "rows.txt"), *judge(server)])
        (tmp_path / "a.jsonl").write_text('{"response": "a"}\n')
        with pytest.raises(ValueError, match="no text in column 'prompt'"):
            score([str(run), str(tmp_path / "a.jsonl"), *judge(server)])
        assert server.log == []
