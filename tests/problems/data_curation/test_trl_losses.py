"""Losses against those that TRL's own trainers and transformers compute of the same rows."""

import copy

import pytest
import torch
from tiny_rows import GPT2, LLAMA, WORDS, demonstrations, preferences, steps, task, turn

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from metaopt.nn.word_tokenizer import word_tokenizer
from metaopt.problems.data_curation import DPO, SFT, ProcessReward, Reward

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tokenizer(chat=CHAT, start=False, pad=True):
    words = word_tokenizer([*WORDS, "[EOS]", "[BOS]", "[user]", "[assistant]"])
    words.add_special_tokens({"eos_token": "[EOS]", "bos_token": "[BOS]"})
    words.chat_template = chat
    if start:
        from tokenizers.processors import TemplateProcessing

        words._tokenizer.post_processor = TemplateProcessing(
            single="[BOS] $A", special_tokens=[("[BOS]", words.bos_token_id)]
        )
    if not pad:
        words.pad_token = None
    return words


def conversations(kind):
    if kind == "sft":
        return [{"messages": [turn("user", r["prompt"]), turn("assistant", r["completion"])]}
                for r in demonstrations()]  # fmt: skip
    if kind == "sft prompt":
        return [{"prompt": [turn("user", r["prompt"])],
                 "completion": [turn("assistant", r["completion"])]}
                for r in demonstrations()]  # fmt: skip
    both = [
        {k: [turn("user", r["prompt"]), turn("assistant", r[k])] for k in ("chosen", "rejected")}
        for r in preferences()
    ]
    if kind == "implicit":
        return both
    return [{"prompt": r["chosen"][:1], "chosen": r["chosen"][1:], "rejected": r["rejected"][1:]}
            for r in both]  # fmt: skip


def without_prompt():
    return [{k: r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in preferences()]


def texts():
    return [{"text": r["prompt"] + r["completion"]} for r in demonstrations()]


def moved(made):
    """Return parameters apart from those of the reference."""
    torch.manual_seed(1)
    return {k: v + 0.2 * torch.randn_like(v) for k, v in made.init(None)[0].items()}


def trl_losses(kind, made, params, given, words, folder, **options):
    """Return the trainer's loss of each row alone, and of all in one batch."""
    from datasets import Dataset

    trainer, config = {
        "sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig),
        "reward": (RewardTrainer, RewardConfig),
    }[kind]  # fmt: skip
    net = made.model.merged(params).requires_grad_(True)
    more = {"ref_model": made.model.merged(made.init(None)[0])} if kind == "dpo" else {}
    if kind == "sft":
        options["shuffle_dataset"] = False
    arguments = config(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **options)
    ran = trainer(net, args=arguments, train_dataset=Dataset.from_list(copy.deepcopy(given)),
                  processing_class=words, **more)  # fmt: skip
    rows = [dict(row) for row in ran.train_dataset]
    net.eval()

    def loss(part):
        columns = ran._signature_columns or (ran._set_signature_columns_if_needed()
                                             or ran._signature_columns)  # fmt: skip
        batch = ran.data_collator([{k: v for k, v in r.items() if k in columns} for r in part])
        with torch.no_grad():
            return ran.compute_loss(net, batch).float()

    return torch.stack([loss([row]) for row in rows]), loss(rows)


CASES = {
    "sft texts": ("sft", demonstrations(), SFT(), {}),
    "sft cut at the end": ("sft", demonstrations(), SFT(max_length=5), {"max_length": 5}),
    "sft cut at the start": (
        "sft", demonstrations(), SFT(max_length=4, truncation="keep_end"),
        {"max_length": 4, "truncation_mode": "keep_end"},
    ),
    "sft language modelling": ("sft", texts(), SFT(), {}),
    "sft messages": ("sft", conversations("sft"), SFT(), {}),
    "sft prompt of messages": ("sft", conversations("sft prompt"), SFT(), {}),
    "dpo texts": ("dpo", preferences(), DPO(beta=0.3), {"beta": 0.3}),
    "dpo without prompt": ("dpo", without_prompt(), DPO(), {}),
    "dpo messages": ("dpo", conversations("explicit"), DPO(), {}),
    "dpo implicit messages": ("dpo", conversations("implicit"), DPO(), {}),
    "dpo cut at the end": ("dpo", preferences(), DPO(max_length=5), {"max_length": 5}),
    "dpo cut at the start": (
        "dpo", preferences(), DPO(max_length=4, truncation="keep_end"),
        {"max_length": 4, "truncation_mode": "keep_end"},
    ),
    "reward texts": ("reward", preferences(), Reward(), {}),
    "reward without prompt": ("reward", without_prompt(), Reward(), {}),
    "reward messages": ("reward", conversations("explicit"), Reward(), {}),
    "reward centred": (
        "reward", preferences(), Reward(center_rewards=0.1), {"center_rewards_coefficient": 0.1}
    ),
    "reward margins": (
        "reward", [{**r, "margin": 0.5 * i} for i, r in enumerate(preferences())], Reward(), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("start", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_trl(case, start, tmp_path):
    kind, given, objective, options = CASES[case]
    options = {"max_length": None, **options}
    words = tokenizer(start=start)
    made = task(kind, given=given, objective=objective, tokenizer=words, strict=False)
    params = moved(made)
    alone, together = trl_losses(kind, made, params, given, words, tmp_path, **options)
    losses = made.row_losses(params, torch.arange(len(made.domain)), train=False)
    assert len(losses) == len(alone) >= 4
    torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-6)
    tokens = torch.ones(len(losses))
    if kind == "sft":
        labels = made._training.take(torch.arange(len(losses))).labels[:, 0, 1:]
        tokens = (labels >= 0).sum(-1).float()
    torch.testing.assert_close((losses * tokens).sum() / tokens.sum(), together, rtol=1e-5,
                               atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_losses_are_those_of_trl_where_the_end_of_text_also_pads(kind, tmp_path):
    given = demonstrations() if kind == "sft" else preferences()
    words = tokenizer(pad=False)
    made = task(kind, source=GPT2 if kind != "reward" else LLAMA, given=given, tokenizer=words)
    params = moved(made)
    options = {"max_length": 32} | ({"beta": 0.5} if kind == "dpo" else {})
    alone, _ = trl_losses(kind, made, params, given, words, tmp_path, **options)
    losses = made.row_losses(params, torch.arange(8), train=False)
    torch.testing.assert_close(losses, alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("separator", ["\n", "[EOS]"])
def test_step_losses_are_those_of_a_token_classifier_of_transformers(separator):
    words = tokenizer(start=True)
    made = task("process_reward", tokenizer=words, objective=ProcessReward(separator=separator))
    params = moved(made)
    net = made.model.merged(params)
    expected = []
    for row in steps():
        ids = [words.bos_token_id, *words(row["prompt"], add_special_tokens=False)["input_ids"]]
        labels = [-100] * len(ids)
        for step, label in zip(row["completions"], row["labels"], strict=True):
            tokens = words(f"{step} {separator}", add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += [-100] * (len(tokens) - 1) + [int(label)]
        expected.append(net(torch.tensor([ids]), labels=torch.tensor([labels])).loss)
    losses = made.row_losses(params, torch.arange(8), train=False)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
