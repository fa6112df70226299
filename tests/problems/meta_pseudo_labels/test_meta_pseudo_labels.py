"""Meta Pseudo Labels: what its gradients are, against enumeration, the unroll and by hand."""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import Draw, fold, generator
from metaopt.estimators import FiniteDifference, Implicit, OneStep, ScoreFunction, Unroll
from metaopt.nn import MLP
from metaopt.optimizers import Descent
from metaopt.problems.meta_pseudo_labels import MetaPseudoLabels
from metaopt.problems.meta_pseudo_labels.data import GaussianNoise, SemiSupervised
from metaopt.problems.meta_pseudo_labels.evaluation import label_entropy
from metaopt.problems.meta_pseudo_labels.losses import Consistency, DirectLoss
from metaopt.problems.meta_pseudo_labels.models import ConvNet, Reduced
from metaopt.problems.meta_pseudo_labels.phases import FineTuning, Pretraining, corrupt

LINEAR = functools.partial(MLP, widths=())
SMALL = functools.partial(MLP, widths=(8,), activation="tanh")


def blobs(seed=0, unlabelled=4, labelled=6, features=2, dtype=torch.float64):
    draw = generator(seed)
    x = torch.randn(unlabelled + labelled, features, generator=draw, dtype=dtype)
    y = (x[:, 0] > 0).long()
    return SemiSupervised(
        x[:labelled], y[:labelled], x, y, x, y, 2, strong=GaussianNoise(0.1)
    )  # fmt: skip


def double(module):
    """Return the architecture with float64 parameters."""
    return lambda shape, classes: module(shape, classes).double()


def problem(data=None, network=SMALL, **settings):
    data = data or blobs()
    network = double(network) if data.labelled.dtype == torch.float64 else network
    settings = {"inner_optimizer": SGD(lr=0.5), "batch": 4, **settings}
    return MetaPseudoLabels(data, network, network, **settings)


def started(made, seed=3):
    outer = made.init_outer(generator(fold(seed, "outer")))
    return outer, InnerLoop(made).start(outer, None, fold(seed, "inner"))


def cosine_and_ratio(a, b):
    return tree.dot(a, b) / (tree.norm(a) * tree.norm(b)), tree.norm(a) / tree.norm(b)


class TestAgainstEnumeration:
    """All 2^B label vectors of a small batch: the expectation that the samples stand for."""

    def expectation(self, made, outer, inner, key):
        """Return d/dphi of E_y[F(theta'(y))] and what `estimate` gives on average over y."""
        batch = made.inner_batch(Draw(fold(key, 0)))
        phi = tree.leaves(outer)
        total = torch.zeros((), dtype=torch.float64)
        for code in range(2 ** len(batch.weak)):
            y = torch.tensor([code >> i & 1 for i in range(len(batch.weak))])
            decided = batch._replace(labels=y)
            log_prob = made.log_prob(phi, inner.params | inner.buffers, decided).sum()
            loop = InnerLoop(made)
            after = loop.step_(outer, tree.clone(inner), loop.draw(inner, key, 0), decided)
            value = loop.outer_value(outer, after, loop.outer_draw(after, key))
            total = total + log_prob.exp() * value
        return tree.like(phi, torch.autograd.grad(total, list(phi.values())))

    @pytest.mark.parametrize("reversed_sign", [False, True])
    def test_loss_difference_is_the_gradient_of_the_expected_loss(self, monkeypatch, reversed_sign):
        made = problem(supervised=0.0, network=LINEAR)
        outer, inner = started(made)
        exact = self.expectation(made, outer, inner, 11)
        estimator = ScoreFunction("loss_difference", reversed=reversed_sign)
        batch = made.inner_batch(Draw(fold(11, 0)))
        mean = tree.zeros_like(outer)
        for code in range(2 ** len(batch.weak)):
            y = torch.tensor([code >> i & 1 for i in range(len(batch.weak))])
            decided = batch._replace(labels=y)
            p = made.log_prob(outer, inner.params | inner.buffers, decided).sum().exp()
            monkeypatch.setattr(made, "prepare_batch", lambda *_, d=decided: d)
            _, feedback = estimator(InnerLoop(made), outer, tree.clone(inner), 11)
            mean = tree.add(mean, feedback.grad, p)
        cosine, ratio = cosine_and_ratio(mean, exact)
        assert cosine == pytest.approx(-1 if reversed_sign else 1, abs=1e-10)
        assert ratio == pytest.approx(1, abs=1e-10)

    def test_labels_are_sampled_from_the_teacher(self):
        made = problem(batch=20000, temperature=0.7)
        outer, inner = started(made)
        batch = InnerLoop(made).batch(outer, inner, Draw(5))
        expected = made.log_prob(
            outer, inner.params | inner.buffers, batch._replace(labels=torch.ones(20000).long())
        ).exp()
        assert batch.labels.double().mean() == pytest.approx(expected.mean().item(), abs=0.01)


