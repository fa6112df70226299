"""Meta Pseudo Labels: a teacher learns to label from how well its student does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState, InnerTensors
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, replay
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn import Architecture, Network
from metaopt.problems.meta_pseudo_labels.data import SemiSupervised
from metaopt.problems.meta_pseudo_labels.evaluation import (
    accuracy,
    confidence,
    label_entropy,
    outputs,
    percentage,
)
from metaopt.problems.meta_pseudo_labels.losses import Consistency, DirectLoss, Examples
from metaopt.problems.meta_pseudo_labels.phases import FineTuning, Pretraining
from metaopt.problems.meta_pseudo_labels.report import BoundaryReport

Labels = Literal["sample", "soft", "argmax"]
View = Literal["weak", "strong"]
Compat = Literal["official", "mpl_pytorch"]
Objective = Literal["pseudo_labels", "supervised", "consistency"]


class MetaPseudoLabels(GradientProblem):
    """Teacher T(phi) labels unlabelled inputs u; student S(theta) learns from them.

    g(phi, theta) = CE(y, S(u)),  y ~ T(u; phi)  (or y = T(u; phi): soft labels);
    F(phi, theta) = feedback * CE(y_l, S(x_l)) + supervised * CE(y_l, T(x_l)) + UDA(u; phi).

    phi (`outer`) is the teacher, theta (`inner`) the student, which each step continues. Sampled
    labels need the estimator `ScoreFunction`; soft labels `OneStep` or `Unroll(1)`.

    Names: the student's tensors under its module's own names, the teacher's BatchNorm statistics
    (among the buffers) and frozen parameters as `teacher.<name>`; the moving average of the
    student is `inner.state["average"]`. The feedback is measured without dropout and on
    BatchNorm's running statistics: their noise is larger than its signal.

    Args:
        data: the examples; its test part is used by `metrics` only.
        teacher, student: architectures; the two are initialised independently.
        inner_optimizer: how the student is stepped.
        labels: sample (hard, from the teacher's distribution), soft, or argmax (hard; an ablation:
            there is no distribution to differentiate, so its score function is biased).
        temperature: divides the teacher's logits where it labels, > 0.
        feedback: weight of the student's labelled loss in F, >= 0; 0 gives the no-feedback control.
        supervised: weight of the teacher's own labelled loss, >= 0.
        consistency: the teacher's UDA loss, or `None`.
        label_smoothing: share of each target that is spread evenly over all classes, in [0, 1): of
            labels and pseudo labels, and not of the feedback or UDA.
        objective: what the student learns from: pseudo_labels; supervised, only the labelled
            examples; or consistency, the labelled examples plus UDA (baselines).
        batch: unlabelled examples in a batch.
        labelled_batch: labelled examples in a batch, or `None` for all of them.
        labelled_in_batch: whether labelled inputs pass through the student next to those with
            pseudo labels, without a loss, so that BatchNorm sees both, as in the released code.
        view: which view the student sees, strong or weak.
        average: decay of the student's moving average, which is then the one evaluated, or `None`;
            at step t it is at most (1 + t) / (10 + t), so that the first steps are forgotten.
        pretraining: trains the teacher before the first outer step, or `None`.
        fine_tuning: trains the student on the labelled examples at the end, or `None`.
        compat: replicate a released code, with the sign and the mean of its estimator set in
            `ScoreFunction(feedback="loss_difference", reversed=True, weight=1 / batch)`.
            `official` (TensorFlow): soft labels of the strong view, credited with the gradient of
            a cross entropy to themselves, which is zero: UDA plus distillation.
            `mpl_pytorch`: argmax labels of the weak view, while those of the strong are credited.
        seed: seed of the pretrained teacher.
        device: where the tensors live.

    References: Pham, Dai, Xie, Le, Meta Pseudo Labels, CVPR 2021.
    """

    def __init__(
        self,
        data: SemiSupervised,
        teacher: Architecture,
        student: Architecture,
        inner_optimizer: InnerOptimizer,
        labels: Labels = "sample",
        temperature: float = 1.0,
        feedback: float = 1.0,
        supervised: float = 1.0,
        consistency: Consistency | None = None,
        label_smoothing: float = 0.0,
        objective: Objective = "pseudo_labels",
        batch: int = 128,
        labelled_batch: int | None = None,
        labelled_in_batch: bool = False,
        view: View = "strong",
        average: float | None = None,
        pretraining: Pretraining | None = None,
        fine_tuning: FineTuning | None = None,
        compat: Compat | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.labels, self.objective, self.view, self.compat = labels, objective, view, compat
        check_choices(self, labels=get_args(Labels), objective=get_args(Objective))
        check_choices(self, view=get_args(View), compat=(None, *get_args(Compat)))
        if objective == "consistency" and consistency is None:
            raise ValueError("objective=consistency needs problem.consistency; it is null.")
        self.data, self.resplit = data.to(device), data.resplit
        self.teacher = Network(lambda: teacher(data.shape, data.classes))
        self.student = Network(lambda: student(data.shape, data.classes))
        if self.teacher.frozen and pretraining is None:
            raise ValueError(
                "a teacher with frozen parameters (Reduced) needs pretraining, or its labels are "
                "random for ever. Set problem.pretraining."
            )
        self._noisy = self.teacher.draws_noise(data.labelled[:2])
        self.inner_optimizer, self.pretraining = inner_optimizer, pretraining
        self.temperature, self.feedback = temperature, feedback
        self.batch, self.labelled_batch = batch, labelled_batch
        self.label_smoothing, self.labelled_in_batch = label_smoothing, labelled_in_batch
        self.average, self.fine_tuning = average, fine_tuning
        self.seed, self.device = seed, torch.device(device)
        check_ranges(
            self, "temperature > 0", "feedback >= 0", "batch >= 1", "labelled_batch >= 1 or null",
            "0 <= average < 1 or null",
        )  # fmt: skip
        self.teacher_loss = DirectLoss(supervised, consistency, label_smoothing)
        unlabelled = consistency if objective == "consistency" else None
        self.student_loss = DirectLoss(1.0, unlabelled, label_smoothing)
        decided = labels != "soft" and objective == "pseudo_labels"
        self.hard_decisions = decided and feedback > 0
        if data.shape == (2,) and data.classes == 2:
            self.report = BoundaryReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the teacher's parameters; a pretrained teacher depends on `seed` alone."""
        start = self.teacher.init(generator) if self.pretraining is None else self.pretrained
        return {k: start[k].to(self.device, copy=True) for k in self.teacher.params}

    @cached_property
    def pretrained(self) -> Tree:
        """All tensors of the pretrained teacher.

        Raises:
            ValueError: there is no pretraining.
        """
        if self.pretraining is None:
            raise ValueError("this problem has pretraining=None.")
        network = self.teacher.unfrozen

        def teacher_loss(tensors: Tree, step: int, draw: Generator) -> Tensor:
            return self.teacher_loss(network, tensors, self._labelled(draw, step))

        key = fold(self.seed, "teacher")
        return self.pretraining(self.teacher, self.data, teacher_loss, key)

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the student's parameters."""
        start = self.student.init(generator)
        return {k: start[k].to(self.device) for k in self.student.params}

    @cached_property
    def frozen(self) -> Tree:  # type: ignore[override]
        """The teacher's frozen parameters, which pretraining has trained, and the student's."""
        frozen = {f"teacher.{k}": self._untrained[0][k] for k in self.teacher.frozen}
        return frozen | {k: self._untrained[1][k] for k in self.student.frozen}

    @cached_property
    def _untrained(self) -> tuple[Tree, Tree]:
        """Both networks' tensors, of which this reads those that no step trains."""
        zero = torch.Generator().manual_seed(0)
        teacher = self.teacher.init(zero) if self.pretraining is None else self.pretrained
        student = self.student.init(zero)
        return _to(teacher, self.device), _to(student, self.device)

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return both networks' BatchNorm statistics."""
        teacher, student = self._untrained
        buffers = {k: student[k] for k in self._statistics}
        names = (k for k in self.teacher.buffers if k not in self.teacher.frozen)
        return tree.clone(buffers | {f"teacher.{k}": teacher[k] for k in names})

    def init_state(self, outer: Tree, params: Tree) -> dict[str, Any]:
        """Return the average at the student itself, where there is one."""
        if self.average is None:
            return {}
        statistics = {k: self._untrained[1][k] for k in self._statistics}
        return {"average": {k: v.clone() for k, v in (params | statistics).items()}}

    @cached_property
    def _statistics(self) -> tuple[str, ...]:
        """Names of the student's BatchNorm statistics."""
        return tuple(k for k in self.student.buffers if k not in self.student.frozen)

    def inner_batch(self, draw: Draw) -> Examples:
        """Return two views of random unlabelled inputs, and labelled ones where they are used."""
        labelled = self.objective != "pseudo_labels" or self.labelled_in_batch
        unlabelled = self.objective != "supervised"
        return self._examples(draw.generator, draw.total_inner_step, labelled, unlabelled)

    def outer_batch(self, draw: Draw) -> Examples:
        """Return labelled inputs, and two views of unlabelled ones where UDA needs them."""
        return self._labelled(draw.generator, draw.total_inner_step)

    def _labelled(self, generator: Generator, step: int) -> Examples:
        unlabelled = self.teacher_loss.consistency is not None
        return self._examples(generator, step, labelled=True, unlabelled=unlabelled)

    def prepare_batch(
        self, outer: Tree, inner: InnerTensors, batch: Examples, draw: Draw
    ) -> Examples:
        """Return the batch with the teacher's hard labels of the weak views."""
        if self.labels == "soft" or self.objective != "pseudo_labels":
            return batch
        view: View = "strong" if self.compat == "official" else "weak"
        logits = self._label_logits(outer, inner, batch, view)
        if self.compat == "official":
            return batch._replace(labels=torch.softmax(logits, -1))
        if self.compat == "mpl_pytorch" or self.labels == "argmax":
            return batch._replace(labels=logits.argmax(-1))
        # By inverse transform from CPU numbers, so that labels do not depend on the device.
        uniform = torch.rand(len(logits), 1, generator=draw.generator).to(logits)
        below = torch.softmax(logits, -1).cumsum(-1)[:, :-1]
        return batch._replace(labels=(uniform > below).sum(-1))

    def inner_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the student's loss, a scalar."""
        if self.objective != "pseudo_labels":
            return self.student_loss(self.student, inner, batch)
        return self.inner_losses(outer, inner, batch).mean()

    def inner_losses(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the cross entropy of each pseudo-labelled example, (B,)."""
        target = batch.labels
        if target is None:
            target = torch.softmax(self._label_logits(outer, inner, batch, "weak"), -1)
        inputs = batch.strong if self.view == "strong" else batch.weak
        if self.labelled_in_batch:
            inputs = torch.cat([inputs, batch.labelled])
        logits = self.student.train(inner, inputs)[: len(target)]
        smoothing = self.label_smoothing
        return cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    def log_prob(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return log T(y_b | u_b; phi) of the decided labels, (B,).

        Raises:
            ValueError: the labels are soft, so that nothing was decided.
        """
        if batch.labels is None:
            raise ValueError(
                "ScoreFunction needs sampled labels, and this problem has "
                f"labels={self.labels}, objective={self.objective}. Set labels=sample, or use "
                "estimator=one_step or estimator=unroll."
            )
        view: View = "weak" if self.compat is None else "strong"
        # Cloned, as a forward pass in training mode would move BatchNorm's statistics again.
        logits = self._label_logits(outer, tree.clone(inner), batch, view)
        labels = logits.argmax(-1) if self.compat == "mpl_pytorch" else batch.labels
        return -cross_entropy(logits, labels, reduction="none")

    def feedback_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return feedback * CE(y_l, S(x_l)) without dropout, on running statistics."""
        logits = self.student.evaluate(inner, batch.labelled)
        return self.feedback * cross_entropy(logits, batch.classes)

    def outer_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the student's labelled loss plus the teacher's own."""
        loss = self.teacher_loss(self.teacher, self.teacher_tensors(outer, inner), batch)
        return loss + self.feedback_loss(outer, inner, batch) if self.feedback else loss

    def update_state(self, outer: Tree, inner: InnerTensors, step: int) -> dict[str, Any]:
        """Move the student's average, its BatchNorm statistics included."""
        if self.average is None:
            return inner.state
        weight = 1 - min(self.average, (1 + step) / (10 + step))
        average = inner.state["average"]
        # A count of batches has no average: it is the latest.
        return {
            "average": {
                k: v.lerp(inner[k], weight) if v.is_floating_point() else inner[k].clone()
                for k, v in average.items()
            }
        }

    @torch.no_grad()
    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float]:
        """Return accuracies in %, and how certain and how varied the teacher's labels are."""
        tensors = inner.params | inner.buffers | self.frozen
        data, student = self.data, self.evaluated(inner)
        figures = {
            "test_accuracy": accuracy(self.student, student, data.test, data.test_labels),
            "labelled_accuracy": accuracy(self.student, student, data.labelled, data.labels),
        }
        if self.objective == "pseudo_labels":
            teacher = self.teacher_tensors(outer, tensors)
            logits = outputs(self.teacher, teacher, data.test)
            probabilities = torch.softmax(logits / self.temperature, -1)
            figures |= {
                "teacher_accuracy": percentage(logits, data.test_labels),
                "label_entropy": label_entropy(probabilities),
                "label_confidence": confidence(probabilities),
            }
        return {k: float(v) for k, v in figures.items()}

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return the state whose student, the average where there is one, was fine-tuned."""
        if self.fine_tuning is None:
            return inner
        start = self.evaluated(inner)
        tuned = self.fine_tuning(self.student, start, self.data, key)
        params = {k: tuned[k] for k in self.student.params}
        buffers = inner.buffers | {k: tuned[k] for k in self._statistics}
        if self.average is None:
            return inner._replace(params=params, buffers=buffers)
        average = tree.clone({k: tuned[k] for k in inner.state["average"]})
        return inner._replace(params=params, buffers=buffers, state={"average": average})

    def evaluated(self, inner: GradientState) -> Tree:
        """Return the student's tensors that are reported: the average where there is one."""
        if self.average is not None:
            result: Tree = inner.state["average"] | self.frozen
            return result
        return inner.params | inner.buffers | self.frozen

    def teacher_tensors(self, outer: Tree, inner: Tree) -> Tree:
        """Return the teacher's parameters and buffers."""
        return outer | {k: inner[f"teacher.{k}"] for k in self.teacher.buffers}

    def _label_logits(self, outer: Tree, inner: Tree, batch: Examples, view: View) -> Tensor:
        """Return the logits that the teacher labels a view with, (B, C)."""
        x = batch.weak if view == "weak" else batch.strong
        with nullcontext() if batch.noise is None else replay(batch.noise):
            return self.teacher.train(self.teacher_tensors(outer, inner), x) / self.temperature

    def _examples(
        self, generator: Generator, step: int, labelled: bool, unlabelled: bool
    ) -> Examples:
        data = self.data
        noise = generator.initial_seed() if self._noisy else None
        x, y = data.labelled, data.labels
        if labelled and self.labelled_batch is not None:
            chosen = torch.randint(len(x), (self.labelled_batch,), generator=generator)
            x, y = x[chosen], y[chosen]
        x = data.weak(x, generator) if labelled else x[:0]
        u = data.unlabelled[:0]
        if unlabelled:
            u = data.unlabelled[
                torch.randint(len(data.unlabelled), (self.batch,), generator=generator)
            ]
        return Examples(x, y, data.weak(u, generator), data.strong(u, generator), None, noise, step)


def _to(tensors: Tree, device: torch.device) -> Tree:
    return {k: v.to(device) for k, v in tensors.items()}
