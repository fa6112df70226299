"""Tiny models, data and single-row gradients in plain torch, for the trainers of trl."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    TrainerCallback,
)

from metaopt.nn.word_tokenizer import word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
WEIGHTS = [0.0, 2.5, 0.3, 1.2, 0.7, 1.3, 1.9, 0.1]
"""Of mean 1."""


def tokenizer():
    """Return a word tokenizer with an end of text and a separator of steps."""
    made = word_tokenizer([*WORDS, "[EOS]"])
    made.add_special_tokens({"eos_token": "[EOS]"})
    return made


def model(kind="causal", seed=0, **options):
    """Return a Llama of two layers."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
        num_labels={"reward": 1}.get(kind, 2), attn_implementation="eager", classifier_dropout=0.0,
        **options,
    )  # fmt: skip
    classes = {
        "causal": LlamaForCausalLM, "reward": LlamaForSequenceClassification,
        "tokens": LlamaForTokenClassification,
    }  # fmt: skip
    return classes[kind](config)


def text(draw, low, high):
    count = int(torch.randint(low, high, (1,), generator=draw))
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=draw).tolist())


def rows(kind, weights=WEIGHTS, seed=0):
    """Return rows of different lengths, as a trainer of this kind reads them."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(8):
        if kind == "sft":
            row = {"prompt": text(draw, 2, 5), "completion": " " + text(draw, 2, 9)}
        elif kind == "process":
            steps = [text(draw, 1, 5) for _ in range(2 + i % 3)]
            right = torch.randint(2, (len(steps),), generator=draw).bool().tolist()
            row = {"prompt": text(draw, 2, 5), "completions": steps, "labels": right}
        else:
            row = {name: " " + text(draw, 2, 9) for name in ("chosen", "rejected")}
            row["prompt"] = text(draw, 2, 5)
        made.append(row)
    data = Dataset.from_list(made)
    return data if weights is None else data.add_column("weight", list(weights[: len(data)]))


def ids(text, end=False):
    words = tokenizer()
    found = words(text)["input_ids"]
    return [*found, words.eos_token_id] if end else found


def logps(net, prompt, completion):
    """Return log p of each token of a completion, one row, without padding."""
    start, whole = ids(prompt), ids(prompt + completion, end=True)
    logits = net(input_ids=torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
    return logits.gather(-1, torch.tensor(whole[1:])[:, None])[len(start) - 1 :, 0]


def gradient(net, losses, weights):
    """Return sum_b w_b grad l_b, one backward pass per row."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for loss, weight in zip(losses, weights, strict=True):
        net.zero_grad()
        loss().backward()
        for sum_, p in zip(total, net.parameters(), strict=True):
            if p.grad is not None:
                sum_ += weight * p.grad
    net.zero_grad()
    return torch.cat([x.flatten() for x in total])


def sft_losses(net, data):
    count = sum(len(ids(r["completion"])) + 1 for r in data)
    return [lambda r=r: -logps(net, r["prompt"], r["completion"]).sum() / count for r in data]


def dpo_losses(net, data, reference, beta=0.1, ipo=False):
    def loss(r):
        def gap(of):
            chosen, rejected = (logps(of, r["prompt"], r[k]) for k in ("chosen", "rejected"))
            return (chosen.mean() - rejected.mean()) if ipo else (chosen.sum() - rejected.sum())

        with torch.no_grad():
            base = gap(reference)
        if ipo:
            return (gap(net) - base - 1 / (2 * beta)) ** 2 / len(data)
        return F.softplus(-beta * (gap(net) - base)) / len(data)

    return [lambda r=r: loss(r) for r in data]


def reward_losses(net, data, centre=0.0):
    def loss(r):
        chosen, rejected = (
            net(input_ids=torch.tensor([ids(r["prompt"] + r[k], end=True)])).logits.squeeze()
            for k in ("chosen", "rejected")
        )
        return (F.softplus(rejected - chosen) + centre * (chosen + rejected) ** 2) / len(data)

    return [lambda r=r: loss(r) for r in data]


def process_losses(net, data, separator="[STEP]"):
    count = sum(len(r["labels"]) for r in data)

    def loss(r):
        tokens, ends = ids(r["prompt"]), []
        for step in r["completions"]:
            tokens = tokens + ids(f"{step} {separator}")
            ends.append(len(tokens) - 1)
        logits = net(input_ids=torch.tensor([tokens])).logits[0, ends]
        return F.cross_entropy(logits, torch.tensor(r["labels"]).long(), reduction="sum") / count

    return [lambda r=r: loss(r) for r in data]


class Gradients(TrainerCallback):
    """Keeps the gradient of each optimizer step, as the optimizer is about to take it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        parts = [torch.zeros(1) if g is None else g.float().flatten().clone() for g in grads]
        self.steps.append(torch.cat(parts))


def settings(folder, **options):
    """Return arguments of a trainer that takes plain steps on the CPU and saves nothing."""
    return {
        "output_dir": str(folder), "use_cpu": True, "max_steps": 1, "learning_rate": 0.0,
        "per_device_train_batch_size": 8, "max_grad_norm": 0.0, "report_to": [], "bf16": False,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "optim": "sgd",
        "gradient_checkpointing": False, "lr_scheduler_type": "constant",
    } | options  # fmt: skip


def error(got, expected):
    return float((got - expected).norm() / expected.norm())
