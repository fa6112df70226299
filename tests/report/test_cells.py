import csv
import json

import pytest
import yaml
from run_folders import REPORT, accuracy, write_run

from metaopt.report.command import main

HERE = {
    "hardware": {"cpu": "some", "cpu_capability": "AVX2", "threads": 1},
    "versions": {"torch": "2.13"},
}
ELSEWHERE = {**HERE, "hardware": {"cpu": "other", "cpu_capability": "AVX512", "threads": 1}}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table.csv of two methods on three seeds."""
    sweep = tmp_path_factory.mktemp("sweep")
    for row in ("plain", "better"):
        for seed in range(3):
            write_run(sweep / f"{row}-{seed}", seed, row, report=REPORT, **HERE)
    assert main([str(sweep)]) == 0
    return sweep / "report" / "table.csv"


def again(folder, shift=0.0, seed=1, machine=HERE, **result):
    """One of its cells, recomputed."""
    value = float(accuracy("plain", seed)) + shift
    metrics = {"eval/accuracy": value, "eval/loss": 1 - value, "outer/loss": 0.1}
    overrides = {"metrics": metrics, **machine, **result}
    return write_run(folder, seed, "plain", report=REPORT, **overrides)


def check(folder, table, capsys):
    capsys.readouterr()
    code = main([str(folder), "--check", str(table)])
    return code, *capsys.readouterr()


def test_a_cell_names_the_machine_it_was_made_on(table):
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    for row in rows:
        assert [row[k] for k in ("cpu", "cpu_capability", "threads", "torch", "device")] == [
            "some", "AVX2", "1", "2.13", "cpu",
        ]  # fmt: skip


def test_on_the_same_machine_cells_are_equal_to_the_bit(table, tmp_path, capsys):
    code, out, _ = check(again(tmp_path / "same"), table, capsys)
    assert code == 0
    assert f"1 cells of {table}: 1 to the bit, on the machine that they record: all as" in out
    code, out, err = check(again(tmp_path / "off", 1e-15), table, capsys)
    assert code == 1
    assert "off: plain, seed 1, eval/accuracy: " in err
    assert "2 numbers are off" in out  # the accuracy and the loss


def test_a_gpu_is_another_machine_and_one_that_says_nothing_too(table, tmp_path, capsys):
    gpu = {**HERE, "hardware": {**HERE["hardware"], "gpus": ["NVIDIA H200"]}}
    for name, machine, device in (("gpu", gpu, "cuda"), ("none", {"hardware": {}}, "cpu")):
        folder = again(tmp_path / name, 1e-6, machine=machine)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "device": device}))
        code, out, _ = check(folder, table, capsys)
        assert (code, "1 within 3 standard deviations" in out) == (0, True)


def test_on_another_machine_within_what_seeds_differ_by(table, tmp_path, capsys):
    code, out, _ = check(again(tmp_path / "near", 0.005, machine=ELSEWHERE), table, capsys)
    assert code == 0
    assert "1 within 3 standard deviations of their method over seeds or 1%, on another" in out
    code, _, err = check(again(tmp_path / "far", 0.2, machine=ELSEWHERE), table, capsys)
    assert code == 1
    assert "eval/accuracy: " in err
    assert " ± " in err


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"budget": {"gradients": 101.0}}, "budget/gradients: 100.0; got 101.0"),
        ({"budget": {}}, "budget/gradients: 100.0; got 0.0"),
        ({"outer_steps": 9}, "outer_steps: 10.0; got 9.0"),
        ({"budget": {"gradients": 100.0, "hvps": 3.0}}, "budget/hvps: 0.0; got 3.0"),
        ({"seed": 7}, "plain, seed 7: "),
    ],
)
def test_costs_steps_and_seeds_are_compared_too(result, words, table, tmp_path, capsys):
    code, _, err = check(again(tmp_path / "cell", **result), table, capsys)
    assert code == 1
    assert words in err


def test_seeds_without_a_finite_number_do_not_count_in_the_spread(tmp_path, capsys):
    for seed, value in enumerate((0.8, None, 0.82)):
        metrics = {"eval/accuracy": value, "eval/loss": 0.1}
        write_run(tmp_path / "a" / str(seed), seed, "plain", report=REPORT, metrics=metrics)
    main([str(tmp_path / "a")])
    metrics = {"eval/accuracy": 0.81, "eval/loss": 0.1}
    write_run(tmp_path / "b", 0, "plain", report=REPORT, **ELSEWHERE, metrics=metrics)
    assert check(tmp_path / "b", tmp_path / "a" / "report" / "table.csv", capsys)[0] == 0


def test_a_number_that_is_not_finite_is_equal_to_another(tmp_path, capsys):
    for name in ("a", "b"):
        metrics = {"eval/accuracy": 0.8, "eval/loss": None}
        write_run(tmp_path / name, 0, "plain", report=REPORT, **HERE, metrics=metrics)
    main([str(tmp_path / "a")])
    assert check(tmp_path / "b", tmp_path / "a" / "report" / "table.csv", capsys)[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("", "holds no cell"),
        ("a,b\n1,2\n", "KeyError: 'method'"),
        ("method,seed,eval/x\nplain,0,high\n", "could not convert string to float: 'high'"),
        (json.dumps({"plain": {}}), "holds no cell"),
    ],
)
def test_a_file_that_is_no_table_is_named(text, words, table, tmp_path, capsys):
    path = tmp_path / "other.csv"
    if text is not None:
        path.write_text(text)
    code, _, err = check(table.parents[1], path, capsys)
    assert code == 2
    assert words in err
    assert str(path) in err
