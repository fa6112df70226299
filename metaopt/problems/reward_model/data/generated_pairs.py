"""Generated preferences, so that reward models on text run with no file."""

from __future__ import annotations

from itertools import product

import numpy as np

from metaopt.problems.reward_model.data.pair import Pair

ANSWERS = {
    "boil an egg": "Put it in boiling water for eight minutes and cool it under the tap.",
    "mend a flat tyre": "Take the tube out, find the hole, roughen it and glue a patch on it.",
    "remove a coffee stain": "Rinse the cloth with cold water and rub a little soap into it.",
    "keep bread fresh": "Wrap it in a towel, or freeze it in slices on the first day.",
    "sharpen a knife": "Draw it over a wet stone at a low angle, one side after the other.",
    "water a cactus": "Soak the soil once it is dry, about every three weeks in summer.",
    "tie a bowline": "Make a loop, bring the end up through it, round the rope and back down.",
    "learn new words": "Write ten on cards, look at them every evening and use them the next day.",
    "sleep better": "Go to bed at one time, keep the room dark and leave the phone outside.",
    "cook rice": "Boil one cup in two cups of water with a lid on, then let it stand.",
    "clean a window": "Use warm water with vinegar and dry it with an old newspaper.",
    "save a wet phone": "Switch it off at once, dry it and leave it open for two days.",
}
QUESTIONS = (
    "How do I {}?", "What is the best way to {}?", "Can you tell me how to {}?",
    "I have to {} today. How?", "Please explain how to {}.", "I tried to {} and failed. Help!",
)  # fmt: skip
OPENINGS = ("Gladly.", "Of course.", "That is easy.", "Here is how.")
REFUSALS = ("I do not know.", "Look it up yourself.", "Why do you ask me?", "No idea, sorry.")


def generated_pairs(count: int = 480, seed: int = 0) -> list[Pair]:
    """Return pairs of a helpful answer, and of a refusal or the answer to another question.

    So a reward model has to read the prompt: half of the rejected answers are helpful elsewhere.

    Args:
        count: number of pairs, over 72 prompts in HH-RLHF's format.
        seed: another seed gives other answers.
    """
    draw = np.random.default_rng(seed)
    prompts = list(product(ANSWERS, QUESTIONS))
    order = draw.permutation(count)
    pairs = []
    for i in range(count):
        task, question = prompts[int(order[i]) % len(prompts)]
        others = [answer for other, answer in ANSWERS.items() if other != task]
        opening, wrong_opening = draw.choice(OPENINGS, 2)
        rejected = f"{wrong_opening} {draw.choice(others)}" if i % 2 else draw.choice(REFUSALS)
        prompt = f"\n\nHuman: {question.format(task)}\n\nAssistant:"
        pairs.append(Pair(prompt, f" {opening} {ANSWERS[task]}", f" {rejected}", row=i + 1))
    return pairs
