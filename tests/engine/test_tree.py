"""Algebra on dicts of tensors."""

from typing import Any, NamedTuple

import pytest
import torch

from metaopt.engine import tree
from metaopt.testing.trees import identical


class Pair(NamedTuple):
    first: torch.Tensor
    rest: list


@pytest.fixture
def a():
    return {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[3.0]])}


@pytest.fixture
def b():
    return {"y": torch.tensor([[-1.0]]), "x": torch.tensor([0.5, 4.0])}


def test_dot_and_norm(a, b):
    assert tree.dot(a, b).item() == 0.5 + 8.0 - 3.0
    assert tree.norm(a).item() == pytest.approx(14**0.5)
    assert tree.norm({}).item() == 0.0


def test_dot_is_differentiable(a, b):
    leaves = tree.leaves(a)
    (slope,) = torch.autograd.grad(tree.dot(leaves, b), leaves["x"])
    assert torch.equal(slope, b["x"])


@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0)])
def test_add_and_scale_go_by_name(a, b, factor):
    added = tree.add(a, b, factor)
    assert list(added) == ["x", "y"]
    assert torch.equal(added["x"], torch.tensor([2.0, 10.0]))
    assert torch.equal(added["y"], torch.tensor([[1.0]]))
    assert torch.equal(tree.scale(a, factor)["y"], torch.tensor([[6.0]]))


def test_add_reads_missing_names_as_zero(a):
    added = tree.add(a, {"y": torch.ones(1, 1)})
    assert torch.equal(added["x"], a["x"])
    assert added["y"].item() == 4.0


def test_like_refuses_another_length(a):
    with pytest.raises(ValueError, match="shorter"):
        tree.like(a, [torch.zeros(2)])


@pytest.mark.parametrize("factor", [torch.tensor(0.1), torch.tensor([0.1, 0.2])])
def test_a_factor_leaves_the_precision_of_a_tree_as_it_is(factor):
    values = {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.float64)}
    with tree.replicated(factor.ndim):
        made = tree.add(values, values, factor.double()), tree.scale(values, factor.double())
    for tensors in made:
        assert {k: t.dtype for k, t in tensors.items()} == {k: t.dtype for k, t in values.items()}


def test_clone_shares_nothing_and_keeps_types():
    leaf = torch.ones(2, requires_grad=True)
    state = {"pair": Pair(leaf * 2, [torch.zeros(1), "text", 3, None]), "tuple": (leaf,)}
    copy = tree.clone(state)
    assert type(copy["pair"]) is Pair
    assert copy["pair"].rest[1:] == ["text", 3, None]
    assert not copy["pair"].first.requires_grad
    assert copy["tuple"][0].data_ptr() != leaf.data_ptr()


def test_detach_shares_memory():
    leaf = torch.ones(2, requires_grad=True)
    off = tree.detach({"a": leaf})["a"]
    assert off.data_ptr() == leaf.data_ptr()
    assert not off.requires_grad


def test_leaves_leave_integers_alone():
    result = tree.leaves({"a": torch.ones(1), "count": torch.zeros((), dtype=torch.long)})
    assert result["a"].requires_grad
    assert not result["count"].requires_grad


def test_random_like_is_a_function_of_the_generator(a):
    one, two = (tree.random_like(a, torch.Generator().manual_seed(s)) for s in (3, 3))
    assert all(torch.equal(one[k], two[k]) for k in a)
    assert [v.shape for v in one.values()] == [v.shape for v in a.values()]
    assert not torch.equal(one["x"], a["x"])


@tree.tagged("pair of a test")
class Couple(NamedTuple):
    left: Any
    right: Any


class Nameless(NamedTuple):
    left: Any


def test_a_packed_state_names_no_class_and_comes_back_as_it_was(tmp_path):
    state = {
        "a": [Couple(torch.ones(2), (1, None))],
        "b": Couple(Couple(1, 2), {"c": torch.zeros(1)}),
    }
    packed = tree.pack(state)
    assert packed["b"]["left"] == {"__tag__": "pair of a test", "left": 1, "right": 2}
    assert packed["a"][0]["left"] is state["a"][0].left
    torch.save(packed, tmp_path / "state.pt")
    assert b"Couple" not in (tmp_path / "state.pt").read_bytes()
    assert identical(tree.unpack(torch.load(tmp_path / "state.pt", weights_only=True)), state)
    assert tree.unpack(state)["a"][0] is state["a"][0]


def test_a_named_tuple_without_a_tag_and_an_unknown_tag_are_named():
    with pytest.raises(TypeError, match=r"Nameless without a name.*tagged"):
        tree.pack({"a": Nameless(1)})
    with pytest.raises(ValueError, match="a state called 'gone'"):
        tree.unpack({"__tag__": "gone"})


def test_a_tag_has_one_class():
    with pytest.raises(ValueError, match="'pair of a test' belongs to Couple"):
        tree.tagged("pair of a test")(Nameless)


def test_slopes_tell_no_path_from_a_slope_of_zero():
    inputs = {k: torch.ones(2, requires_grad=True) for k in ("a", "b", "c")}
    inputs["d"] = torch.ones(2)
    slopes = tree.slopes((2 * inputs["a"] + 0 * inputs["b"]).sum(), inputs)
    assert slopes["a"].tolist() == [2, 2]
    assert slopes["b"].tolist() == [0, 0]
    assert (slopes["c"], slopes["d"]) == (None, None)
    ends = [inputs["a"].sum(), inputs["c"].sum(), torch.zeros(())]
    assert tree.reached(ends, inputs) == {"a", "c"}
    assert tree.reached(torch.zeros(()), inputs) == set()
    assert tree.reached([], {}) == set()
