"""An outer level without gradients: how many layers, how wide, which activation?

The inner level trains a small network; the outer variable is a set of choices, proposed by mutation
of the best so far. Nothing is differentiated but the network's own training. Run it:

    python examples/black_box.py
"""

import itertools

import torch
from sklearn.datasets import make_moons

from metaopt import Engine, Feedback, Problem, Score, Search, fold

CHOICES = {"layers": [0, 1, 2, 3], "width": [2, 4, 8, 16], "activation": ["tanh", "relu"]}
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class Architecture(Problem):
    """Inner level: 30 steps of Adam per inner step. F = validation loss + 0.0005 per parameter."""

    def __init__(self):
        x, y = make_moons(300, noise=0.15, random_state=0)
        self.x, self.y = torch.tensor(x).float(), torch.tensor(y)

    def init_outer(self, generator):
        return {"layers": 0, "width": 2, "activation": "tanh"}

    def init_inner(self, outer, inner, key):
        torch.manual_seed(fold(key, "weights") % 2**32)
        return {"weights": network(outer).state_dict()}

    def inner_step(self, outer, inner, key):
        model = network(outer)
        model.load_state_dict(inner["weights"])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(self.x[:100]), self.y[:100]).backward()
            optimizer.step()
        return {"weights": {k: v.clone() for k, v in model.state_dict().items()}}

    @torch.no_grad()
    def evaluate(self, outer, inner, key):
        model = network(outer)
        model.load_state_dict(inner["weights"])
        loss = torch.nn.functional.cross_entropy(model(self.x[100:]), self.y[100:])
        # Each inner run is of another network, so the next one starts from scratch: done.
        return Feedback(loss + 5e-4 * sum(p.numel() for p in model.parameters()), done=True)


def network(outer):
    """Return the network that an outer variable names."""
    sizes = [2] + [outer["width"]] * outer["layers"]
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), ACTIVATIONS[outer["activation"]]()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 2))


def mutate(parents, key):
    """Return the best choices so far with one of them drawn again."""
    draw = torch.Generator().manual_seed(key)
    name = list(CHOICES)[int(torch.randint(len(CHOICES), (), generator=draw))]
    value = CHOICES[name][int(torch.randint(len(CHOICES[name]), (), generator=draw))]
    return {**parents[0].outer, name: value}


def main(outer_steps=25):
    """Return the value of the first choices and the best ones with their value."""
    engine = Engine(
        Architecture(),
        Score(inner_steps=2),
        Search(mutate, accept="if_better"),
        outer_steps=outer_steps,
    )
    values = [float(feedback.value) for _, feedback in engine]
    return values[0], engine.optimizer.solution, min(values)


if __name__ == "__main__":
    first, best, value = main()
    print(f"{first:.3f} at first, {value:.3f} with {best}")
