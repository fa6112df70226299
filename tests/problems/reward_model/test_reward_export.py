"""Reward models as files: encoded texts, export and reload, cards."""

from __future__ import annotations

import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from tiny_reward_models import EOS, PAD, ROWS, TEXTS, config, padded, tokenizer
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from metaopt.nn.model_card import ModelCard, Proportion
from metaopt.nn.positions import positions
from metaopt.problems.reward_model.model import export as export_module
from metaopt.problems.reward_model.model.export import export, load
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.tokens import encode

SHARE = Proportion(0.75, 0.6, 0.875, 40)
CARD = ModelCard("200 pairs | of\ntests", {"accuracy": SHARE}, base="me/base", licence="mit")

OPT = transformers.OPTConfig(
    hidden_size=16, word_embed_proj_dim=16, ffn_dim=8, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=32, vocab_size=14,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def test_texts_are_encoded_and_cut_at_their_beginning():
    words = tokenizer(None)
    ids, mask, cut = encode(words, TEXTS, max_length=4)
    assert ids.tolist()[0] == [3, 4, 0, 0]
    assert mask.tolist()[0] == [1, 1, 0, 0]
    assert ids.tolist()[1] == [7, 9, 7, EOS]
    assert cut == (1,)
    assert words.pad_token is None
    assert encode(words, TEXTS)[2] == ()
    with pytest.raises(ValueError, match=r"texts \[1\] have no token"):
        encode(words, ["Yes", ""])


def framed():
    """A tokenizer that puts <eos> before and . after every text."""
    words = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A .", special_tokens=[("<eos>", EOS), (".", 4)]
    )
    words.cls_token, words.sep_token = "<eos>", "."
    return words


def test_what_a_tokenizer_puts_around_texts_is_never_cut():
    words, texts = framed(), ["Yes <eos> two two : What", "Yes", ". is Yes"]
    ids, _, cut = encode(words, texts, max_length=4)
    assert ids.tolist() == [[EOS, 9, 5, 4], [EOS, 3, 4, PAD], [EOS, 6, 3, 4]]
    assert cut == (0, 2)
    words.truncation_side = "left"
    assert words(texts, truncation=True, max_length=4, padding=True)["input_ids"] == ids.tolist()
    words = tokenizer()
    words.bos_token = "<eos>"
    ids = encode(words, ["<eos> Yes two : What", "Yes two : What"], 3, templated=True)[0]
    assert ids.tolist() == [[EOS, 9, 5], [7, 9, 5]]
    with pytest.raises(
        ValueError, match="max_length=2 leaves no token of a text next to 2 special"
    ):
        encode(framed(), ["Yes Yes"], 2)


@pytest.mark.parametrize(
    ("kind", "room"), [("gpt2", 32), ("bert", 32), ("roberta", 29), ("opt", 32), ("llama", None)]
)
def test_learned_positions_are_counted(kind, room):
    model = transformers.AutoModel.from_config(OPT if kind == "opt" else config(kind))
    assert positions(model) == room


