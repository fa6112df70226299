import pytest
import torch
from numpy.random import default_rng
from torch.nn.functional import cross_entropy, one_hot

from metaopt.engine.random import generator
from metaopt.problems.data_curation import TextRows, text_world
from metaopt.problems.data_curation.languages import ALPHABET, LENGTH, encode, noisy
from metaopt.problems.data_curation.text_world import LEVELS, UNSEEN_LEVELS

SMALL = {"rows": 20, "easy_rows": 30, "meta_size": 40, "test_size": 20, "unseen_size": 60}


@pytest.fixture(scope="module")
def world():
    return text_world(**SMALL)


def test_rows_are_of_one_length_and_of_the_alphabet(world):
    for rows in (world.texts, world.meta, world.test, world.unseen):
        assert {len(row) for row in rows} == {LENGTH}
        assert set("".join(rows)) <= set(ALPHABET)
    assert world.domain.bincount().tolist() == [20] * 9 + [30, 20]
    assert world.meta_kinds.bincount().tolist() == [20, 20]


def test_levels_are_shares_of_random_characters(world):
    rows = ["a" * LENGTH] * 400
    for level in (*LEVELS, *UNSEEN_LEVELS):
        text = "".join(noisy(rows, level, default_rng(0)))
        changed = 1 - text.count("a") / len(text)
        assert changed == pytest.approx(level * 29 / 30, abs=0.01)
    for k, level in enumerate(LEVELS):
        assert torch.allclose(world.level[world.domain == k], torch.tensor(level))
    assert world.level[world.domain >= len(LEVELS)].isnan().all()


def test_the_same_seed_gives_the_same_world_and_no_row_is_in_two_parts(world):
    again = text_world(**SMALL)
    assert again.texts == world.texts
    assert again.test == world.test
    assert text_world(**SMALL, seed=1).texts != world.texts
    parts = [set(p) for p in (world.texts, world.meta, world.test, world.unseen)]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_a_mixture_of_meta_rows_has_all_domains_and_new_rows():
    world = text_world(**SMALL | {"meta_size": 200}, meta="mixture")
    assert len(world.meta_kinds.unique()) == len(world.domains)
    easy = {t for t, k in zip(world.texts, world.domain.tolist(), strict=True) if k == 9}
    assert not (set(world.meta) & set(world.texts)) - easy


def test_ordinary_text_may_come_from_a_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("The Index of a LIBRARY; 1967 words, and more of them. " * 200)
    world = text_world(**SMALL, texts=path)
    assert world.texts[0] in ("the index of a library words, and more of them. " * 200)
    with pytest.raises(FileNotFoundError, match="is not a file; METAOPT_DATA names"):
        text_world(**SMALL, texts=tmp_path / "none.txt")
    path.write_text("short")
    with pytest.raises(ValueError, match="at least 6400 are needed"):
        text_world(**SMALL, texts=path)


def test_losses_are_those_of_one_hot_symbols_for_each_model(world):
    task = TextRows(world, models=3, order=3, hidden=5)
    params, _ = task.init(generator(0))
    assert torch.equal(TextRows(world, models=2, order=3, hidden=5).init(generator(0))[0]["weight"],
                       params["weight"][:2])  # fmt: skip
    losses = task.row_losses(params, torch.arange(4))
    for r in range(3):
        for b in range(4):
            row = encode([world.texts[b]])[0]
            x = one_hot(torch.stack([row[:-2], row[1:-1]], 1), len(ALPHABET)).float().flatten(1)
            hidden = x @ params["hidden.weight"][r].flatten(0, 1) + params["hidden.bias"][r]
            logits = hidden.tanh() @ params["weight"][r] + params["bias"][r]
            torch.testing.assert_close(losses[r, b], cross_entropy(logits, row[2:]))
