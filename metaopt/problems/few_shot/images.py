"""Episodes of images: some classes, a few examples of each; others of the same to be classified."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.data.images import Images
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges
from metaopt.problems.few_shot.tasks import TEST_SEED, Examples


class ImageClasses:
    """N-way classification of classes that no training task has had.

    The seed divides the classes: `test_classes` of them make the test tasks. A task is one tensor
    (ways, shots + queries, pixels): an ordered choice of classes, and images of each.

    Args:
        images: images with classes; see `metaopt.data.images`. Their own test images are not used.
        ways: classes of a task, >= 2.
        shots: images of each class in the support set, >= 1.
        queries: images of each class in the query set, >= 1.
        test_classes: classes that are held out, >= ways; as many must be left to train on.
        test_tasks: number of test tasks, >= 1.
        seed: divides the classes.

    Raises:
        ValueError: there are too few classes, or images of one.
    """

    score = "accuracy"

    def __init__(
        self, images: Images, ways: int = 3, shots: int = 5, queries: int = 5,
        test_classes: int = 4, test_tasks: int = 500, seed: int = 0,
    ) -> None:  # fmt: skip
        self.ways, self.shots, self.queries = ways, shots, queries
        self.test_classes, self.test_tasks = test_classes, test_tasks
        check_ranges(
            self, "ways >= 2", "shots >= 1", "queries >= 1", "test_classes >= 2", "test_tasks >= 1"
        )
        train_classes = images.classes - test_classes
        if min(test_classes, train_classes) < ways:
            otherwise = f", or set test_classes between {ways} and {images.classes - ways}"
            possible = 2 * ways <= images.classes
            raise ValueError(
                f"ImageClasses takes ways={ways} classes for a task; of {images.classes} classes "
                f"{train_classes} are trained on and test_classes={test_classes} held out. Lower "
                f"ways{otherwise if possible else f' to {images.classes // 2} or less'}."
            )
        # As many of each class, so that the tensors have one shape whatever the seed holds out.
        least = int(torch.bincount(images.y, minlength=images.classes).min())
        if least < shots + queries:
            raise ValueError(
                f"ImageClasses takes shots + queries = {shots + queries} images of a class, and "
                f"one class has {least}. Lower shots or queries."
            )
        flat = images.x.flatten(1)
        by_class = torch.stack([flat[images.y == c][:least] for c in range(images.classes)])
        order = torch.randperm(images.classes, generator=generator(fold(seed, "classes")))
        self.inputs, self.outputs = flat.shape[1], ways
        self.train, held_out = by_class[order[test_classes:]], by_class[order[:test_classes]]
        draw = generator(TEST_SEED)
        self.test = torch.stack([self._of(held_out, draw) for _ in range(test_tasks)])

    def draw(self, generator: Generator) -> Tensor:
        """Return one task, (ways, shots + queries, pixels)."""
        return self._of(self.train, generator)

    def _of(self, classes: Tensor, generator: Generator) -> Tensor:
        count, images = classes.shape[:2]
        chosen = torch.randperm(count, generator=generator)[: self.ways]
        # The first images of a random order: without replacement.
        order = torch.rand(self.ways, images, generator=generator).argsort(1)
        return classes[chosen.unsqueeze(1), order[:, : self.shots + self.queries]]

    def support(self, task: Tensor) -> Examples:
        """Return the images of the support set and their classes, (..., ways * shots)."""
        return self._examples(task[..., : self.shots, :])

    def query(self, task: Tensor) -> Examples:
        """Return the images of the query set and their classes, (..., ways * queries)."""
        return self._examples(task[..., self.shots :, :])

    test_query = query

    def _examples(self, images: Tensor) -> Examples:
        classes = torch.arange(self.ways, device=images.device).repeat_interleave(images.shape[-2])
        return images.flatten(-3, -2), classes.expand(*images.shape[:-3], -1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropies, (...)."""
        flat = cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return flat.view(targets.shape).mean(-1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracies, (...)."""
        return (outputs.argmax(-1) == targets).to(outputs).mean(-1)
