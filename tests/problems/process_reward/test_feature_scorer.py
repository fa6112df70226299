"""Features of steps: scikit-learn's own TF-IDF and SVD, several models at once, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny_process_rewards import Answer
from torch import nn

from metaopt.engine.random import generator, replay
from metaopt.problems.process_reward.model.aggregation import step_loss
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.steps import scores
from metaopt.problems.process_reward.model.text_features import TOKEN, TextFeatures

CHAINS = [
    Answer("What is 3 + 4?", ("3 + 4 is 7.", "So the answer is 7.")),
    Answer("How many apples?", ("There are two.", "Two and two is four.", "four")),
    Answer("Is it raining", ("yes",)),
    Answer("What is 2 * 2?", ("2 * 2 is 5 .", "so 5")),
]
NEW = [Answer("What is rain?", ("unseen words", "rain is 4", "So two")), Answer("?", ("yes 7",))]


def test_features_are_scikit_learn_s_tfidf_of_question_prefix_and_step():
    size = 5
    features = TextFeatures.fit(CHAINS, size)
    texts = [t for c in CHAINS for t in (c.prompt, *c.steps)]
    theirs = TfidfVectorizer(token_pattern=TOKEN, sublinear_tf=True).fit(texts)
    assert features.vocabulary == tuple(theirs.get_feature_names_out())
    svd = TruncatedSVD(size, random_state=0).fit(theirs.transform(texts))

    def raw(chains):
        rows = []
        for c in chains:
            for i, step in enumerate(c.steps):
                parts = [c.prompt, " ".join(c.steps[:i]), step]
                known = [w for w in theirs.build_analyzer()(step) if w in theirs.vocabulary_]
                more = np.log1p([i, len(known)])
                reduced = theirs.transform(parts) @ svd.components_.T
                rows.append(np.concatenate([reduced.ravel(), more]))
        return np.stack(rows)

    train = raw(CHAINS)
    deviation = train.std(0)
    deviation[deviation < 1e-6] = 1
    for chains in (CHAINS, NEW):
        expected = torch.from_numpy((raw(chains) - train.mean(0)) / deviation).float()
        torch.testing.assert_close(features(chains), expected, rtol=1e-3, atol=1e-4)


def test_a_question_unlike_those_of_training_stays_within_ten_deviations():
    alike = [Answer(f"the question {i % 2}", ("so it is", "done")) for i in range(400)]
    features = TextFeatures.fit([*alike, Answer("a rare question 1", ("so it is", "done"))], 6)
    far = features([Answer("rare rare rare", ("a rare rare a",))])
    assert far.abs().max() == 10
    assert features(alike).abs().max() < 10


def test_logits_are_a_network_of_torch_on_the_rows_of_the_table():
    scorer = FeatureScorer(CHAINS, size=5, widths=(7, 3), activation="tanh")
    params, buffers = scorer.init(generator(0))
    assert buffers == {}
    layers = [nn.Linear(17, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)]
    for i, layer in enumerate(layers[::2]):
        layer.weight.data, layer.bias.data = params[f"{i}.weight"].T, params[f"{i}.bias"][0]
    steps = scorer.encode(CHAINS)
    logits = scorer.logits(params, steps, False)
    expected = nn.Sequential(*layers)(scorer.features(CHAINS)).squeeze(1)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits[steps.mask], expected)
    part = steps.take(torch.tensor([2, 0]))
    torch.testing.assert_close(scorer.logits(params, part, False), logits[[2, 0]])
    torch.testing.assert_close(scores(scorer, params, steps, batch=3), logits)


def test_models_with_a_leading_axis_are_those_without():
    scorer = FeatureScorer(CHAINS, size=5, widths=(6,), dropout=0.4)
    several = [scorer.init(generator(seed))[0] for seed in range(3)]
    together = {k: torch.stack([p[k] for p in several]).requires_grad_() for k in several[0]}
    steps = scorer.encode(CHAINS)
    logits = scorer.logits(together, steps, False)
    assert logits.shape == (3, 4, 3)
    for one, params in zip(logits, several, strict=True):
        torch.testing.assert_close(one, scorer.logits(params, steps, False))
    with replay(1):
        a = scorer.logits(together, steps, True)
    with replay(1):
        b = scorer.logits(together, steps, True)
    assert torch.equal(a, b)
    assert not torch.allclose(a, logits)
    grads = torch.autograd.grad(a[0][steps.mask].sum(), list(together.values()))
    assert all(g[0].abs().sum() > 0 and g[1:].abs().sum() == 0 for g in grads)


def test_it_learns_labels_that_depend_on_the_words_of_a_step():
    draw = generator(3)
    words = ["right", "wrong", "maybe", "then", "so", "seven"]

    def chain() -> Answer:
        n = int(torch.randint(1, 5, (), generator=draw))
        drawn = torch.randint(6, (n, 4), generator=draw).tolist()
        return Answer("a question", tuple(" ".join(words[i] for i in row) for row in drawn))

    def labels(chains, width):
        rows = [[float("wrong" not in s) for s in c.steps] for c in chains]
        return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])

    chains, test = [chain() for _ in range(300)], [chain() for _ in range(100)]
    scorer = FeatureScorer(chains, size=6, widths=(32,))
    params = {k: v.requires_grad_() for k, v in scorer.init(generator(0))[0].items()}
    steps = scorer.encode(chains)
    target = labels(chains, steps.mask.shape[1])
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        step_loss(scorer.logits(params, steps, True), target, steps.mask, "bce").mean().backward()
        optimizer.step()
    held = scorer.encode(test)
    right = scores(scorer, params, held)[held.mask] > 0
    truth = labels(test, held.mask.shape[1])[held.mask] > 0
    assert 0.3 < truth.float().mean() < 0.7
    assert (right == truth).float().mean() > 0.95


def test_wrong_arguments_are_named():
    for options, message in (
        ({"widths": (0,)}, "widths >= 1"),
        ({"activation": "sin"}, "activation in"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"size": 0}, "size >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureScorer(CHAINS, **options)
    with pytest.raises(ValueError, match="no word"):
        FeatureScorer([Answer(" ", (" ",))])
    with pytest.raises(ValueError, match="1 of 1 chains have no steps"):
        FeatureScorer(CHAINS, size=2).encode([Answer("q", ())])