@pytest.mark.parametrize("consistency", [None, Consistency(ramp=0)])
def test_soft_labels_one_step_equals_the_unroll(consistency):
    made = problem(
        labels="soft", consistency=consistency, inner_optimizer=SGD(lr=0.5, momentum=0.9)
    )
    outer, inner = started(made)
    after, feedback = OneStep()(InnerLoop(made), outer, tree.clone(inner), 7)
    unrolled, expected = Unroll(1)(InnerLoop(made), outer, tree.clone(inner), 7)
    assert tree.norm(tree.add(feedback.grad, expected.grad, -1.0)) < 1e-12 * tree.norm(
        expected.grad
    )
    assert feedback.value == pytest.approx(float(expected.value))
    assert tree.norm(tree.add(after.params, unrolled.params, -1.0)) < 1e-12


def test_teacher_and_student_start_differently():
    made = problem()
    outer, inner = started(made)
    assert not any(torch.equal(outer[k], inner.params[k]) for k in outer)


def test_outer_loss_is_feedback_plus_direct_terms():
    made = problem(feedback=2.0, supervised=0.5, consistency=Consistency(weight=3.0, ramp=4))
    outer, inner = started(made)
    tensors = inner.params | inner.buffers
    batch = made.outer_batch(Draw(1, total_inner_step=1))
    student = made.student.evaluate(tensors, batch.labelled)
    labelled = made.teacher.evaluate(outer, batch.labelled)
    q = torch.softmax(made.teacher.evaluate(outer, batch.weak) / 0.5, -1)
    strong = log_softmax(made.teacher.evaluate(outer, batch.strong), -1)
    by_hand = (
        2.0 * cross_entropy(student, batch.classes)
        + 0.5 * cross_entropy(labelled, batch.classes)
        + 3.0 * 0.25 * -(q * strong).sum(-1).mean()
    )
    assert made.outer_loss(outer, tensors, batch) == pytest.approx(by_hand.item(), rel=1e-12)


def test_label_smoothing_is_of_labels_and_pseudo_labels_but_not_of_the_feedback():
    made = problem(feedback=2.0, label_smoothing=0.15)
    outer, inner = started(made)
    tensors = inner.params | inner.buffers
    batch = made.outer_batch(Draw(1))
    student = made.student.evaluate(tensors, batch.labelled)
    labelled = log_softmax(made.teacher.evaluate(outer, batch.labelled), -1)
    targets = torch.full_like(labelled, 0.075)
    targets[range(len(targets)), batch.classes] = 0.925
    by_hand = 2.0 * cross_entropy(student, batch.classes) - (targets * labelled).sum(-1).mean()
    assert made.outer_loss(outer, tensors, batch) == pytest.approx(by_hand.item(), rel=1e-12)

    batch = InnerLoop(made).batch(outer, inner, Draw(1))
    logits = log_softmax(made.student.evaluate(tensors, batch.strong), -1)
    targets = torch.full_like(logits, 0.075)
    targets[range(len(targets)), batch.labels] = 0.925
    by_hand = -(targets * logits).sum(-1).mean()
    assert made.inner_loss(outer, tensors, batch) == pytest.approx(by_hand.item(), rel=1e-12)


def test_labelled_inputs_pass_through_the_students_batch_norm():
    class Normed(torch.nn.Sequential):
        def __init__(self, shape, classes):
            super().__init__(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, classes))

    made = problem(network=Normed, labelled_batch=3, labelled_in_batch=True, label_smoothing=0.1)
    outer, inner = started(made)
    loop = InnerLoop(made)
    batch = loop.batch(outer, inner, Draw(1))
    assert len(batch.labelled) == 3
    after = loop.step_(outer, tree.clone(inner), Draw(1), batch)
    both = torch.cat([batch.strong, batch.labelled])
    assert torch.allclose(after.buffers["0.running_mean"], 0.1 * both.mean(0))
    normed = (both - both.mean(0)) / (both.var(0, unbiased=False) + 1e-5).sqrt()
    logits = normed[:4] @ inner.params["1.weight"].T + inner.params["1.bias"]
    by_hand = cross_entropy(logits, batch.labels, label_smoothing=0.1)
    tensors = tree.clone(inner.params | inner.buffers)
    assert made.inner_loss(outer, tensors, batch) == pytest.approx(by_hand.item(), rel=1e-9)


