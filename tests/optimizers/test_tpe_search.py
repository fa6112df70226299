"""TPE beside Optuna's own study, on tensors, names and plain values."""

import pytest
import torch

from metaopt import Feedback
from metaopt.engine.random import fold
from metaopt.optimizers import TPE, Choice, Normal, Random, Uniform


def search(optimizer, outer, value, steps, start=0):
    if start == 0:
        optimizer.init(outer)
    for step in range(start, steps):
        optimizer.tell(Feedback(value(optimizer.ask(fold(3, step)))))
    return optimizer


def bowl(outer):
    return float(((outer["w"] - 1.0) ** 2).sum())


SPACE = {"w": Uniform(-4.0, 4.0)}


@pytest.mark.slow
def test_it_proposes_what_optuna_proposes():
    """Optuna's study, told the same values, with the seed of each step's key."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = {"w": torch.zeros(2, dtype=torch.float64)}
    proposer, study = TPE(SPACE, startup=3), optuna.create_study()
    proposer.init(first)
    for step in range(8):
        key = fold(3, step)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=3, multivariate=False, seed=key % 2**32
        )
        trial = study.ask()
        expected = [trial.suggest_float(str(i), -4.0, 4.0) for i in range(2)]
        proposed = proposer.ask(key)
        assert proposed["w"].tolist() == expected
        proposer.tell(Feedback(bowl(proposed)))
        study.tell(trial, bowl(proposed))
    assert proposer.solution["w"].tolist() == [*study.best_params.values()]


@pytest.mark.slow
def test_it_learns_where_random_does_not_and_resumes_to_the_bit():
    first = {"w": torch.zeros(2, dtype=torch.float64), "kept": torch.ones(1)}
    whole = search(TPE(SPACE), first, bowl, 40)
    assert bowl(whole.solution) < bowl(search(Random(SPACE), first, bowl, 40).solution)
    assert whole.solution["kept"].tolist() == [1.0]
    part = search(TPE(SPACE), first, bowl, 25)
    again = TPE(SPACE)
    again.init(first)
    again.load_state_dict(part.state_dict())
    search(again, first, bowl, 40, start=25)
    assert torch.equal(again.solution["w"], whole.solution["w"])
    assert again.state_dict() == whole.state_dict()


@pytest.mark.slow
def test_it_searches_choices_whole_numbers_and_logarithms():
    space = {
        "k": Uniform(1, 9, integer=True),
        "kind": ["a", "b"],
        "lr": Uniform(1e-4, 1.0, log=True),
    }

    def value(outer):
        return abs(outer["k"] - 7) + (outer["kind"] == "a") + abs(outer["lr"] - 0.1)

    best = search(TPE(space), {"k": 1, "kind": "a", "lr": 0.5, "name": "x"}, value, 40).solution
    assert (abs(best["k"] - 7) <= 1, best["kind"], best["name"]) == (True, "b", "x")
    assert type(best["k"]) is int
    tensor = search(TPE(Choice([1.0, 2.0])), torch.zeros(2), lambda t: float(t.sum()), 12)
    assert tensor.solution.tolist() == [1.0, 1.0]
    assert tensor.solution.dtype == torch.float32


def test_mistakes_are_answered():
    with pytest.raises(ValueError, match=r"TPE needs Uniform, Choice .* for w; got Normal"):
        TPE({"w": Normal()}).init({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="space names"):
        TPE({"v": Uniform(0.0, 1.0)}).init({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="startup"):
        TPE(startup=0)
    with pytest.raises(ValueError, match="got None"):
        TPE().init("a text")
    with pytest.raises(RuntimeError, match="ask first"):
        TPE().tell(Feedback(0.0))
