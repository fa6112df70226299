"""The CIFAR-10-4K experiment: its rates at full length, and all of its parts in a tiny run."""

import json

import pytest
import torch
from hydra.utils import instantiate
from test_semi_supervised import write_cifar

from metaopt.cli.loading import composing

TINY = [
    "seed=0", "outer_steps=8", "log_every=1", "eval_every=8", "checkpoint_every=2", "figures=false",
    "problem.data.labels_per_class=2", "problem.batch=14", "problem.labelled_batch=4",
    "problem.inner_optimizer.schedule.wait=3", "problem.inner_optimizer.schedule.warmup=2",
    "optimizer.scheduler.lr_lambda.warmup=3", "problem.fine_tuning.steps=2",
    "problem.teacher.depth=10", "problem.student.depth=10",
    "problem.teacher.width=1", "problem.student.width=1",
]  # fmt: skip


def test_rates_over_a_million_steps():
    from hydra import compose

    with composing():
        config = compose("train", ["experiment=meta_pseudo_labels/cifar10_4k"])
        schedule = instantiate(config.problem.inner_optimizer.schedule)
        scheduler = instantiate(config.optimizer.scheduler)
    assert [schedule(t) for t in (0, 2999, 3000, 8000, 1_000_000)] == [0, 0, 1 / 5000, 1, 0]
    assert schedule((1_000_000 + 8000) // 2) == pytest.approx(0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    teacher = scheduler(optimizer)
    rates = []
    for _ in range(5001):
        rates.append(teacher.get_last_lr()[0])
        optimizer.step()
        teacher.step()
    assert rates[0] == pytest.approx(0.05 / 5000)
    assert rates[4999] == rates[5000] == pytest.approx(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "uda", "loss_difference"])
def test_a_tiny_run_has_every_part_and_resumes(method, metaopt, tmp_path):
    write_cifar(tmp_path / "cifar")
    experiment = [
        "experiment=meta_pseudo_labels/cifar10_4k", f"method=meta_pseudo_labels/{method}",
        f"problem.data.source={tmp_path / 'cifar'}", *TINY,
    ]  # fmt: skip
    done = metaopt(*experiment)
    assert done.code == 0, done.err
    (folder,) = (path.parent for path in (tmp_path / "results").rglob("result.json"))
    result = (folder / "result.json").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if method == "loss_difference":
        feedback = [line["outer/feedback"] for line in lines]
        assert feedback[:3] == [0.0] * 3  # the student waits
        assert all(feedback[3:])
    for name in ("result.json", "final.pt", "checkpoints/step_00000008.pt"):
        (folder / name).unlink()
    done = metaopt(*experiment)
    assert done.code == 0, done.err
    assert (folder / "result.json").read_text() == result
