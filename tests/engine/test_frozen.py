"""Frozen weights: one copy for any number of steps, none in a checkpoint; resume needs the same."""

import pytest
import torch
from safetensors.torch import load_file

import metaopt
from benchmarks.frozen import ESTIMATORS, Adapters, base_bytes, checkpoint_bytes, growth
from metaopt.engine import tree
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.files.reading import steps
from metaopt.files.tensors import read_tensors
from metaopt.testing import in_float64, run_differences


@pytest.fixture(scope="module")
def adapters():
    return Adapters(width=1024, layers=2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_memory_does_not_grow_by_copies_of_the_base(adapters, name):
    short, long = growth(adapters, ESTIMATORS[name])
    assert long - short < 0.1
    # OneStep: torch's forward mode makes a zero tangent for one frozen matrix at a time.
    assert short < (0.6 if name == "OneStep(K)" else 0.1)


def test_activations_alone_grow_as_in_a_loop_by_hand():
    problem = Adapters(width=128, layers=4, rows=4)
    by_hand, unrolled = (growth(problem, make) for make in (None, Unroll))
    assert by_hand[1] - by_hand[0] > 0.2
    assert unrolled[1] - unrolled[0] < by_hand[1] - by_hand[0] + 0.1


def test_a_checkpoint_holds_none_of_the_base(adapters):
    assert checkpoint_bytes(adapters) < 0.05 * base_bytes(adapters)


def test_a_run_writes_adapters_alone_and_goes_on_with_the_same_base(tmp_path):
    def run(problem, **settings):
        return metaopt.run(problem, Unroll(2), metaopt.Descent(lr=0.1), progress=False, **settings)

    problem = Adapters(width=64, layers=2)
    run(problem, outer_steps=2, folder=tmp_path)
    assert set(load_file(tmp_path / "inner.safetensors")) == {"0.a", "0.b", "1.a", "1.b"}
    (_, last) = steps(tmp_path / "checkpoints")[-1]
    for path in (last, tmp_path / "final.pt"):
        sizes = [t.numel() for t in tree.tensors(read_tensors(path))]
        assert max(sizes) < 64 * 64
    whole = run(Adapters(width=64, layers=2), outer_steps=4)
    further = metaopt.resume(tmp_path, Adapters(width=64, layers=2), outer_steps=4, progress=False)
    assert torch.equal(further.outer["weights"], whole.outer["weights"])

    other = Adapters(width=64, layers=2)
    with torch.no_grad():
        other.module[1].base.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="frozen weights of Adapters are not those"):
        metaopt.resume(tmp_path, other, outer_steps=6, progress=False)


def test_adapters_on_a_frozen_base_have_the_right_hypergradient():
    loop = InnerLoop(in_float64(Adapters(width=6, layers=2, rows=3)))
    outer = loop.problem.init_outer(generator(0))
    inner = loop.start(outer, None, 0)
    oracle = run_differences(loop, outer, inner, 0, 3)
    assert oracle.distance(Unroll(3)(loop, outer, inner, 0)[1].grad) < 1e-6


def test_frozen_weights_that_require_a_gradient_are_off_every_graph():
    problem = Adapters(width=8, layers=1)
    problem.frozen = dict(problem.module.requires_grad_(True).named_parameters())
    problem.frozen = {k: v for k, v in problem.frozen.items() if "base" in k}
    assert not any(t.requires_grad for t in InnerLoop(problem).frozen.values())


def test_split_module_leaves_the_base_where_it_is():
    problem = Adapters(width=8, layers=1)
    params, _, frozen = split_module(problem.module)
    weights = dict(problem.module.named_parameters())
    assert frozen["0.base.weight"].data_ptr() == weights["0.base.weight"].data_ptr()
    assert params["0.a"].data_ptr() != weights["0.a"].data_ptr()
