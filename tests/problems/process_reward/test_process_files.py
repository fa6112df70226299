"""Your own files become training chains, a meta-set and test questions."""

from dataclasses import replace
from pathlib import Path

import pytest

from metaopt.problems.process_reward.data.arithmetic import arithmetic
from metaopt.problems.process_reward.data.formats import write
from metaopt.problems.process_reward.data.process_files import process_files


@pytest.fixture(scope="module")
def world():
    return arithmetic(chains=20, meta_size=20, questions=4, candidates=3, held_out=10)


def held_out(world):
    return [c for chains in world.held_out.values() for c in chains]


@pytest.fixture
def sources(world, tmp_path):
    flat = [chain for row in world.candidates for chain in row]
    parts = {
        "train": world.train, "meta": world.meta, "candidates": flat[::2] + flat[1::2],
        "held_out": held_out(world),
    }  # fmt: skip
    for name, chains in parts.items():
        write(tmp_path / f"{name}.jsonl", chains)
    return {name: str(tmp_path / f"{name}.jsonl") for name in parts}


def test_files_give_what_was_written(world, sources):
    data = process_files(**sources)
    assert data.domains == world.domains
    assert [(c.prompt, c.steps, c.labels) for c in data.train] == [
        (c.prompt, c.steps, c.labels) for c in world.train
    ]
    assert sorted(c.steps for c in data.meta) == sorted(c.steps for c in world.meta)
    steps = {row[0].prompt: sorted(c.steps for c in row) for row in data.candidates}
    assert steps == {row[0].prompt: sorted(c.steps for c in row) for row in world.candidates}
    assert data.quality is None


def test_images_start_from_their_folder(world, sources, tmp_path):
    write(tmp_path / "pictured.jsonl", [replace(c, images=("a.png",)) for c in world.train])
    data = process_files(
        train=str(tmp_path / "pictured.jsonl"),
        meta=sources["meta"],
        images=str(tmp_path / "images"),
    )
    assert data.train[0].images == (str(tmp_path / "images" / "a.png"),)
    assert data.candidates == []


def test_a_limit_holds_for_each_domain(sources):
    data = process_files(sources["train"], sources["meta"], limit=5)
    domains = [chain.domain for chain in data.train]
    assert {name: domains.count(name) for name in data.domains} == dict.fromkeys(data.domains, 5)


def test_a_leaked_question_is_refused(sources):
    with pytest.raises(ValueError, match="test"):
        process_files(
            sources["train"], meta=sources["candidates"], candidates=sources["candidates"]
        )


def test_a_held_out_question_in_the_meta_set_is_refused(world, sources, tmp_path):
    leaking = [replace(c, outcome=i % 2 == 0) for i, c in enumerate(held_out(world))]
    write(tmp_path / "leaking.jsonl", leaking)
    with pytest.raises(ValueError, match="10 of 10 chains ask one of"):
        process_files(
            sources["train"], str(tmp_path / "leaking.jsonl"), held_out=sources["held_out"]
        )


def test_training_chains_that_ask_a_test_question_are_counted(world, sources, tmp_path):
    labelled = [
        replace(row[0], labels=(1.0,) * len(row[0].steps), domain="more")
        for row in world.candidates
    ]
    more = [replace(c, domain="more") for c in held_out(world)]
    write(tmp_path / "leaking.jsonl", [*world.train, *labelled[:3], *more[:2]])
    given = {**sources, "train": str(tmp_path / "leaking.jsonl")}
    count = len(world.train) + 5
    said = f"5 of {count} chains ask questions of the test, 3 of candidates and 2 of held_out"
    with pytest.raises(ValueError, match=f"{said}; the first is chain {count - 5}, .*leaks=drop"):
        process_files(**given)
    with pytest.warns(UserWarning, match=f"{said}: left out"):
        assert len(process_files(**given, leaks="drop").train) == len(world.train)
    assert len(process_files(**given, leaks="keep").train) == count
    with pytest.raises(ValueError, match="leaks must be one of refuse, drop, keep; got 'no'"):
        process_files(**given, leaks="no")


def test_columns_and_strict_hold_for_every_source(world, sources, tmp_path):
    path = Path(sources["train"])
    text = path.read_text().replace('"step_label"', '"mine"')
    path.write_text(text + "{}\n")
    columns = {"step_label": "mine"}
    with pytest.raises(ValueError, match=r"1 of 161:(?s:.)*strict=false"):
        process_files(**sources, columns=columns)
    with pytest.warns(UserWarning, match="1 of 161, left out"):
        data = process_files(**sources, columns=columns, strict=False)
    assert [c.labels for c in data.train] == [c.labels for c in world.train]
    with pytest.raises(ValueError, match=r"columns=\{prompt: ask\}: no row has such a column"):
        process_files(sources["meta"], sources["meta"], columns={"prompt": "ask"})


def test_a_missing_file_is_named_by_its_part(sources):
    with pytest.raises(FileNotFoundError, match=r"^meta=step/: there is no file or folder step/"):
        process_files(sources["train"], "step/")


def test_unequal_candidates_are_refused(world, sources, tmp_path):
    write(tmp_path / "fewer.jsonl", [c for row in world.candidates for c in row][1:])
    says = r"equally many for every question.*got 2 for 1 questions \('.*'\); 3 for 3 questions"
    with pytest.raises(ValueError, match=says):
        process_files(sources["train"], sources["meta"], str(tmp_path / "fewer.jsonl"))


def test_a_bad_limit_is_named(sources):
    with pytest.raises(ValueError, match="limit"):
        process_files(sources["train"], sources["meta"], limit=0)


def test_chains_without_what_their_part_needs_are_named_with_the_formats_that_have_it(sources):
    with pytest.raises(
        ValueError, match=r"train=.*: 20 of 20 chains .* no label of a step.*stepwise"
    ):
        process_files(train=sources["meta"], meta=sources["meta"])
    says = r".*train.jsonl: 160 of 160 chains have no outcome: chains 0, 1, .*true_false"
    with pytest.raises(ValueError, match=f"^meta={says}"):
        process_files(train=sources["train"], meta=sources["train"])
    with pytest.raises(ValueError, match=f"^candidates={says}"):
        process_files(sources["train"], sources["meta"], candidates=sources["train"])
