"""Weights as parquet, and the hashes that join them to data."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest

from metaopt.data.records import records
from metaopt.data.weights_file import (
    ExampleWeights,
    content_hash,
    identify,
    read_example_weights,
    write_weights,
)


def weights(path, values=(0.5, 1.5), **changes):
    path.write_text('{"prompt": "a", "n": 1}\n\n{"prompt": "b"}\n')
    content = ExampleWeights(
        identify(records(path), ("prompt",)), np.array(values), np.array([np.nan, 2.0]),
        np.array([False, True]), ["x", "y"], ("prompt",), {"run": "runs/1", "commit": None},
    )  # fmt: skip
    return content._replace(**changes)


def test_a_hash_is_that_of_the_json_and_ignores_how_data_sets_store_values():
    said = {"role": "user", "content": "hi"}
    text = json.dumps({"messages": [said], "n": 1}, sort_keys=True)
    expected = sha256(text.encode()).digest()[:16]
    row = {"n": True, "messages": [said | {"tool_calls": None}], "other": 3, "missing": None}
    columns = ("messages", "n", "missing")
    assert content_hash(row, columns) == expected
    assert content_hash({"messages": np.array([said]), "n": np.float32(1)}, columns) == expected
    assert content_hash({"messages": [said], "n": 2}, columns) != expected
    with pytest.raises(ValueError, match="has none of the columns to hash, prompt; it has text"):
        content_hash({"text": "a"}, ("prompt",))
    with pytest.raises(ValueError, match="column 'image' holds a bytes"):
        content_hash({"image": b"x"}, ("image",))


def test_weights_survive_the_file(tmp_path):
    content = weights(tmp_path / "rows.jsonl")
    write_weights(tmp_path / "weights.parquet", content)
    again = read_example_weights(tmp_path / "weights.parquet")
    assert again.examples == list(content.examples)
    assert [x.row for x in again.examples] == [1, 3]
    assert again.examples[0].id == "rows.jsonl:1"
    assert again.weight.tolist() == [0.5, 1.5]
    assert np.isnan(again.score[0])
    assert again.score[1] == 2
    assert again.keep.tolist() == [False, True]
    assert again.domain == ["x", "y"]
    assert again.columns == ["prompt"]
    assert again.origin == {"run": "runs/1", "commit": None}


def test_what_is_no_weight_is_refused(tmp_path):
    rows, path = tmp_path / "rows.jsonl", tmp_path / "weights.parquet"
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"finite and >= 0; 1 of 2 .* at position 1"):
            write_weights(path, weights(rows, (1.0, bad)))
    with pytest.raises(ValueError, match="2 examples have 1 of domain"):
        write_weights(path, weights(rows, domain=["x"]))
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=r"no file of weights .*figures=false"):
        read_example_weights(path)
    path.write_text("no parquet")
    with pytest.raises(ValueError, match="is no file of weights"):
        read_example_weights(path)


def test_rows_of_files_of_one_name_have_different_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text('{"text": "x"}\n')
    every = [*records(tmp_path), *records(tmp_path / "b")]
    one, two, again = identify(every, ("text",))
    assert (one.id, two.id) == tuple(f"{tmp_path}/{x}/train.jsonl:1" for x in "ab")
    assert again.id == f"{two.id} (2)"
    assert one.file == two.file == "train.jsonl"
