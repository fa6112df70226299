"""Weights joined to data by content."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from metaopt.data.records import records
from metaopt.data.weights_file import Example, ExampleWeights, identify, write_weights
from metaopt.trainers import attach

pytestmark = pytest.mark.slow  # it imports datasets

WEIGHTS = [0.0, 2.5, 0.5, 1.0]
ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}", "n": i} for i in range(4)]


@pytest.fixture
def file(tmp_path):
    source, path = tmp_path / "rows.jsonl", tmp_path / "weights.parquet"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write(path, identify(records(source), ("prompt", "completion")), WEIGHTS)
    return path


def write(path, examples, weights, columns=("prompt", "completion")):
    n = len(weights)
    nans = np.full(n, np.nan)
    content = ExampleWeights(
        examples, np.array(weights), nans, np.ones(n, bool), [""] * n, columns, {}
    )
    write_weights(path, content)


def data(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def weighted(dataset):
    return {row["n"]: row["weight"] for row in dataset}


def test_shuffled_filtered_and_duplicated_rows_keep_their_weights(file):
    all_rows = attach(data(ROWS), file, drop_zero=False)
    assert all_rows["weight"][:] == WEIGHTS
    several = data([ROWS[i] for i in (3, 1, 2, 1, 0)]).shuffle(seed=0)
    assert weighted(attach(several, file)) == {1: 2.5, 2: 0.5, 3: 1.0}
    assert len(attach(several, file)) == 4
    assert weighted(attach(several.filter(lambda row: row["n"] > 1), file)) == {2: 0.5, 3: 1.0}
    changed = [row | {"n": -row["n"], "more": "x"} for row in ROWS]
    assert weighted(attach(data(changed), file)) == {-1: 2.5, -2: 0.5, -3: 1.0}


def test_rows_of_a_json_file_as_datasets_stores_them_are_the_same(tmp_path):
    from datasets import load_dataset

    said = {"role": "user", "content": "hi"}
    rows = [
        {"messages": [said], "n": 1, "labels": [True, 1]},
        {"messages": [said, said | {"tool": "x"}], "n": 1.5, "labels": []},
        {"messages": [], "labels": None},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("messages", "n", "labels")
    write(tmp_path / "w.parquet", identify(records(source), columns), [0.5, 1.0, 1.5], columns)
    read = load_dataset("json", data_files=str(source), split="train", cache_dir=str(tmp_path))
    assert attach(read, tmp_path / "w.parquet")["weight"][:] == [0.5, 1.0, 1.5]
    as_tensors = read.remove_columns("messages").with_format("numpy")
    with pytest.raises(ValueError, match="has no column messages, which the hashes are over"):
        attach(as_tensors, tmp_path / "w.parquet")


def test_renamed_columns_are_named(file):
    renamed = data(ROWS).rename_column("prompt", "question")
    names = {"prompt": "question", "completion": "completion"}
    assert weighted(attach(renamed, file, names)) == {1: 2.5, 2: 0.5, 3: 1.0}
    with pytest.raises(ValueError, match=r"4 of 4 rows .* has no column prompt"):
        attach(renamed, file)
    with pytest.raises(ValueError, match="are over prompt, completion; got columns prompt"):
        attach(data(ROWS), file, ["prompt"])
    with pytest.raises(ValueError, match="over prompt, completion, and the data set has text"):
        attach(data([{"text": "a"}]), file)


def test_rows_without_a_weight_are_refused_with_an_example_or_left_out(file):
    new = [*ROWS, {"prompt": "new", "completion": "row", "n": 9}]
    with pytest.raises(ValueError, match=r"1 of 5 rows have no weight .* row 4: .*'new'.*drop"):
        attach(data(new), file)
    assert weighted(attach(data(new), file, missing="drop")) == {1: 2.5, 2: 0.5, 3: 1.0}
    changed = [row | {"completion": row["completion"] + "</s>"} for row in ROWS]
    with pytest.raises(ValueError, match=r"4 of 4 rows .* before a template"):
        attach(data(changed), file)
    with pytest.raises(ValueError, match="no row of the data set has a weight above 0"):
        attach(data(ROWS[:1]), file)
    with pytest.raises(ValueError, match="missing must be one of error, drop; got 'ignore'"):
        attach(data(ROWS), file, missing="ignore")


def test_other_kinds_of_data_are_refused(file):
    from datasets import DatasetDict

    with pytest.raises(ValueError, match="one split of a data set; give one of train"):
        attach(DatasetDict(train=data(ROWS)), file)
    with pytest.raises(ValueError, match="got IterableDataset"):
        attach(data(ROWS).to_iterable_dataset(), file)
    with pytest.raises(ValueError, match="a column 'weight' already"):
        attach(attach(data(ROWS), file), file)


def test_equal_rows_share_the_mean_of_their_weights(tmp_path):
    path = tmp_path / "weights.parquet"
    (digest,) = {x.hash for x in identify_row(ROWS[0], tmp_path)}
    write(path, [Example(f"{i}", digest, "", i) for i in range(2)], [0.5, 1.5])
    assert attach(data(ROWS[:1]), path)["weight"][:] == [1.0]


def identify_row(row, folder):
    source = folder / "row.jsonl"
    source.write_text(json.dumps(row) + "\n")
    return identify(records(source), ("prompt", "completion"))


def test_values_of_csv_are_texts_and_the_error_says_how_to_read_them(tmp_path):
    from datasets import Dataset, load_dataset

    source, file = tmp_path / "rows.csv", tmp_path / "weights.parquet"
    source.write_text("prompt,completion\n7 * 6,42\n1 / 2,0.50\nnone,NA\n")
    write(file, identify(records(source), ("prompt", "completion")), [0.5, 1.0, 1.5])
    parsed = load_dataset("csv", data_files=str(source), split="train", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"Values of csv are texts .*csv\.DictReader\(open"):
        attach(parsed, file)
    with source.open(newline="") as opened:
        read = Dataset.from_list(list(csv.DictReader(opened)))
    assert attach(read, file)["weight"][:] == [0.5, 1.0, 1.5]