def test_objectives_of_the_baselines():
    supervised = problem(objective="supervised", labels="soft")
    outer, inner = started(supervised)
    tensors = inner.params | inner.buffers
    batch = InnerLoop(supervised).batch(outer, inner, Draw(3))
    loss = supervised.inner_loss(outer, tensors, batch)
    logits = supervised.student.evaluate(tensors, supervised.data.labelled)
    assert loss == pytest.approx(cross_entropy(logits, supervised.data.labels).item())

    uda = problem(objective="consistency", labels="soft", consistency=Consistency(ramp=0))
    direct = DirectLoss(1.0, Consistency(ramp=0))
    batch = InnerLoop(uda).batch(outer, inner, Draw(3))
    expected = direct(uda.student, tensors, batch)
    assert uda.inner_loss(outer, tensors, batch) == pytest.approx(expected.item())


@pytest.mark.parametrize("labels", ["sample", "argmax"])
@pytest.mark.parametrize("estimator", [Unroll(1), OneStep(), Implicit(), FiniteDifference()])
def test_decided_labels_are_refused_by_estimators_that_would_see_no_feedback(labels, estimator):
    made = problem(labels=labels)
    with pytest.raises(ValueError, match=r"Use estimator=score_function, or let .*problem\.labels"):
        estimator.check(InnerLoop(made))


def test_average_follows_the_student():
    made = problem(average=0.9)
    outer, inner = started(made)
    expected = tree.clone(inner.params)
    for step in range(5):
        inner = InnerLoop(made).step_(outer, inner, Draw(fold(4, step)))
        decay = min(0.9, (2 + step) / (11 + step))
        expected = {k: decay * v + (1 - decay) * inner.params[k] for k, v in expected.items()}
    average = made.evaluated(inner)
    assert all(torch.allclose(average[k], expected[k], rtol=1e-12) for k in expected)


def test_fine_tuning_lowers_the_labelled_loss_and_moves_the_average():
    made = problem(average=0.9, fine_tuning=FineTuning(SGD(lr=0.5), steps=50))
    outer, inner = started(made)
    x, y = made.data.labelled, made.data.labels
    before = cross_entropy(made.student.evaluate(made.evaluated(inner), x), y)
    tuned = made.finish(outer, inner, InnerLoop(made), 9)
    after = cross_entropy(made.student.evaluate(made.evaluated(tuned), x), y)
    assert after < 0.5 * before
    assert all(torch.equal(tuned.params[k], tuned.state["average"][k]) for k in tuned.params)


class TestBatchNorm:
    def made(self, **settings):
        draw = generator(0)
        x = torch.randn(12, 1, 6, 6, generator=draw)
        y = torch.arange(12) % 2
        data = SemiSupervised(x[:4], y[:4], x, y, x, y, 2, strong=GaussianNoise(0.1))
        return problem(data, functools.partial(ConvNet, channels=(4, 4)), **settings)

    @pytest.mark.parametrize(
        ("labels", "estimator"),
        [
            ("sample", ScoreFunction("loss_difference")),
            ("sample", ScoreFunction("per_example")),
            ("soft", OneStep()),
            ("soft", Unroll(1)),
        ],
    )
    def test_both_networks_statistics_move_once_a_step(self, labels, estimator):
        made = self.made(labels=labels, average=0.5)
        outer, inner = started(made)
        copied = tree.clone(inner)
        for step in range(3):
            inner, _ = estimator(InnerLoop(made), outer, inner, fold(2, step))
        for name in ("1.num_batches_tracked", "teacher.1.num_batches_tracked"):
            assert inner.buffers[name] == 3
        assert not torch.equal(inner.buffers["1.running_mean"], copied.buffers["1.running_mean"])
        moved = inner.state["average"]["1.running_mean"]
        assert not torch.equal(moved, copied.buffers["1.running_mean"])
        assert inner.state["average"]["1.num_batches_tracked"] == 3

    def test_feedback_uses_running_statistics(self):
        made = self.made()
        outer, inner = started(made)
        tensors = inner.params | inner.buffers
        whole = made.outer_batch(Draw(1))
        rows = [
            made.feedback_loss(outer, tensors, whole._replace(labelled=x[None], classes=y[None]))
            for x, y in zip(whole.labelled, whole.classes, strict=True)
        ]
        mean = torch.stack(rows).mean()
        assert made.feedback_loss(outer, tensors, whole) == pytest.approx(mean.item(), rel=1e-5)


