"""The contracts notice what they are there to notice."""

import pytest
import torch

from metaopt import Feedback, Problem
from metaopt.engine.random import generator
from metaopt.estimators import Score
from metaopt.optimizers import Constant, Random, Schedule
from metaopt.testing import OptimizerContract, ProblemContract, RunContract


class Walk(Problem):
    """A random walk towards zero, with one fault."""

    def __init__(self, fault=None):
        self.fault, self.calls, self.hoard = fault, 0, []

    def init_outer(self, generator):
        return 0.5

    def init_inner(self, outer, inner, key):
        start = torch.rand(2) if self.fault == "unseeded start" else torch.ones(2)
        return {"x": start} if inner is None else inner

    def inner_step(self, outer, inner, key):
        self.calls += 1
        noise = torch.randn(2, generator=generator(key))
        if self.fault == "global randomness":
            noise = torch.randn(2)
        if self.fault == "hoard":
            self.hoard.append(noise)
        if self.fault == "hidden state":
            noise = noise * self.calls
        x = outer * inner["x"] + 0.001 * noise
        if self.fault == "in place":
            inner["x"].copy_(x)
            return inner
        if self.fault == "no step":
            return inner
        if self.fault == "graph":
            return {"x": x.requires_grad_() * 1}
        return {"x": x, "note": object()} if self.fault == "not a tree" else {"x": x}

    def evaluate(self, outer, inner, key):
        value = inner["x"].detach().square().sum()
        if self.fault == "rises":
            value = -value
        if self.fault == "vector":
            value = value[None]
        grad = {"phi": torch.ones(1)} if self.fault == "gradient of another form" else None
        if self.fault == "evaluation steps":
            inner["x"].mul_(0.5)
        return Feedback(value, grad)

    def metrics(self, outer, inner):
        return {"far": float("nan") if self.fault == "nan" else 0.0}


def parts(fault=None):
    return lambda: (Walk(fault), Score(1), Schedule(Constant(0.5)))


def keep(contract, name, make, folder):
    """Run one test of a contract."""
    test = getattr(contract(), name)
    test(make, folder) if "resumed" in name else test(make)


class TestSoundWalk(ProblemContract):
    @pytest.fixture
    def make(self):
        return parts()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("global randomness", "test_same_seed_same_run"),
        ("global randomness", "test_inner_step_leaves_its_input_alone"),
        ("unseeded start", "test_init_is_a_function_of_its_key"),
        ("hidden state", "test_resumed_run_continues_to_the_bit"),
        ("in place", "test_inner_step_leaves_its_input_alone"),
        ("no step", "test_inner_step_leaves_its_input_alone"),
        ("evaluation steps", "test_evaluate_leaves_its_input_alone"),
        ("hoard", "test_no_tensor_is_left_behind"),
        ("graph", "test_no_graph_is_kept"),
        ("vector", "test_feedback_fits_the_outer_variable"),
        ("rises", "test_meta_objective_falls"),
        ("nan", "test_metrics_are_finite"),
    ],
)
def test_fault_in_a_problem_is_noticed(fault, name, tmp_path):
    with pytest.raises(AssertionError):
        keep(ProblemContract, name, parts(fault), tmp_path)


def test_state_that_is_no_tree_is_noticed(tmp_path):
    with pytest.raises(Exception, match="object"):
        keep(RunContract, "test_resumed_run_continues_to_the_bit", parts("not a tree"), tmp_path)


def test_gradient_of_another_form_is_noticed(tmp_path):
    name = "test_feedback_fits_the_outer_variable"
    with pytest.raises((AssertionError, TypeError)):
        keep(RunContract, name, parts("gradient of another form"), tmp_path)


class Fickle:
    """An optimizer with one fault, on top of a random search."""

    def __init__(self, fault):
        self.fault, self.search, self.asked = fault, Random([0.1, 0.2, 0.3, 0.4]), 0

    def init(self, outer):
        self.search.init(outer)

    def ask(self, key):
        self.asked += 1
        proposal = self.search.ask(key)
        return proposal + self.asked if self.fault == "counts questions" else proposal

    def tell(self, feedback):
        self.search.tell(feedback)

    @property
    def solution(self):
        return "text" if self.fault == "other form" else self.search.solution

    def state_dict(self):
        return {} if self.fault == "forgets" else self.search.state_dict()

    def load_state_dict(self, state):
        if state:
            self.search.load_state_dict(state)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("counts questions", "test_ask_is_a_function_of_state_and_key"),
        ("forgets", "test_state_is_all_there_is"),
        ("other form", "test_solution_has_the_form_of_the_outer_variable"),
    ],
)
def test_fault_in_an_optimizer_is_noticed(fault, name, tmp_path):
    def make(fault=fault):
        return Walk(), Score(1), Fickle(fault)

    keep(OptimizerContract, name, lambda: make(None), tmp_path)
    with pytest.raises(AssertionError):
        keep(OptimizerContract, name, make, tmp_path)


def test_incomplete_roles_are_noticed(tmp_path):
    with pytest.raises(AssertionError):
        keep(RunContract, "test_roles", lambda: (Walk(), Score(1), object()), tmp_path)
