"""A reward model on a tiny transformers backbone: trained, exported, read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from small import preference_files
from torch.nn.functional import softplus
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from metaopt.problems.reward_model.data.pair import split
from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.text_task import TextPreferences

TINY = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip

BERT = {
    "model_type": "bert", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "hidden_dropout_prob": 0.1,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


def made(folder, **settings):
    path = preference_files(folder)[0].partition("=")[2]
    pairs = preferences(path)
    settings = {"backbone": TINY, "training": 0.5, **settings}
    return TextPreferences(pairs, transfer={"other": pairs}, unlabelled="other", **settings)


def tensors_of(task):
    return dict(item for part in task.init(torch.Generator()) for item in part.items())


@pytest.mark.slow
def test_a_run_leaves_a_reward_model_that_transformers_loads(metaopt, tmp_path):
    arguments = preference_files(tmp_path)
    done = metaopt(
        "problem=reward_model/text", *arguments, "outer_steps=12", "outer_lr=0.01",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "LlamaForSequenceClassification in run/reward_model" in done.out
    final = torch.load("run/final.pt", weights_only=True)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    problem = instantiate(config["problem"], _convert_="all")
    texts = ["\n\nHuman: question 3\n\nAssistant: thank you 3", "go away", "question 2 thank you"]
    state = {k: v[0] for k, v in final["outer"].items()}
    problem.task.module.load_state_dict(state, strict=False)
    batch = problem.task.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = problem.task.module.eval().rewards(batch["input_ids"], batch["attention_mask"])
        model = AutoModelForSequenceClassification.from_pretrained("run/reward_model")
        words = AutoTokenizer.from_pretrained("run/reward_model")
        read = words(texts, padding=True, return_tensors="pt")
        result = model(read["input_ids"], attention_mask=read["attention_mask"]).logits[:, 0]
    assert torch.allclose(result, expected, atol=1e-6)
    scores = pipeline("text-classification", "run/reward_model", function_to_apply="none")(texts)
    assert [s["score"] for s in scores] == pytest.approx(expected.tolist(), abs=1e-6)
    card = Path("run/reward_model/README.md").read_text()
    # Of the eight other pairs, four are the unlabelled responses.
    assert "8 training pairs, 0 % of them with exchanged labels, and 4 held-out pairs" in card
    assert "accuracy" in card


def test_losses_do_not_depend_on_the_batch(tmp_path):
    task = made(tmp_path)
    tensors = tensors_of(task)
    rows = torch.arange(task.rows)
    together = task.row_losses(tensors, rows, train=False)
    alone = torch.cat([task.row_losses(tensors, r[None], train=False) for r in rows], 1)
    assert together.shape == (1, 8)
    assert torch.allclose(together, alone, atol=1e-5)


def test_equal_responses_are_equal_with_dropout_too(tmp_path):
    task = made(tmp_path, backbone=BERT, pooling="mean")
    task._unlabelled.ids[:, 1] = task._unlabelled.ids[:, 0]
    task._unlabelled.mask[:, 1] = task._unlabelled.mask[:, 0]
    tensors = tensors_of(task)
    first, second = task.responses(tensors, torch.arange(task.prompts))[0].unbind(-1)
    assert torch.equal(first, second)
    losses = [task.row_losses(tensors, torch.arange(4)) for _ in range(2)]
    assert not torch.equal(*losses)


def test_margins_of_the_source_are_in_the_loss(tmp_path):
    def losses(*margins):
        result = preferences(preference_files(tmp_path)[0].partition("=")[2])
        pairs = tuple(
            pair._replace(margin=margins[i % len(margins)]) for i, pair in enumerate(result.pairs)
        )
        altered = dataclasses.replace(result, pairs=pairs)
        task = TextPreferences(altered, TINY, {"other": altered}, "other", training=0.5)
        rows = torch.arange(task.rows)
        expected_margins = torch.tensor(
            [p.margin or 0.0 for p in (pairs[i] for i in split(pairs, 0.5, 0)[0])]
        )
        tensors = tensors_of(task)
        d = -task._rewards(tensors, task._training, rows, False).diff()[:, 0]
        return task.row_losses(tensors, rows, train=False)[0], d, expected_margins

    for margins in ((None,), (3.0,), (3.0, None), (-1.0, 2.0)):
        result, d, margin = losses(*margins)
        assert torch.allclose(result, softplus(margin - d), atol=1e-6)
    assert not margin.eq(0).any()


def test_the_card_says_what_its_accuracy_is_of(tmp_path, monkeypatch):
    task = made(tmp_path, noise_share=0.25, max_length=5)
    monkeypatch.setattr(task, "_tests", {k: tied(v) for k, v in task._tests.items()})
    task.deliver(tensors_of(task), tmp_path)
    page = (tmp_path / "reward_model" / "README.md").read_text()
    for words in (
        "8 training pairs, 25 % of them with exchanged labels, and 8 held-out pairs",
        "| accuracy | 0.5000 (95 % interval 0.2152 to 0.7848, n = 8) |",
        "longer than 5 tokens were cut at their beginning, in training and tests",
        f"tests: {task.cut} texts.",
        "Equal rewards count half in every accuracy here (8 of 8 held-out pairs)",
        "| other | 0.5000 | 8 |",
        "| most tokens of a text | 5 |",
    ):
        assert words in page
    read = AutoTokenizer.from_pretrained(tmp_path / "reward_model")
    assert (read.model_max_length, read.truncation_side) == (5, "left")


def tied(pairs):
    return pairs._replace(
        ids=pairs.ids[:, :1].repeat(1, 2, 1), mask=pairs.mask[:, :1].repeat(1, 2, 1)
    )


def test_noise_exchanges_answers_and_long_texts_are_counted(tmp_path):
    quiet, noisy = made(tmp_path), made(tmp_path, noise_share=0.25)
    swapped = (quiet._training.ids != noisy._training.ids).flatten(1).any(1)
    assert int(swapped.sum()) == 2
    assert torch.equal(noisy._training.ids[swapped].flip(1), quiet._training.ids[swapped])
    assert quiet.cut == 0
    assert made(tmp_path, max_length=4).cut > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 0}, "max_length >= 1"),
        (
            {"backbone": {"hidden_size": 8}},
            r"needs model_type, such as llama; got \['hidden_size'\]",
        ),
        ({"training": 0}, "leaves a pair on either side"),
        ({"backbone": GPT2}, "max_length=256 is more than the 32 positions"),
        ({"backbone": GPT2, "max_length": 33}, "use max_length=32 or less"),
        ({"frozen": True, "lora": LORA}, "frozen=true trains the head alone, which leaves nothing"),
        ({"frozen": True, "remat": "layers"}, "use frozen=false with them"),
        ({"cache": "x"}, "keeps the features of a frozen backbone, and this one is trained"),
    ],
)
def test_mistakes_are_named(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        made(tmp_path, **settings)


def test_malformed_rows_are_refused_by_number(metaopt, tmp_path):
    arguments = preference_files(tmp_path)
    path = tmp_path / "pairs.jsonl"
    path.write_text(path.read_text() + '\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    done = metaopt("problem=reward_model/text", *arguments, "problem.task.source.malformed=refuse")
    assert done.code == 1
    assert "1 malformed" in done.err
    assert "in row 17" in done.err


def test_rematerialised_layers_have_the_gradients_of_layers(tmp_path):
    tasks = [made(tmp_path, remat=pattern) for pattern in (None, r"layers\.0$")]
    grads = []
    for task in tasks:
        leaves = {k: v.requires_grad_() for k, v in tensors_of(task).items()}
        loss = task.row_losses(leaves, torch.arange(4)).mean()
        grads.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
    assert all(map(torch.equal, *grads))
    with pytest.raises(ValueError, match=r"matches the pattern .blocks. .* named layers\.0"):
        made(tmp_path, remat="blocks")


def test_a_frozen_backbone_reads_texts_once_and_the_head_is_trained(tmp_path, monkeypatch):
    task = made(tmp_path, backbone=BERT, pooling="mean", frozen=True, cache=tmp_path / "cache")
    tensors = tensors_of(task)
    assert set(task._params) == {"score.weight"}
    assert set(task.frozen) == {k for k, _ in task.module.named_parameters()} - {"score.weight"}
    ids, mask = (part.flatten(0, 1) for part in task._training[:2])
    with torch.no_grad():
        expected = task.module.eval().rewards(ids, mask).view(-1, 2)
    rows = torch.arange(task.rows)
    # The cache keeps 11 bits of a feature.
    torch.testing.assert_close(
        task._rewards(tensors, task._training, rows, True), expected, rtol=0, atol=5e-3
    )
    monkeypatch.setattr(RewardModel, "features", None)  # a second task reads no text
    again = made(tmp_path, backbone=BERT, pooling="mean", frozen=True, cache=tmp_path / "cache")
    assert torch.equal(again._training.features, task._training.features)


@pytest.mark.slow  # importing peft
def test_adapters_are_trained_and_multiplied_out(tmp_path):
    pytest.importorskip("peft")
    task, whole = made(tmp_path, lora=LORA), made(tmp_path)
    names = {f"backbone.layers.0.self_attn.{p}_proj.lora_{x}.default.weight"
             for p in "qv" for x in "AB"}  # fmt: skip
    assert set(task._params) == names | {"score.weight"}
    assert {k: v for k, v in task.frozen.items() if "lora" in k} == {}
    draw = torch.Generator().manual_seed(0)
    tensors = {k: torch.randn(v.shape, generator=draw) for k, v in task._params.items()}
    task.deliver(tensors | task._buffers, tmp_path)
    module = whole.module
    state = {"score.weight": tensors["score.weight"][0]}
    for p in "qv":
        name = f"backbone.layers.0.self_attn.{p}_proj"
        a, b = (tensors[f"{name}.lora_{x}.default.weight"][0] for x in "AB")
        # alpha / r = 8 / 2 by peft's defaults
        state[f"{name}.weight"] = module.state_dict()[f"{name}.weight"] + 4 * b @ a
    module.load_state_dict(state, strict=False)
    ids, mask = (part.flatten(0, 1) for part in task._training[:2])
    with torch.no_grad():
        expected = module.eval().rewards(ids, mask)
        read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model")
        scores = read(ids, attention_mask=mask).logits[:, 0]
        adapted = task._rewards(tensors | task._buffers, task._training, torch.arange(8), False)
    assert type(read).__name__ == "LlamaForSequenceClassification"
    assert (expected - whole._rewards(tensors_of(whole), task._training, torch.arange(8), False)
            .flatten()).abs().max() > 0.1  # fmt: skip
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(adapted.flatten(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["problem.task.frozen=true"], [
    "+problem.task.lora.r=2", "+problem.task.lora.target_modules=[q_proj]",
]])  # fmt: skip
def test_a_run_on_another_base_is_not_continued(metaopt, tmp_path, options):
    arguments = [a for a in preference_files(tmp_path) if "backbone" not in a]
    first = made(tmp_path)
    for part in (first.module.backbone, first.tokenizer):
        part.save_pretrained("base")
    arguments += ["problem=reward_model/text", "problem.task.backbone=base", *options,
                  "checkpoint_every=2", "hydra.run.dir=run"]  # fmt: skip
    assert metaopt(*arguments, "outer_steps=2").code == 0
    Path("run/result.json").unlink()
    made(tmp_path, seed=1).module.backbone.save_pretrained("base")
    done = metaopt(*arguments, "outer_steps=2")
    assert done.code == 1
    assert "the frozen weights of MetaRewardModel are not those" in done.err
