"""Files of one's own become training chains, a meta-set and test questions."""

from dataclasses import replace

import pytest

from metaopt.data.arithmetic import arithmetic
from metaopt.data.process_files import process_files
from metaopt.data.process_supervision import write


@pytest.fixture(scope="module")
def world():
    return arithmetic(chains=20, meta_size=20, questions=4, candidates=3, held_out=10)


@pytest.fixture
def sources(world, tmp_path):
    flat = [chain for row in world.candidates for chain in row]
    parts = {
        "train": world.train, "meta": world.meta, "candidates": flat[::2] + flat[1::2],
        "held_out": [c for chains in world.held_out.values() for c in chains],
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
    found = {row[0].prompt: sorted(c.steps for c in row) for row in data.candidates}
    assert found == {row[0].prompt: sorted(c.steps for c in row) for row in world.candidates}
    assert data.quality is None


def test_images_start_from_their_folder(world, sources, tmp_path):
    write(tmp_path / "seen.jsonl", [replace(c, images=("a.png",)) for c in world.train])
    data = process_files(
        train=str(tmp_path / "seen.jsonl"), meta=sources["meta"], images=str(tmp_path / "images")
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


def test_unequal_candidates_are_refused(world, sources, tmp_path):
    write(tmp_path / "fewer.jsonl", [c for row in world.candidates for c in row][1:])
    with pytest.raises(ValueError, match="equally many"):
        process_files(sources["train"], sources["meta"], str(tmp_path / "fewer.jsonl"))


def test_a_bad_limit_is_named(sources):
    with pytest.raises(ValueError, match="limit"):
        process_files(sources["train"], sources["meta"], limit=0)
