"""A decision process of known solution, R copies of it in one batch, as a problem that acts."""

import torch

from metaopt import Feedback, Problem
from metaopt.engine.random import generator

S, A, T = 3, 3, 4


def tables():
    """Return P(s' | s, a) and r(s, a): climbing costs at first and pays at the end."""
    chance, reward = torch.zeros(S, A, S), torch.zeros(S, A)
    for s in range(S):
        chance[s, 0, max(s - 1, 0)] = 1.0
        chance[s, 1, s] = 1.0
        chance[s, 2, s], chance[s, 2, min(s + 1, S - 1)] = 0.1, 0.9
    reward[:, 2] = -0.5
    reward[:, 0] = torch.tensor([0.3, 0.2, 3.0])
    return chance, reward


def value_iteration():
    """Return Q*(t, s, a) of the T decisions, from the last backwards."""
    chance, reward = tables()
    values, ahead = [], torch.zeros(S)
    for _ in range(T):
        values.insert(0, reward + chance @ ahead)
        ahead = values[0].amax(1)
    return torch.stack(values)


class Climb(Problem):
    """R runs whose length is an action 0, 1, 2 of the decision process above, T decisions each."""

    def __init__(self, runs=4, training_episodes=10**6):
        self.runs, self.training_episodes = runs, training_episodes
        self.chance, self.reward = tables()

    def init_outer(self, generator):
        return torch.ones(self.runs, dtype=torch.long)

    def init_inner(self, outer, inner, key):
        blank = {"state": torch.zeros(self.runs, dtype=torch.long), "step": T, "episode": -1}
        zeros = torch.zeros(self.runs)
        return inner or {**blank, "length": outer.clone(), "reward": zeros, "score": zeros.clone()}

    def inner_step(self, outer, inner, key):
        draw = generator(key)
        if inner["step"] == T:
            start = torch.randint(S, (self.runs,), generator=draw)
            zeros = torch.zeros(self.runs)
            return {"state": start, "step": 0, "episode": inner["episode"] + 1,
                    "length": outer.clone(), "reward": zeros, "score": zeros.clone()}  # fmt: skip
        state, action = inner["state"], outer
        reward = self.reward[state, action]
        return {
            "state": torch.multinomial(self.chance[state, action], 1, generator=draw).squeeze(1),
            "step": inner["step"] + 1,
            "episode": inner["episode"],
            "length": outer.clone(),
            "reward": reward,
            "score": inner["score"] + reward,
        }

    def evaluate(self, outer, inner, key):
        step, state = inner["step"], inner["state"]
        features = torch.zeros(self.runs, T + 1, S)
        features[torch.arange(self.runs), step, state] = 1.0
        observation = {
            "state": features.flatten(1),
            "length": inner["length"],
            "reward": inner["reward"],
            "score": inner["score"],
            "step": step,
            "steps": T,
            "done": step == T,
            "test": inner["episode"] >= self.training_episodes,
        }
        return Feedback(-inner["reward"].mean(), observation=observation)

    def metrics(self, outer, inner):
        return {"score": float(inner["score"].mean())}


def observation(runs=3, features=5, **changes):
    """Return an observation of `runs` equal runs in the middle of an episode."""
    draw = generator(0)
    row = torch.randn(features, generator=draw)
    return {
        "state": row.expand(runs, -1).clone(),
        "length": torch.full((runs,), 3),
        "reward": torch.full((runs,), 0.5),
        "score": torch.full((runs,), 10.0),
        "step": 1,
        "steps": T,
        "done": False,
        "test": False,
        **changes,
    }
