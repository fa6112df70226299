"""`metaopt score`: files of every kind, the top share, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CURATION

from metaopt.cli.scoring import main
from metaopt.engine.random import generator
from metaopt.files.errors import FolderError
from metaopt.problems.data_curation import TextRows, text_world
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.rater_features import Bytes, NGrams
from metaopt.problems.domain_reweighting.rater_networks import MLP, Transformer
from metaopt.problems.domain_reweighting.rating import FILE, SavedRater, write_rater

TEXTS = ["bab", "aaa", "cac", "abc"]


class Columns(TextRows):
    text_columns = ("prompt", "answer")


def trained(folder: Path, rater: Rater, kind: type[TextRows] = TextRows) -> tuple[Rater, Any]:
    task = kind(text_world(5, 5, meta_size=4, test_size=4, unseen_size=6), models=2)
    rater.read(task, 2, torch.device("cpu"))
    phi = rater.init(torch.ones(1), task.domain, generator(0))
    phi = {k: v + 0.3 * torch.randn(v.shape, generator=generator(1)) for k, v in phi.items()}
    write_rater(folder / FILE, rater, phi, task, {"run": "a run"})
    return rater, phi


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    trained(folder, Rater(NGrams((1, 2), 16), MLP(4)))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().strip().split("\n")]


@pytest.mark.parametrize(
    "make", [lambda: Rater(NGrams((1,), 8), MLP(3)), lambda: Rater(Bytes(8), Transformer(4, 1, 2))]
)
def test_scores_are_those_of_the_rater_and_their_cdf_among_its_rows(tmp_path: Path, make: Any):
    rater, phi = trained(tmp_path, make())
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)))
    assert main([str(tmp_path), str(path)]) == 0
    rows = lines(tmp_path / "rows.scored.jsonl")
    training = rater.rate_features(phi, rater.rows)
    # By hand: one text after another, of each member by itself.
    for i, row in enumerate(rows):
        x = rater.prepared(rater.features(TEXTS))[i : i + 1]
        own = [float(rater.of_features({k: v[r] for k, v in phi.items()}, x)) for r in (0, 1)]
        assert row["score"] == pytest.approx(sum(own) / 2, rel=1e-5)
        assert row["score_cdf"] == pytest.approx(float((training <= row["score"]).float().mean()))
    assert [row["id"] for row in rows] == [0, 1, 2, 3]


def test_every_kind_of_file_has_the_same_scores(run: Path, tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"n": i, "text": t} for i, t in enumerate(TEXTS)]
    table = pa.table({"n": pa.array([0, 1, 2, 3], pa.int8()), "text": TEXTS})
    parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text("n,text\n" + "".join(f"{r['n']},{r['text']}\n" for r in rows))
    (tmp_path / "c.txt").write_text("\n".join(TEXTS) + "\n")
    for name in ("a.jsonl", "b.csv", "c.txt", "d.parquet"):
        assert main([str(run), str(tmp_path / name)]) == 0
    expected = [row["score"] for row in lines(tmp_path / "a.scored.jsonl")]
    assert len(set(expected)) == 4
    assert [row["score"] for row in lines(tmp_path / "c.scored.jsonl")] == expected
    written = (tmp_path / "b.scored.csv").read_text().splitlines()
    assert written[0] == "n,text,score,score_cdf"
    assert [float(line.split(",")[2]) for line in written[1:]] == expected
    scored = parquet.read_table(tmp_path / "d.scored.parquet")
    assert scored.schema.field("n").type == pa.int8()
    assert scored["score"].to_pylist() == expected


def test_the_top_share_is_written_in_the_order_of_the_file(run: Path, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXTS))
    assert main([str(run), str(path), "--columns", "text=body"]) == 0
    assert main([str(run), str(path), "--columns", "text=body", "--top", "0.5"]) == 0
    every, best = lines(tmp_path / "rows.scored.jsonl"), lines(tmp_path / "rows.top.jsonl")
    least = sorted(row["score"] for row in every)[2]
    assert best == [row for row in every if row["score"] >= least]


def test_several_columns_are_joined(tmp_path: Path):
    rater, phi = trained(tmp_path, Rater(NGrams((1,), 8), MLP(3)), Columns)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a?", "answer": "b"}) + "\n")
    main([str(tmp_path), str(path)])
    (row,) = lines(tmp_path / "rows.scored.jsonl")
    assert row["score"] == pytest.approx(float(rater.rate(phi, ["a?\nb"])))
    (tmp_path / "rows.txt").write_text("a\n")
    with pytest.raises(
        ValueError, match=r"this run reads prompt, answer\. Give a file of JSON lin"
    ):
        main([str(tmp_path), str(tmp_path / "rows.txt")])


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (
            '{"body": "a"}\n',
            [],
            "1 of 1 rows cannot be.*'text'; columns are body\n.*--columns text",
        ),
        ('{"text": "a"}\nnonsense\n', [], "1 of 2 rows cannot be scored:.*rows.jsonl:2"),
        ('{"text": null}\n', [], "no text in column 'text'"),
        ('{"text": "a", "score": 1}\n', [], "has a column 'score' already"),
        ('{"text": "a"}\n', ["--top", "0"], r"--top must be a share in \(0, 1\]; got 0"),
        ('{"text": "a"}\n', ["--columns", "txt=a"], "--columns knows text; got txt"),
        ('{"text": "a"}\n', ["--out", "x.csv"], "--out must end in .jsonl"),
        ("", [], "holds no record"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, content: str, more: list[str], message: str
):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        main([str(run), str(path), *more])
    assert not list(tmp_path.glob("*.scored.*"))


def test_other_folders_and_files_that_exist_are_refused(run: Path, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(
        ValueError, match=r"has nothing that scores rows: it needs one of rater\.safe"
    ):
        main([str(tmp_path), str(path)])
    with pytest.raises(ValueError, match="there is no folder"):
        main([str(tmp_path / "none"), str(path)])
    main([str(run), str(path)])
    with pytest.raises(ValueError, match=r"exists\. Delete it, or name another file with --out"):
        main([str(run), str(path)])
    (run / FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="holds no rater that this version reads"):
        main([str(run), str(path), "--out", str(tmp_path / "o.jsonl")])


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        (2, {}, "its format is 2, not 1"),
        (1, {"scores": torch.tensor([0.0, math.nan])}, "numbers that are not finite"),
        (1, {"phi.hidden.weight": torch.zeros(2, 7, 4)}, "no rater that this version reads"),
        (1, {"phi.weight": None}, "no rater that this version reads: 'weight'"),
    ],
)
def test_a_rater_that_is_another_than_it_says_is_refused(
    run: Path, format: int, change: Any, message: str
):
    from safetensors.torch import load_file, safe_open, save_file

    with safe_open(run / FILE, "pt") as file:
        about = json.loads(file.metadata()["rater"]) | {"format": format}
    tensors = {k: v for k, v in (load_file(run / FILE) | change).items() if v is not None}
    save_file(tensors, run / FILE, {"rater": json.dumps(about)})
    with pytest.raises(FolderError, match=message):
        SavedRater(run / FILE)


def test_only_a_line_break_ends_a_row_and_dots_belong_to_a_name(run: Path, tmp_path: Path):
    (tmp_path / "rows.v2.txt").write_text("a\u2028b\x0bc\r\n\r\nd", newline="")
    assert main([str(run), str(tmp_path / "rows.v2.txt")]) == 0
    rows = lines(tmp_path / "rows.v2.scored.jsonl")
    assert [row["text"] for row in rows] == ["a\u2028b\x0bc", "d"]


@pytest.mark.slow
def test_a_run_is_scored_with_from_the_command_line(metaopt: Any, tmp_path: Path):
    from metaopt.data.weights_file import read_example_weights

    done = metaopt("problem=domain_reweighting/text_world", *CURATION, "debug=tiny",
                   "hydra.run.dir=a_run")  # fmt: skip
    assert done.code == 0, done.err
    assert "metaopt score a_run FILE" in done.out
    world = text_world(20, 20, meta_size=40, test_size=20, unseen_size=60)
    Path("rows.txt").write_text("\n".join(world.texts))
    done = metaopt("score", "a_run", "rows.txt")
    assert done.code == 0, done.err
    known = read_example_weights(Path("a_run/weights.parquet"))
    scores = [row["score"] for row in lines(Path("rows.scored.jsonl"))]
    assert scores == pytest.approx(known.score.tolist(), rel=1e-4, abs=1e-5)
    assert sum(known.keep) == len(scores) // 2
    done = metaopt("score", "a_run", "none.jsonl")
    assert done.code == 1
    assert "there is no file none.jsonl" in done.err
    assert "Traceback" not in done.err
