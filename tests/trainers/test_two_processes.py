"""Weighted trainers in two processes under gloo: the gradient of one process on all rows."""

from __future__ import annotations

import os
import socket

import pytest

pytest.importorskip("trl")

import torch
import torch.multiprocessing as mp
from test_transformers_trainers import encoded
from test_transformers_trainers import step as plain_step
from test_trl_trainers import expected, make, net_of, step
from tiny import WEIGHTS, error, gradient, model, rows, sft_losses

from metaopt.trainers import ResampledSFTTrainer, WeightedTrainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HALF = {"ddp_backend": "gloo", "per_device_train_batch_size": 4}


def rank(number, port, folder):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), HF_HUB_OFFLINE="1", WANDB_MODE="offline",
    )  # fmt: skip
    results = {"causal": plain_step(WeightedTrainer, model(), encoded(), folder, **HALF)[0]}
    for kind in ("sft", "dpo", "reward"):
        (results[kind],) = step(kind, net_of(kind), rows(kind), folder, **HALF)
    halves = HALF | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    (results["accumulated"],) = step("sft", model(), rows("sft"), folder, **halves)
    drawn, _ = make("sft", model(), rows("sft"), folder, trainer=ResampledSFTTrainer, **HALF)
    (batch,) = drawn.get_train_dataloader()
    results["drawn"] = [row[row > 0].tolist() for row in batch["input_ids"]]
    torch.save(results, f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    net = model()
    whole = {kind: expected(kind, net_of(kind), rows(kind)) for kind in ("sft", "dpo", "reward")}
    whole["causal"] = whole["accumulated"] = gradient(net, sft_losses(net, rows("sft")), WEIGHTS)
    for kind, value in whole.items():
        assert torch.equal(first[kind], second[kind])
        assert error(first[kind], value) < 1e-5, kind
    one, _ = make("sft", model(), rows("sft"), tmp_path, trainer=ResampledSFTTrainer)
    (batch,) = one.get_train_dataloader()
    drawn = [row[row > 0].tolist() for row in batch["input_ids"]]
    assert sorted(first["drawn"] + second["drawn"]) == sorted(drawn)
