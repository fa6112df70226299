"""A few rows of each of TRL's formats, and small models for them."""

from functools import partial

from metaopt.nn.transformers_model import TransformersModel
from metaopt.problems.data_curation import DPO, SFT, ProcessReward, Reward, TransformersRows
from metaopt.problems.data_curation.rows import rows

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
    "initializer_range": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def words(i, count):
    return " ".join(WORDS[(i * (j + 3) + j) % 7] for j in range(count))


def turn(role, content):
    return {"role": role, "content": content}


def demonstrations(count=8):
    return [{"prompt": words(i, 1 + i % 3), "completion": " " + words(i + 1, 1 + i % 4)}
            for i in range(count)]  # fmt: skip


def preferences(count=8):
    return [
        {
            "prompt": words(i, 1 + i % 3),
            "chosen": " " + words(i + 1, 1 + i % 4),
            "rejected": " " + words(i + 2, 2 + i % 3),
        }
        for i in range(count)
    ]


def steps(count=8):
    return [
        {
            "prompt": words(i, 2),
            "completions": [words(i + k, 1 + k) for k in range(1 + i % 3)],
            "labels": [bool((i + k) % 2) for k in range(1 + i % 3)],
        }
        for i in range(count)
    ]


KINDS = {
    "sft": (SFT, demonstrations),
    "dpo": (partial(DPO, beta=0.5), preferences),
    "reward": (Reward, preferences),
    "process_reward": (ProcessReward, steps),
}


def task(kind, source=LLAMA, given=None, objective=None, held_out=None, **options):
    """Return a task whose meta rows are its training rows."""
    make, generate = KINDS[kind]
    given = generate() if given is None else given
    names = {"tokenizer", "lora", "trains", "precision", "seed", "attention"} & options.keys()
    model = {name: options.pop(name) for name in names}
    return TransformersRows(
        rows(given, meta=given, held_out=held_out), objective or make(max_length=32),
        partial(TransformersModel, source=source, **model), **options,
    )  # fmt: skip