@pytest.mark.parametrize(("kind", "pooling"), [("gpt2", "last"), ("bert", "mean")])
def test_an_exported_tokenizer_cuts_as_the_test_did(kind, pooling, tmp_path):
    model, words = RewardModel.on(config(kind), pooling), framed()
    folder = export(model, words, tmp_path, CARD, max_length=5).folder
    read = AutoTokenizer.from_pretrained(folder)
    assert (read.model_max_length, read.truncation_side) == (5, "left")
    assert (words.model_max_length > 1e9, words.truncation_side) == (True, "right")
    ids, mask, cut = encode(words, TEXTS, 5)
    assert cut
    with torch.no_grad():
        expected = model.eval().rewards(ids, mask).tolist()
    scorer = transformers.pipeline("text-classification", str(folder), device="cpu")
    scores = [row["score"] for row in scorer(TEXTS, truncation=True)]
    assert scores == pytest.approx(expected, abs=1e-5)
    page = (folder / "README.md").read_text()
    assert "| most tokens of a text | 5 |" in page
    assert "reward(prompt + answer, truncation=True)" in page


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "pooling", "pad", "architecture"),
    [
        ("llama", "last", "[PAD]", "LlamaForSequenceClassification"),
        ("llama", "last", "<eos>", "LlamaForSequenceClassification"),
        ("gpt2", "last", None, "GPT2ForSequenceClassification"),
        ("llama", "last_not_pad", "<eos>", "LlamaForSequenceClassification"),
        ("llama", "mean", None, "RewardModel"),
        ("bert", "mean", "[PAD]", "RewardModel"),
        ("bert", "last", "<eos>", "RewardModel"),
    ],
)
def test_an_exported_model_scores_the_same(kind, pooling, pad, architecture, tmp_path):
    end = EOS if pooling == "last_not_pad" else PAD
    model, words = RewardModel.on(config(kind, end), pooling), tokenizer(pad)
    size = model.get_input_embeddings().weight.shape
    done = export(model, words, tmp_path / "out", CARD, TEXTS)
    assert done.architecture == architecture
    assert done.difference <= 1e-5
    assert model.training
    assert (model.get_input_embeddings().weight.shape, words.pad_token) == (size, pad)

    ids, mask, _ = encode(words, TEXTS)
    expected = model.eval().rewards(ids, mask)
    assert expected.std() > 0.1
    read = AutoModelForSequenceClassification.from_pretrained(
        done.folder, num_labels=1, attn_implementation="eager"
    )
    assert type(read).__name__ == architecture
    batch = AutoTokenizer.from_pretrained(done.folder)(TEXTS, padding=True, return_tensors="pt")
    scores = read(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[:, 0]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    scores = load(done.folder).rewards(ids, mask)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert {f.suffix for f in done.folder.iterdir()} <= {".json", ".safetensors", ".md", ".py"}


@pytest.mark.parametrize(("pooling", "pad"), [("last", "<eos>"), ("mean", "[PAD]")])
def test_a_pipeline_returns_the_reward_itself(pooling, pad, tmp_path):
    model, words = RewardModel.on(config("llama"), pooling), tokenizer(pad)
    folder = export(model, words, tmp_path, CARD).folder
    scorer = transformers.pipeline(
        "text-classification",
        str(folder),
        device="cpu",
        model_kwargs={"attn_implementation": "eager"},
    )
    with torch.no_grad():
        expected = model.eval().rewards(*encode(words, TEXTS)[:2]).tolist()
    for batch_size in (1, 4):
        scores = scorer(TEXTS, batch_size=batch_size)
        assert [row["score"] for row in scores] == pytest.approx(expected, abs=1e-5)
        assert {row["label"] for row in scores} == {"reward"}


def test_a_model_that_trl_trained_is_read_where_transformers_reads_it(tmp_path):
    """Transformers' own class, with a pad token that also ends texts."""
    settings = config("llama", EOS)
    settings.num_labels = 1
    native = AutoModelForSequenceClassification.from_config(settings).eval()
    native.save_pretrained(tmp_path)
    ids, mask = padded(ROWS, "right", EOS)
    with torch.no_grad():
        expected = native(ids, attention_mask=mask).logits[:, 0]
        scores = load(tmp_path).rewards(ids, mask)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_model_without_a_head_is_not_given_a_random_one(tmp_path):
    settings = config("llama")
    settings.num_labels = 1
    transformers.LlamaForCausalLM(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights score\.weight of LlamaForSequence"):
        load(tmp_path)


def test_a_head_of_another_kind_keeps_its_class_and_several_outputs_are_refused(tmp_path):
    for kind, labels in (("bert", 1), ("llama", 2)):
        settings = config(kind)
        settings.num_labels = labels
        model = AutoModelForSequenceClassification.from_config(settings)
        model.save_pretrained(tmp_path / kind)
    assert type(load(tmp_path / "bert")) is transformers.BertForSequenceClassification
    with pytest.raises(ValueError, match="has 2 outputs; a reward model has 1"):
        load(tmp_path / "llama")


def test_the_card_states_data_accuracy_and_interval(tmp_path):
    card = CARD._replace(notes="Trained on noise.")
    page = (
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, card).folder / "README.md"
    ).read_text()
    for words in (
        "| data | 200 pairs \\| of tests |",
        "| accuracy | 0.7500 (95 % interval 0.6000 to 0.8750, n = 40) |",
        "base_model: me/base",
        "license: mit",
        "Trained on noise.",
        "A LlamaForSequenceClassification with",
    ):
        assert words in page
    assert "trust_remote_code" not in page
    custom = export(RewardModel.on(config("bert"), "mean"), tokenizer(), tmp_path / "b", CARD)
    assert "trust_remote_code=True" in (custom.folder / "README.md").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.8},
        {"high": 0.7},
        {"high": 1.5},
        {"low": -0.1},
        {"examples": 0},
        {"level": 1.0},
        {"value": float("nan")},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(wrong, tmp_path):
    card = CARD._replace(figures={"accuracy": SHARE._replace(**wrong)})
    with pytest.raises(ValueError, match=r"a card needs 0 <= low.*accuracy has"):
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, card)
    with pytest.raises(ValueError, match="a card needs data and figures"):
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, CARD._replace(data=" "))
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(FileExistsError, match="is not empty"):
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_an_export_that_scores_otherwise_is_an_error(tmp_path, monkeypatch):
    model = RewardModel.on(config("llama", EOS))
    monkeypatch.setattr(export_module, "_with_own_padding", lambda backbone, words: backbone)
    with pytest.raises(RuntimeError, match="does not hold this model"):
        export(model, tokenizer("<eos>"), tmp_path, CARD, TEXTS)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.slow
def test_a_head_of_ones_own_loads_where_metaopt_is_not_installed(tmp_path):
    model, words = RewardModel.on(config("bert"), "mean"), tokenizer()
    folder = export(model, words, tmp_path / "out", CARD).folder
    code = (
        "import sys; sys.modules['metaopt'] = None\n"
        "from transformers import pipeline\n"
        "scorer = pipeline('text-classification', sys.argv[1], trust_remote_code=True)\n"
        "print(*(row['score'] for row in scorer(sys.argv[2:])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *TEXTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    with torch.no_grad():
        expected = model.eval().rewards(*encode(words, TEXTS)[:2]).tolist()
    assert list(map(float, done.stdout.split())) == pytest.approx(expected, abs=1e-5)
