"""Proposals go through a search: what the coder is shown, what the test spares, what is counted."""

import pytest
import torch

from metaopt.engine.protocols import Feedback
from metaopt.environments import MountainCar
from metaopt.llm import Client, Parameters, SimulatedLM
from metaopt.optimizers import Search
from metaopt.problems.reward_design.coder import Coder
from metaopt.problems.reward_design.feedback_text import PREFERENCE, PROCESS, read_sections
from metaopt.problems.reward_design.gate import Gate
from metaopt.problems.reward_design.language import parse
from metaopt.problems.reward_design.prompts import Assignment, shown_reward, shown_success
from metaopt.problems.reward_design.proposing import Proposals, texts
from metaopt.problems.reward_design.tpe import TrajectoryPreference
from metaopt.problems.reward_design.training import Training, Trajectories
from metaopt.problems.reward_design.variables import of

CAR = of(MountainCar())
OWN, SPEED, SLOW = "cost := -1", "speed := 1 * abs(v)", "slow := -1 * abs(v)"


def read(text):
    return parse(text, CAR.names)


def trained(reward, number):
    """Return a training whose success is that of `SPEED`: a fast success and a slow failure."""
    speed = torch.tensor([0.06, 0.01]).view(2, 1, 1)
    observations = torch.cat([torch.full((2, 4, 1), -0.5), speed.expand(2, 4, 1)], -1).half()
    won = torch.tensor([True, False])
    actions = torch.zeros(2, 3, dtype=torch.uint8)
    episodes = Trajectories(observations, actions, torch.tensor([3, 3]), won, won)
    success = float(reward == SPEED)
    curve = {"steps": [9.0], "success": [success], "length": [3.0], "return": [0.0]}
    terms = {f"term {term.name}": [0.0] for term in read(reward).terms}
    return Training(reward, number, [success], curve | terms, episodes)


def answers(*rewards):
    """Return a coder that writes these rewards, one after the other, and the questions it gets."""
    questions, left = [], list(rewards)

    def answer(role, messages, key):
        questions.append(messages[0]["content"])
        return f"```reward\n{left.pop(0)}\n```"

    coder = Coder(
        Client({"coder": SimulatedLM(answer)}, concurrency=1),
        lambda stated: read(stated.text).text,
        Parameters(1.0),
    )
    return coder, questions


def searched(proposals, steps, screened=True, **options):
    """Return what a search runs in as many outer steps."""
    screen = proposals.screen if screened else None
    search = Search(proposals.propose, screen, "archive", None, **options)
    search.init(OWN)
    asked = []
    for key in range(steps):
        asked.append(search.ask(key))
        trainings = [trained(reward, key + 1) for reward in texts(asked[-1])]
        if len(trainings) > 1:  # as the problem does: the best again, with less luck
            best = max(trainings, key=lambda training: training.mean_success)
            trainings.insert(0, best._replace(success=[0.75 * best.mean_success]))
        search.tell(Feedback(1 - trainings[0].mean_success, artifacts=trainings))
    return asked


def proposals_of(coder, **options):
    gate = Gate(TrajectoryPreference(), CAR, "step")
    return Proposals(coder, Assignment("Reach the goal.", CAR.names), read, gate, **options)


def test_a_rejected_reward_goes_back_and_trains_nothing():
    coder, questions = answers(SLOW, SPEED, SPEED)
    proposals = proposals_of(coder)
    assert searched(proposals, 3) == [OWN, SPEED, SPEED]
    first, second, third = questions
    assert (shown_reward(first), shown_success(first)) == (OWN, 0.0)
    assert read_sections(first)[0].title == PROCESS
    assert (shown_reward(second), shown_success(second)) == (SLOW, None)
    assert [s.title for s in read_sections(second)] == list(PREFERENCE.values())
    assert (shown_reward(third), shown_success(third)) == (SPEED, 1.0)
    assert (proposals.tested, proposals.passed) == (3, 2)
    assert coder.client.spent("coder")["lm_calls"] == 3


def test_after_the_last_redraw_the_first_parent_is_trained_again():
    coder, questions = answers(SLOW, SLOW, SPEED)
    assert searched(proposals_of(coder), 3, redraws=1) == [OWN, OWN, SPEED]
    assert shown_reward(questions[2]) == OWN  # of the new training, not the rejection before it


def test_trained_anyway_a_reward_that_failed_the_test_has_preference_feedback():
    coder, questions = answers(SLOW, SPEED)
    proposals = proposals_of(coder, preference_of_trained=True)
    assert searched(proposals, 3, screened=False) == [OWN, SLOW, SPEED]
    assert [s.title for s in read_sections(questions[1])] == list(PREFERENCE.values())
    coder, questions = answers(SLOW, SPEED)
    searched(proposals_of(coder), 3, screened=False)
    assert read_sections(questions[1])[0].title == PROCESS


@pytest.mark.parametrize(("base", "reward"), [("latest", SLOW), ("best", SPEED)])
def test_a_proposal_builds_on_the_latest_or_the_best(base, reward):
    coder, questions = answers(SPEED, SLOW, OWN)
    searched(proposals_of(coder, base=base), 4, screened=False)
    assert shown_reward(questions[2]) == reward


def test_several_rewards_are_proposed_together_and_the_best_is_built_on():
    coder, questions = answers(SLOW, SPEED, OWN, OWN)
    asked = searched(proposals_of(coder, count=2), 3, screened=False)
    assert set(asked[1]) == {SLOW, SPEED}
    assert asked[2] == (OWN, OWN)
    assert (shown_reward(questions[2]), shown_success(questions[2])) == (SPEED, 0.75)


def test_without_a_readable_reward_the_first_parent_is_trained_again():
    coder, _ = answers(SPEED, "import os", "p / 0", "lambda: 1")
    assert searched(proposals_of(coder), 3, screened=False) == [OWN, SPEED, SPEED]
    assert (coder.answers, coder.unreadable) == (4, 3)