class TestPhases:
    def test_wrong_labels_are_as_many_as_asked_and_all_wrong(self):
        classes = torch.arange(100) % 10
        changed = corrupt(classes, 10, 0.6, 1)
        assert (changed != classes).sum() == 60
        assert changed.min() >= 0
        assert changed.max() < 10

    def test_pretrained_teacher_is_a_function_of_the_seed(self):
        pretraining = Pretraining(SGD(lr=0.5), steps=60)
        made = problem(pretraining=pretraining, seed=4)
        first = made.init_outer(generator(1))
        again = problem(pretraining=pretraining, seed=4).init_outer(generator(2))
        assert all(torch.equal(first[k], again[k]) for k in first)
        logits = made.teacher.evaluate(first, made.data.labelled)
        assert (logits.argmax(-1) == made.data.labels).all()

    def test_noisy_teacher_learns_from_wrong_labels(self):
        noisy = Pretraining(SGD(lr=0.5), steps=200, examples="noisy", wrong=0.9)
        made = problem(blobs(unlabelled=94), pretraining=noisy)
        logits = made.teacher.evaluate(made.init_outer(generator(1)), made.data.unlabelled)
        assert (logits.argmax(-1) == made.data.hidden_labels).double().mean() < 0.4

    def test_reduced_teacher_trains_its_head_on_a_fixed_base(self):
        network = functools.partial(Reduced, base=SMALL, widths=(4,))
        made = problem(
            blobs(dtype=torch.float32),
            network,
            pretraining=Pretraining(SGD(lr=0.5), steps=60),
            labels="soft",
        )
        outer, inner = started(made)
        assert all(name.startswith("head.") for name in outer)
        teacher = made.teacher_tensors(outer, made.frozen)
        logits = made.teacher.evaluate(teacher, made.data.labelled)
        assert (logits.argmax(-1) == made.data.labels).all()
        _, feedback = OneStep()(InnerLoop(made), outer, inner, 3)
        assert tree.norm(feedback.grad) > 0

    def test_reduced_teacher_needs_pretraining(self):
        with pytest.raises(ValueError, match="needs pretraining"):
            problem(blobs(dtype=torch.float32), functools.partial(Reduced, base=SMALL))


class TestReplication:
    def test_released_code_has_no_feedback_gradient(self):
        made = problem(compat="official", supervised=0.0)
        outer, inner = started(made)
        _, feedback = ScoreFunction("loss_difference", reversed=True)(
            InnerLoop(made), outer, inner, 3
        )
        assert tree.norm(feedback.grad) < 1e-15

    def test_mpl_pytorch_credits_the_strong_view(self):
        made = problem(compat="mpl_pytorch")
        outer, inner = started(made)
        tensors = inner.params | inner.buffers
        batch = InnerLoop(made).batch(outer, inner, Draw(3))
        weak = made.teacher.evaluate(outer, batch.weak)
        strong = made.teacher.evaluate(outer, batch.strong)
        assert torch.equal(batch.labels, weak.argmax(-1))
        credited = made.log_prob(outer, tensors, batch)
        assert torch.allclose(credited, log_softmax(strong, -1).amax(-1))


@pytest.mark.parametrize(
    "settings",
    [
        {"labels": "hard"},
        {"objective": "mpl"},
        {"view": "plain"},
        {"compat": "tensorflow"},
        {"temperature": 0.0},
        {"average": 1.0},
        {"supervised": -1.0},
        {"feedback": -1.0},
        {"batch": 0},
        {"labelled_batch": 0},
        {"objective": "consistency"},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        problem(**settings)


def test_soft_labels_have_no_score():
    made = problem(labels="soft")
    outer, inner = started(made)
    with pytest.raises(ValueError, match="labels=sample"):
        ScoreFunction()(InnerLoop(made), outer, inner, 1)


def feedback_only(estimator, seed, **settings):
    """Return the teacher's accuracy, trained by nothing but its student's labelled loss."""
    draw = generator(fold(seed, "moons"))
    x = torch.randn(400, 2, generator=draw)
    y = (x[:, 0] + x[:, 1] > 0).long()
    data = SemiSupervised(x[:100], y[:100], x[100:], y[100:], x[100:], y[100:], 2)
    made = MetaPseudoLabels(data, LINEAR, LINEAR, SGD(lr=0.5), batch=32, supervised=0.0, **settings)
    optimizer = Descent(functools.partial(torch.optim.Adam, lr=0.05))
    engine = Engine(made, estimator, optimizer, outer_steps=250, seed=seed)
    for _ in engine:
        continue
    return engine.metrics()["eval/teacher_accuracy"]


class TestFeedbackAlone:
    """The teacher sees no label: only the student's labelled loss can tell it the classes."""

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.slow
    def test_it_teaches_the_teacher(self, seed):
        assert feedback_only(OneStep(), seed, labels="soft") > 95
        assert feedback_only(ScoreFunction("per_example"), seed) > 90

    @pytest.mark.slow
    def test_the_flipped_sign_teaches_the_opposite(self):
        assert feedback_only(ScoreFunction("per_example", reversed=True), 0) < 60


def test_label_entropy_shows_a_collapse():
    assert label_entropy(torch.eye(4)) == pytest.approx(1.0)
    assert label_entropy(torch.eye(4)[:1].expand(8, 4)) == 0
    assert label_entropy(torch.eye(4)[:2]) == pytest.approx(0.5)
