"""Learn which rows to fine-tune on, and fine-tune on them with TRL.

A world in which the loss of a row misjudges it: easy rows (one word again and again) have the least
loss and teach nothing, hard rows (a grammar with four words after each) are what the test asks for,
and noise has the largest loss. A filter that keeps rows of low loss keeps the easy ones. In an
empty folder:

    python curated_sft.py rows
    metaopt problem=data_curation/sft data@problem.task.data=data_curation/rows \\
        problem.task.data.train=rows.jsonl problem.task.data.meta=meta.jsonl \\
        weights@problem.weights=rater outer_lr=0.01 hydra.run.dir=runs/curation
    python curated_sft.py train
"""

import json
import random
import sys
from pathlib import Path

from datasets import load_dataset
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig

from metaopt.nn.word_tokenizer import word_tokenizer
from metaopt.trainers import WeightedSFTTrainer, attach

WORDS = [f"w{i}" for i in range(48)]
KINDS = ("easy", "easy", "hard", "noise")
"""Half of the training rows are easy, a quarter is hard."""


def rows(count, kinds, seed):
    """Return rows {text} of 12 words in random order, of each kind equally many."""
    grammar, draw = random.Random(0), random.Random(seed)
    after = {word: grammar.sample(WORDS, 4) for word in WORDS}
    made = []
    for i in range(count):
        words = [draw.choice(WORDS)]
        choices = {"easy": words[:], "noise": WORDS}.get(kinds[i % len(kinds)])
        while len(words) < 12:
            words.append(draw.choice(choices or after[words[-1]]))
        made.append({"text": " ".join(words)})
    draw.shuffle(made)
    return made


def write():
    """Write 1,200 training rows, 200 trusted rows that steer the weights, and 200 test rows."""
    parts = {"rows": (1200, KINDS), "meta": (200, ["hard"]), "test": (200, ["hard"])}
    for seed, (name, (count, kinds)) in enumerate(parts.items()):
        lines = [json.dumps(row) + "\n" for row in rows(count, kinds, seed)]
        Path(f"{name}.jsonl").write_text("".join(lines))


def small_model(tokenizer):
    """Return a Llama of two layers with random weights, the same every time."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(weights=None, steps=100):
    """Return the test loss after fine-tuning with the weights of a file, or without."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.add_special_tokens({"eos_token": "[EOS]"})
    args = SFTConfig(
        "out", max_steps=steps, learning_rate=5e-3, per_device_train_batch_size=16, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    # The lines that the docs show.
    data = load_dataset("json", data_files="rows.jsonl", split="train")
    data = attach(data, weights) if weights else data.add_column("weight", [1.0] * len(data))
    trainer = WeightedSFTTrainer(
        small_model(tokenizer),
        args,
        train_dataset=data,
        eval_dataset=load_dataset("json", data_files="test.jsonl", split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    if sys.argv[1:] == ["rows"]:
        write()
    else:
        print(f"test loss with uniform weights {train():.3f}")
        print(f"test loss with learned weights {train('runs/curation/weights.parquet'):.3f}")
