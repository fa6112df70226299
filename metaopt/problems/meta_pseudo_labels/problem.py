"""Meta Pseudo Labels: a teacher learns to label from how well its student does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.engine import tree
from metaopt.engine.inner import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, replay
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

    phi (`outer`) is the teacher, theta (`inner`) the student, kept from step to step. Sampled
    labels need the estimator `ScoreFunction`; soft labels `OneStep` or `Unroll(1)`.

    Names: theta's under the student module's own names; among the buffers, `teacher.<name>` are
    the teacher's BatchNorm statistics and frozen parameters, `average.<name>` the moving average
    of the student, `step` the number of steps taken. The feedback is measured without dropout and
    on BatchNorm's running statistics: their noise is larger than its signal.

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
        objective: what the student learns from: pseudo_labels; supervised, only the labelled
            examples; or consistency, the labelled examples plus UDA (baselines).
        batch: unlabelled examples in a batch.
        labelled_batch: labelled examples in a batch, or `None` for all of them.
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
        objective: Objective = "pseudo_labels",
        batch: int = 128,
        labelled_batch: int | None = None,
        view: View = "strong",
        average: float | None = None,
        pretraining: Pretraining | None = None,
        fine_tuning: FineTuning | None = None,
        compat: Compat | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        _check_choice("labels", labels, get_args(Labels))
        _check_choice("objective", objective, get_args(Objective))
        _check_choice("view", view, get_args(View))
        _check_choice("compat", compat, (None, *get_args(Compat)))
        _check_numbers(temperature, feedback, batch, labelled_batch, average)
        if objective == "consistency" and consistency is None:
            raise ValueError("objective=consistency needs problem.consistency; it is null.")
        self.data = data.to(device)
        self.teacher = Network(lambda: teacher(data.shape, data.classes))
        self.student = Network(lambda: student(data.shape, data.classes))
        if self.teacher.frozen and pretraining is None:
            raise ValueError(
                "a teacher with frozen parameters (Reduced) needs pretraining, or its labels are "
                "random for ever. Set problem.pretraining."
            )
        self.inner_optimizer, self.pretraining = inner_optimizer, pretraining
        self.labels, self.temperature, self.objective = labels, temperature, objective
        self.feedback, self.batch, self.labelled_batch = feedback, batch, labelled_batch
        self.view, self.average, self.fine_tuning = view, average, fine_tuning
        self.compat, self.seed, self.device = compat, seed, torch.device(device)
        self.teacher_loss = DirectLoss(supervised, consistency)
        self.student_loss = DirectLoss(1.0, consistency if objective == "consistency" else None)
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

        def own_loss(tensors: Tree, step: int, draw: Generator) -> Tensor:
            steps = torch.tensor(float(step), device=self.device)
            return self.teacher_loss(network, tensors, self.outer_batch(draw), steps)

        key = fold(self.seed, "teacher")
        return self.pretraining(self.teacher, self.data, own_loss, key)

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the student's parameters."""
        start = self.student.init(generator)
        return {k: start[k].to(self.device) for k in self.student.params}

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return both networks' statistics, the average at the student itself, and step 0."""
        zero = torch.Generator().manual_seed(0)
        teacher = self.teacher.init(zero) if self.pretraining is None else self.pretrained
        student = self.student.init(zero)
        own = {k: student[k].to(self.device) for k in self.student.buffers}
        buffers = own | {
            f"teacher.{k}": teacher[k].to(self.device, copy=True) for k in self.teacher.buffers
        }
        if self.average is not None:
            buffers |= {f"average.{k}": v.clone() for k, v in (params | own).items()}
        return buffers | {"step": torch.zeros((), device=self.device)}

    def inner_batch(self, generator: Generator) -> Examples:
        """Return two views of random unlabelled inputs, and labelled ones where they are used."""
        own, supervised = self.objective != "pseudo_labels", self.objective == "supervised"
        return self._draw(generator, labelled=own, unlabelled=not supervised)

    def outer_batch(self, generator: Generator) -> Examples:
        """Return labelled inputs, and two views of unlabelled ones where UDA needs them."""
        unlabelled = self.teacher_loss.consistency is not None
        return self._draw(generator, labelled=True, unlabelled=unlabelled)

    def decide(self, outer: Tree, inner: Tree, batch: Examples, generator: Generator) -> Examples:
        """Return the batch with the teacher's hard labels of the weak views."""
        if self.labels == "soft" or self.objective != "pseudo_labels":
            return batch
        view: View = "strong" if self.compat == "official" else "weak"
        logits = self._label_logits(outer, inner, batch, view)
        if self.compat == "official":
            return batch._replace(labels=torch.softmax(logits, -1))
        if self.compat == "mpl_pytorch" or self.labels == "argmax":
            return batch._replace(labels=logits.argmax(-1))
        uniform = torch.rand(len(logits), 1, generator=generator).to(logits)
        below = torch.softmax(logits, -1).cumsum(-1)[:, :-1]
        return batch._replace(labels=(uniform > below).sum(-1))

    def inner_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the student's loss, a scalar."""
        if self.objective != "pseudo_labels":
            return self.student_loss(self.student, inner, batch, inner["step"])
        return self.inner_losses(outer, inner, batch).mean()

    def inner_losses(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the cross entropy of each pseudo-labelled row, (B,).

        Raises:
            ValueError: the estimator differentiates through decided labels.
        """
        target = batch.labels
        if target is not None and self.feedback and any(v.requires_grad for v in outer.values()):
            raise ValueError(
                f"labels={self.labels} are decisions without a derivative: this estimator would "
                f"see no feedback. Use estimator=score_function, or set problem.labels=soft."
            )
        if target is None:
            target = torch.softmax(self._label_logits(outer, inner, batch, "weak"), -1)
        seen = batch.strong if self.view == "strong" else batch.weak
        return cross_entropy(self.student.train(inner, seen), target, reduction="none")

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
        logits = self._label_logits(outer, tree.clone(inner), batch, view)
        labels = logits.argmax(-1) if self.compat == "mpl_pytorch" else batch.labels
        return -cross_entropy(logits, labels, reduction="none")

    def feedback_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return feedback * CE(y_l, S(x_l)) without dropout, on running statistics."""
        logits = self.student.evaluate(inner, batch.labelled)
        return self.feedback * cross_entropy(logits, batch.classes)

    def outer_loss(self, outer: Tree, inner: Tree, batch: Examples) -> Tensor:
        """Return the student's labelled loss plus the teacher's own."""
        own = self.teacher_loss(
            self.teacher, self.teacher_tensors(outer, inner), batch, inner["step"]
        )
        return own + self.feedback_loss(outer, inner, batch) if self.feedback else own

    def carry(self, outer: Tree, params: Tree, buffers: Tree, step: int) -> Tree:
        """Count the step and move the student's average, in place."""
        buffers["step"] += 1
        if self.average is not None:
            decay = min(self.average, (1 + step) / (10 + step))
            state = params | buffers
            for name in (*self.student.params, *self.student.buffers):
                value, average = state[name], buffers[f"average.{name}"]
                if value.is_floating_point():
                    average.lerp_(value, 1 - decay)
                else:
                    average.copy_(value)
        return buffers

    @torch.no_grad()
    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float]:
        """Return accuracies in %, and how certain and how varied the teacher's labels are."""
        tensors = inner.params | inner.buffers
        data, student = self.data, self.evaluated(tensors)
        found = {
            "test_accuracy": accuracy(self.student, student, data.test, data.test_labels),
            "labelled_accuracy": accuracy(self.student, student, data.labelled, data.labels),
        }
        if self.objective == "pseudo_labels":
            teacher = self.teacher_tensors(outer, tensors)
            logits = outputs(self.teacher, teacher, data.test)
            probabilities = torch.softmax(logits / self.temperature, -1)
            found |= {
                "teacher_accuracy": percentage(logits, data.test_labels),
                "label_entropy": label_entropy(probabilities),
                "label_confidence": confidence(probabilities),
            }
        return {k: float(v) for k, v in found.items()}

    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the state whose student, the average where there is one, was fine-tuned."""
        if self.fine_tuning is None:
            return inner
        start = self.evaluated(inner.params | inner.buffers)
        tuned = self.fine_tuning(self.student, start, self.data, key)
        params = {k: tuned[k] for k in self.student.params}
        buffers = inner.buffers | {k: tuned[k] for k in self.student.buffers}
        if self.average is not None:
            buffers |= {f"average.{k}": v.clone() for k, v in tuned.items()}
        return inner._replace(params=params, buffers=buffers)

    def evaluated(self, inner: Tree) -> Tree:
        """Return the student's tensors that are reported: the average where there is one."""
        if self.average is None:
            return inner
        return {k: inner[f"average.{k}"] for k in (*self.student.params, *self.student.buffers)}

    def teacher_tensors(self, outer: Tree, inner: Tree) -> Tree:
        """Return the teacher's parameters and buffers."""
        return outer | {k: inner[f"teacher.{k}"] for k in self.teacher.buffers}

    def _label_logits(self, outer: Tree, inner: Tree, batch: Examples, view: View) -> Tensor:
        """Return the logits that the teacher labels a view with, (B, C)."""
        x = batch.weak if view == "weak" else batch.strong
        with replay(batch.noise):
            return self.teacher.train(self.teacher_tensors(outer, inner), x) / self.temperature

    def _draw(self, generator: Generator, labelled: bool, unlabelled: bool) -> Examples:
        data = self.data
        noise = generator.initial_seed()
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
        return Examples(x, y, data.weak(u, generator), data.strong(u, generator), None, noise)


def _check_choice(name: str, value: str | None, legal: Sequence[str | None]) -> None:
    if value not in legal:
        options = ", ".join("null" if option is None else option for option in legal)
        raise ValueError(f"{name} must be one of {options}; got {value!r}.")


def _check_numbers(
    temperature: float,
    feedback: float,
    batch: int,
    labelled_batch: int | None,
    average: float | None,
) -> None:
    if temperature <= 0 or feedback < 0:
        raise ValueError(
            f"MetaPseudoLabels needs temperature > 0 and feedback >= 0; "
            f"got {temperature} and {feedback}."
        )
    if batch < 1 or (labelled_batch is not None and labelled_batch < 1):
        raise ValueError(
            f"MetaPseudoLabels needs batch >= 1 and labelled_batch >= 1 or null; "
            f"got {batch} and {labelled_batch}."
        )
    if average is not None and not 0 <= average < 1:
        raise ValueError(f"MetaPseudoLabels needs 0 <= average < 1 or null; got {average}.")
