import csv
import json

import numpy as np
import pytest
import yaml
from run_folders import REPORT, accuracy, write_run

from metaopt.report.check import check_cells
from metaopt.report.collect import collect
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


def check(folder, table, capsys, *options):
    capsys.readouterr()
    code = main([str(folder), "--check", str(table), *options])
    return code, *capsys.readouterr()


def judged(folder, table):
    return check_cells(collect(folder), table)


@pytest.fixture
def recomputed(tmp_path):
    """All cells of the table, of which one may be changed or left out."""

    def write(name, shift=0.0, at=("plain", 1), machine=HERE):
        for method in ("plain", "better"):
            for seed in range(3):
                value = float(accuracy(method, seed)) + shift * ((method, seed) == at)
                metrics = {"eval/accuracy": value, "eval/loss": 1 - value, "outer/loss": 0.1}
                folder = tmp_path / name / f"{method}-{seed}"
                write_run(folder, seed, method, report=REPORT, metrics=metrics, **machine)
        return tmp_path / name

    return write


def test_a_cell_names_the_machine_it_was_made_on(table):
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    for row in rows:
        assert [row[k] for k in ("cpu", "cpu_capability", "threads", "torch", "device")] == [
            "some", "AVX2", "1", "2.13", "cpu",
        ]  # fmt: skip


def test_cells_are_equal_to_the_bit_or_within_the_tolerance(table, recomputed, capsys):
    for options in ((), ("--exact",)):
        code, out, err = check(recomputed(f"same{len(options)}"), table, capsys, *options)
        assert (code, err) == (0, "")
        assert f"6 cells of {table}: 6 equal to the bit." in out
    folder = recomputed("near", 1e-15)
    code, out, err = check(folder, table, capsys)
    assert (code, err) == (0, "")
    assert "5 equal to the bit; 1 within 3 standard deviations of their method" in out
    assert "the furthest number is off by " in out
    assert 0 < judged(folder, table).furthest < 1e-12
    assert "2 numbers are not equal to the bit, though they were made on the machine" in out
    code, out, err = check(folder, table, capsys, "--exact")
    assert code == 1
    assert "off: plain, seed 1, eval/accuracy: 0.8" in err


@pytest.mark.slow
def test_equality_is_not_asked_of_another_machine(table, recomputed, capsys):
    folder = recomputed("near", 1e-15, machine=ELSEWHERE)
    code, out, _ = check(folder, table, capsys)
    assert code == 0
    assert "1 cells that are not equal to the bit may differ by the machine: they were made" in out
    code, _, err = check(folder, table, capsys, "--exact")
    assert code == 1
    assert (
        "--exact cannot be asked of 1 cells: they were made with cpu some, here other; "
        "cpu_capability AVX2, here AVX512."
    ) in err
    code, out, _ = check(recomputed("equal", machine=ELSEWHERE), table, capsys, "--exact")
    assert (code, "6 equal to the bit" in out) == (0, True)


def test_a_gpu_is_another_machine_and_one_that_says_nothing_too(table, tmp_path):
    gpu = {**HERE, "hardware": {**HERE["hardware"], "gpus": ["NVIDIA H200"]}}
    for name, machine, device, why in (
        ("gpu", gpu, "cuda", "they were made with device cpu, here NVIDIA H200"),
        ("none", {"hardware": {}}, "cpu", "their cpu, cpu_capability, threads are not recorded"),
    ):
        folder = again(tmp_path / name, 1e-6, machine=machine)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "device": device}))
        comparison = judged(folder, table)
        assert comparison.within == [("plain", "1")]
        assert dict(comparison.elsewhere) == {why: 1}


def test_the_cpu_of_an_older_table_is_that_of_its_text(table, tmp_path):
    content = table.read_text().replace(",some,", ",,")
    path = tmp_path / "old/table.csv"
    path.parent.mkdir()
    path.write_text(content)
    path.with_suffix(".md").write_text("- Hardware: processor Sparc, cores 2\n")
    folder = again(tmp_path / "near", 1e-6, machine=HERE)
    (why,) = judged(folder, path).elsewhere
    assert why.startswith("they were made with cpu Sparc, here ")


def test_what_is_further_off_than_seeds_are_apart_differs(table, recomputed, capsys):
    code, out, err = check(recomputed("far", 0.2), table, capsys)
    assert code == 1
    assert "5 equal to the bit; 1 different." in out
    assert "off: plain, seed 1, eval/accuracy: 0.8" in err
    assert " ± " in err


def test_cells_that_are_missing_or_additional_are_told(table, tmp_path, capsys):
    folder = tmp_path / "runs"
    again(folder / "1")
    again(folder / "7", seed=7)
    code, out, err = check(folder, table, capsys)
    assert code == 1
    assert "off: better, seed 2: no finished run" in err
    assert "1 equal to the bit; 5 missing." in out
    assert "1 cells are not in the table and were not compared." in out


def test_a_shift_of_all_seeds_differs_though_each_is_near(tmp_path):
    """Sixteen seeds, each 2 standard deviations off."""
    draw = np.random.default_rng(0).normal(size=16)
    for name, shift in (("before", 0.0), ("after", 2.0 * draw.std(ddof=1))):
        for seed, value in enumerate(draw + shift):
            metrics = {"eval/accuracy": float(value)}
            write_run(tmp_path / name / str(seed), seed, "plain", metrics=metrics, **HERE)
    main([str(tmp_path / "before")])
    comparison = judged(tmp_path / "after", tmp_path / "before" / "report" / "table.csv")
    assert (len(comparison.within), len(comparison.different)) == (0, 16)
    assert [line.startswith("plain, mean of eval/accuracy over 16 seeds: ")
            for line in comparison.off] == [True]  # fmt: skip


def test_exact_needs_a_table(table, capsys):
    assert main([str(table.parents[1]), "--exact"]) == 2
    assert "--exact says how to compare; name a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"budget": {"gradients": 101.0}}, "budget/gradients: 100.0; got 101.0"),
        ({"budget": {}}, "budget/gradients: 100.0; got 0.0"),
        ({"outer_steps": 9}, "outer_steps: 10.0; got 9.0"),
        ({"budget": {"gradients": 100.0, "hvps": 3.0}}, "budget/hvps: 0.0; got 3.0"),
    ],
)
def test_costs_and_steps_are_compared_too(result, words, table, tmp_path, capsys):
    code, _, err = check(again(tmp_path / "cell", **result), table, capsys)
    assert code == 1
    assert words in err


def test_seeds_without_a_finite_number_do_not_count_in_the_spread(tmp_path):
    for seed, value in enumerate((0.8, None, 0.82)):
        metrics = {"eval/accuracy": value, "eval/loss": 0.1}
        write_run(tmp_path / "a" / str(seed), seed, "plain", report=REPORT, metrics=metrics)
    main([str(tmp_path / "a")])
    metrics = {"eval/accuracy": 0.81, "eval/loss": 0.1}
    write_run(tmp_path / "b", 0, "plain", report=REPORT, **ELSEWHERE, metrics=metrics)
    assert judged(tmp_path / "b", tmp_path / "a" / "report" / "table.csv").off == []


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
