"""Tasks of few-shot learning: sinusoids, and classes of images that are held out."""

import math

import pytest
import torch

from metaopt import SGD, Descent
from metaopt.data.images import Images, digits
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.problems.few_shot import FewShot, ImageClasses, Sinusoids
from metaopt.testing import ProblemContract


def test_sinusoids_have_the_papers_ranges():
    tasks = Sinusoids(shots=3, queries=4, test_tasks=400)
    amplitude, phase, x = tasks.test[:, 0], tasks.test[:, 1], tasks.test[:, 2:]
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (x, -5.0, 5.0)):
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    support, query = tasks.support(tasks.test), tasks.query(tasks.test)
    assert support[0].shape == (400, 3, 1)
    assert query[1].shape == (400, 4, 1)
    assert torch.equal(torch.cat([support[0], query[0]], 1)[..., 0], x)
    y = amplitude * torch.sin(x[:, 0] - phase)
    torch.testing.assert_close(support[1][:, 0, 0], y)
    assert torch.equal(tasks.test, Sinusoids(shots=3, queries=4, test_tasks=400).test)


@pytest.mark.parametrize("name", ["shots", "queries", "test_tasks"])
def test_sinusoids_need_points(name):
    with pytest.raises(ValueError, match=f"{name} >= 1; got {name}=0"):
        Sinusoids(**{name: 0})


def marked(classes=6, count=9):
    """Return images whose pixels are their class and their number."""
    y = torch.arange(classes).repeat_interleave(count)
    number = torch.arange(count).repeat(classes)
    x = torch.stack([y.float(), number.float(), 0 * y, 0 * y], 1).view(-1, 1, 2, 2)
    shuffled = torch.randperm(len(y), generator=generator(0))
    return Images(x[shuffled], y[shuffled], None, classes)


def test_no_class_is_trained_on_and_tested():
    chosen = set()
    for seed in range(4):
        tasks = ImageClasses(marked(), ways=2, shots=2, queries=3, test_classes=3, seed=seed)
        train = {float(c) for i in range(40) for c in tasks.draw(generator(i))[..., 0].unique()}
        test = {float(c) for c in tasks.test[..., 0].unique()}
        assert len(train) == len(test) == 3
        assert not train & test
        chosen.add(tuple(sorted(test)))
    assert len(chosen) > 1


def test_support_and_query_are_other_images_of_the_same_classes():
    tasks = ImageClasses(marked(), ways=2, shots=2, queries=3, test_classes=3, test_tasks=5)
    (x, y), (query, classes) = tasks.support(tasks.test), tasks.query(tasks.test)
    assert x.shape == (5, 4, 4)
    assert query.shape == (5, 6, 4)
    assert y.tolist() == [[0, 0, 1, 1]] * 5
    assert classes.tolist() == [[0, 0, 0, 1, 1, 1]] * 5
    for i in range(5):
        assert x[i, 0, 0] == x[i, 1, 0] == query[i, 0, 0] != query[i, 3, 0] == x[i, 2, 0]
        numbers = torch.cat([x[i, :2, 1], query[i, :3, 1]])
        assert len(numbers.unique()) == 5


def test_losses_and_accuracies_are_those_of_each_task():
    tasks = ImageClasses(marked(), ways=2, shots=2, queries=3, test_classes=3, test_tasks=3)
    classes = tasks.query(tasks.test)[1]
    outputs = torch.randn(3, 6, 2, generator=generator(0))
    losses, scores = tasks.losses(outputs, classes), tasks.scores(outputs, classes)
    for i in range(3):
        alone = torch.nn.functional.cross_entropy(outputs[i], classes[i])
        torch.testing.assert_close(losses[i], alone)
        torch.testing.assert_close(tasks.losses(outputs[i], classes[i]), alone)
        assert scores[i] == (outputs[i].argmax(1) == classes[i]).float().mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 4, "test_classes": 3}, "ways=4 .* 3 are trained on and test_classes=3 held out"),
        ({"ways": 4, "test_classes": 3}, "Lower ways to 3 or less"),
        ({"ways": 3, "test_classes": 4}, "set test_classes between 3 and 3"),
        ({"ways": 2, "shots": 8, "test_classes": 3}, "shots [+] queries = 13 .* one class has 9"),
        ({"ways": 1}, "ways >= 2; got ways=1"),
    ],
)
def test_too_few_classes_or_images_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageClasses(marked(), **settings)


class TestImages(ProblemContract):
    @pytest.fixture
    def make(self):
        tasks = ImageClasses(marked(), ways=2, shots=2, queries=3, test_classes=3, test_tasks=4)
        return lambda: (
            FewShot(tasks, SGD(lr=0.1), widths=(6,)), Unroll(1, tasks=3), Descent("adam", lr=1e-2)
        )  # fmt: skip


@pytest.mark.slow
def test_metrics_of_images_are_accuracies():
    tasks = ImageClasses(digits(), test_tasks=10)
    stated = FewShot(tasks, SGD(lr=0.4), widths=(16,), test_steps=(1, 3))
    assert stated.report is None
    figures = stated.metrics(stated.init_outer(generator(0)), None)
    assert list(figures) == ["accuracy_1", "accuracy_3"]
    assert 1 / 3 < float(figures["accuracy_3"]) <= 1
