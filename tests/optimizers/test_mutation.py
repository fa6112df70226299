"""Mutations of tensors, numbers, texts and choices."""

from collections import Counter

import pytest
import torch

from metaopt.optimizers import Mutation, Search, Trial


def mutants(mutation, outer, count=400):
    return [mutation([Trial(outer, 0.0)], key) for key in range(count)]


def test_tensors_get_noise_of_the_given_scale():
    outer = {"w": torch.full((4,), 3.0, dtype=torch.float64), "n": torch.ones(1, dtype=torch.long)}
    mutated = mutants(Mutation(scale=0.5), outer)
    draws = torch.stack([m["w"] for m in mutated])
    assert draws.mean().item() == pytest.approx(3.0, abs=0.05)
    assert draws.std().item() == pytest.approx(0.5, abs=0.03)
    assert all(torch.equal(m["n"], outer["n"]) for m in mutated)
    assert torch.equal(outer["w"], torch.full((4,), 3.0, dtype=torch.float64))


def test_is_a_function_of_the_key():
    mutation, parents = Mutation(), [Trial({"w": torch.zeros(3)}, 0.0)]
    assert torch.equal(mutation(parents, 4)["w"], mutation(parents, 4)["w"])
    assert not torch.equal(mutation(parents, 4)["w"], mutation(parents, 5)["w"])


def test_one_edit_changes_a_text_by_one_phrase():
    for text in mutants(Mutation(vocabulary=["x", "y"]), "a b c"):
        words = text.split(" ")
        assert 2 <= len(words) <= 4
        assert set(words) <= {"a", "b", "c", "x", "y"}
        assert sum((Counter(words) - Counter("abc")).values()) <= 1


def test_every_kind_of_edit_occurs():
    mutated = set(mutants(Mutation(vocabulary=["x"]), "a b"))
    assert {"x a b", "a x b", "a b x", "x b", "a x", "a", "b", "b a"} <= mutated


def test_the_last_phrase_is_never_deleted():
    texts = mutants(Mutation(vocabulary=["x"], edits=6), "a")
    assert all(texts)
    assert len({t.count(" ") for t in texts}) > 3


def test_phrases_are_joined_by_the_separator():
    mutation = Mutation(vocabulary=["be brief"], separator="; ")
    assert "be brief; be exact" in mutants(mutation, "be exact")


def test_a_choice_changes_to_another_value():
    assert Counter(mutants(Mutation(choices=["a", "b", "c"]), "b")).keys() == {"a", "c"}
    assert set(mutants(Mutation(choices=["a"]), "a", 5)) == {"a"}


def test_named_choices_change_one_at_a_time_and_leave_the_rest():
    outer = {"kind": "a", "size": 1, "text": "fixed"}
    mutation = Mutation(choices={"kind": ["a", "b"], "size": [1, 2, 3]})
    for mutated in mutants(mutation, outer):
        assert sum(mutated[k] != outer[k] for k in outer) == 1
        assert mutated["text"] == "fixed"


def test_with_rate_one_all_named_choices_change():
    mutation = Mutation(choices={"kind": ["a", "b"], "size": [1, 2]}, rate=1.0)
    assert mutants(mutation, {"kind": "a", "size": 1}, 3) == [{"kind": "b", "size": 2}] * 3


def test_every_parent_is_drawn():
    mutation, parents = Mutation(scale=0.0), [Trial({"w": float(i)}, 0.0) for i in range(3)]
    assert {mutation(parents, key)["w"] for key in range(50)} == {0.0, 1.0, 2.0}


def test_unknown_kind_says_what_to_give():
    with pytest.raises(TypeError, match="`vocabulary` for a text"):
        Mutation()([Trial("a text", 0.0)], 0)


def test_a_search_refuses_before_the_run_what_its_mutation_cannot_change():
    with pytest.raises(TypeError, match="`vocabulary` for a text"):
        Search(Mutation()).init("a text")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"\['b'\].*its names are \['a'\]"):
        Mutation(choices={"b": [1, 2]})([Trial({"a": 1}, 0.0)], 0)


@pytest.mark.parametrize(
    "settings",
    [{"scale": -1.0}, {"edits": 0}, {"rate": 1.5}, {"vocabulary": ["a b"]}, {"vocabulary": [""]}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match="Mutation needs"):
        Mutation(**settings)
