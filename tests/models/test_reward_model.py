"""Reward models: invariant scores, Bradley-Terry's loss, export and reload, heads side by side."""

from __future__ import annotations

import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from metaopt.models import MLP, reward_model_export
from metaopt.models.reward_features import FeatureReward
from metaopt.models.reward_model import RewardModel, RewardModelConfig, bradley_terry
from metaopt.models.reward_model_export import Card, encode, export, load
from metaopt.random import generator

WORDS = ["[UNK]", "<eos>", "[PAD]", "Yes", ".", "What", "is", "two", "and", ":", "Human", "Loire"]
WORDS += ["The", "Assistant"]
EOS, PAD = 1, 2
TEXTS = ["Yes .", "What is two and two : two <eos>", "The Loire <eos> is", "Human : Yes <eos>"]
CARD = Card("200 pairs | of\ntests", 0.75, 0.6, 0.875, 40, base="me/base", licence="mit")


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def config(kind: str, pad: int = PAD) -> PretrainedConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS), "eos_token_id": EOS, "bos_token_id": None, "pad_token_id": pad}
    more = {"max_position_embeddings": 32, "intermediate_size": 32, "initializer_range": 0.5}
    name = {"llama": "Llama", "gpt2": "GPT2", "bert": "Bert", "roberta": "Roberta"}[kind]
    return getattr(transformers, f"{name}Config")(**sizes, **ids, **more)


def tokenizer(pad: str | None = "[PAD]") -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="<eos>", pad_token=pad
    )


def padded(rows: list[list[int]], side: str, pad: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return ids, mask


ROWS = [[3, 4], [5, 6, 7, 8, 7, 9, 7, EOS], [12, 13, EOS, 6], [10, 9, 3, EOS, EOS]]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "pad"),
    [("llama", PAD), ("llama", EOS), ("gpt2", EOS), ("bert", PAD), ("roberta", PAD)],
)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_do_not_depend_on_the_batch_or_the_padding(kind, pooling, pad):
    model = RewardModel.on(config(kind, pad), pooling).eval()
    alone = []
    for row in ROWS:
        hidden = model.backbone(torch.tensor([row])).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
        alone.append(model.score.weight[0] @ pooled)
    expected = torch.stack(alone)
    assert expected.std() > 0.05
    for side in ("left", "right"):
        for extra in (0, 7):
            found = model.rewards(*padded(ROWS, side, pad, extra))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for i, row in enumerate(ROWS):
        one = model.rewards(*padded([row], "left", pad, 3))
        torch.testing.assert_close(one[0], expected[i], rtol=0, atol=1e-5)
    left, right = (model.rewards(*padded(ROWS, side, pad)) for side in ("left", "right"))
    assert torch.equal(left, right)
    given = model(
        *padded(ROWS, "left", pad), use_cache=False, token_type_ids=None, margin=torch.ones(4)
    )
    assert torch.equal(given.logits, left[:, None])


@torch.no_grad()
def test_an_end_of_text_that_also_pads_is_read():
    model = RewardModel.on(config("llama", EOS)).eval()
    ended, unended = model.rewards(*padded([[3, 4, EOS], [3, 4]], "right", EOS))
    assert (ended - unended).abs() > 1e-3
    other = RewardModel.on(model.backbone, "last_not_pad").eval()
    ended, unended = other.rewards(*padded([[3, 4, EOS], [3, 4]], "right", EOS))
    torch.testing.assert_close(ended, unended, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_a_mask_padding_is_what_has_the_id_of_the_pad_token():
    model = RewardModel.on(config("llama")).eval()
    ids, mask = padded(ROWS, "left", PAD)
    assert torch.equal(model.rewards(ids), model.rewards(ids, mask))
    with pytest.raises(ValueError, match="the pad token 1 also ends texts"):
        RewardModel.on(config("llama", EOS)).rewards(ids)
    without = RewardModel.on(config("llama", None))
    with pytest.raises(ValueError, match="there is no pad token"):
        without.rewards(ids)
    assert without.rewards(ids[1:2]).shape == (1,)
    with pytest.raises(ValueError, match="last_not_pad needs"):
        RewardModel.on(config("llama", None), "last_not_pad")


def test_wrong_inputs_are_named():
    model = RewardModel.on(config("llama"))
    ids, mask = padded(ROWS, "left", PAD)
    mask[2] = 0
    with pytest.raises(ValueError, match=r"texts \[2\] of the batch have no token"):
        model.rewards(ids, mask)
    with pytest.raises(ValueError, match=r"shape of input_ids, \(4, 8\); got \(4, 7\)"):
        model.rewards(ids, mask[:, 1:])
    for build in (
        lambda: RewardModel.on(config("llama"), "cls"),
        lambda: RewardModelConfig({}, ""),
    ):
        with pytest.raises(ValueError, match="pooling must be one of last, mean, last_not_pad"):
            build()


def test_a_backbone_keeps_its_weights_and_leaves_its_other_heads(tmp_path):
    language_model = AutoModelForCausalLM.from_config(config("llama"))
    before = {k: v.clone() for k, v in language_model.model.state_dict().items()}
    language_model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    for source in (tmp_path, str(tmp_path), language_model):
        model = RewardModel.on(source)
        found = model.backbone.state_dict()
        assert found.keys() == before.keys()
        assert all(torch.equal(found[k], before[k]) for k in before)
        assert model.score.weight.shape == (1, 16)
        if source is not language_model:
            assert model.backbone.config._attn_implementation == "eager"
    assert torch.equal(torch.get_rng_state(), state)


def test_new_weights_are_a_function_of_the_seed():
    one, same, other = (RewardModel.on(config("bert"), "mean", seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.score.weight, other.score.weight)
    wide = config("llama")
    wide.hidden_size = 2048
    drawn = RewardModel.on(wide).score.weight
    assert drawn.std().item() == pytest.approx(2049**-0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_parameter_is_trained_and_can_be_differentiated_twice(kind):
    model = RewardModel.on(config(kind), "mean").eval()
    params = dict(model.named_parameters())
    rewards = torch.func.functional_call(model, params, padded(ROWS, "left", PAD)).logits
    first = torch.autograd.grad(rewards.square().sum(), list(params.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(params.values()))
    assert all(g.isfinite().all() for g in second)
    assert sum(bool(g.any()) for g in first) == len(params)


def test_a_reward_model_learns_pairs():
    model = RewardModel.on(config("llama")).train()
    chosen = padded([[10, 9, word, 3, EOS] for word in range(4, 12)], "left", EOS)
    rejected = padded([[10, 9, word, 13, EOS] for word in range(4, 12)], "right", EOS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(15):
        loss = bradley_terry(model.rewards(*chosen), model.rewards(*rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (model.rewards(*chosen) > model.rewards(*rejected)).all()


def test_bradley_terry_is_cross_entropy_with_the_margin_inside():
    draw = generator(0)
    chosen, rejected, margin = torch.randn(3, 5, 7, generator=draw, dtype=torch.float64)
    label = torch.rand(5, 7, generator=draw, dtype=torch.float64)
    found = bradley_terry(chosen, rejected, margin, label)
    expected = binary_cross_entropy_with_logits(chosen - rejected - margin, label, reduction="none")
    torch.testing.assert_close(found, expected)
    plain = -torch.log(chosen.exp() / (chosen.exp() + rejected.exp()))
    torch.testing.assert_close(bradley_terry(chosen, rejected), plain)
    torch.testing.assert_close(bradley_terry(rejected, chosen, -margin, 1 - label), found)
    torch.testing.assert_close(bradley_terry(chosen + 3, rejected + 3, margin, label), found)
    ones = torch.ones_like(margin)
    assert torch.equal(
        bradley_terry(chosen, rejected, margin, ones), bradley_terry(chosen, rejected, margin)
    )
    margin.requires_grad_()
    (slope,) = torch.autograd.grad(bradley_terry(chosen, rejected, margin).sum(), margin)
    torch.testing.assert_close(slope, torch.sigmoid(margin - chosen + rejected).detach())


def test_bradley_terry_is_finite_for_large_differences():
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = bradley_terry(far, torch.zeros(2), label=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([1e4, 5e3]))
    (grad,) = torch.autograd.grad(loss.sum(), far)
    torch.testing.assert_close(grad, torch.tensor([-1.0, 0.5]))


@pytest.mark.parametrize("name", ["rejected", "margin", "label"])
def test_bradley_terry_broadcasts_nothing(name):
    given = {"rejected": torch.zeros(4, 1), name: torch.zeros(4)}
    with pytest.raises(ValueError, match=rf"{name} must have the shape of chosen, \(4, 1\)"):
        bradley_terry(torch.zeros(4, 1), **given)


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
    own = EOS if pooling == "last_not_pad" else PAD
    model, words = RewardModel.on(config(kind, own), pooling), tokenizer(pad)
    size = model.get_input_embeddings().weight.shape
    done = export(model, words, tmp_path / "out", CARD, TEXTS)
    assert done.architecture == architecture
    assert done.difference <= 1e-6
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
    found = read(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found = load(done.folder).rewards(ids, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
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
        found = scorer(TEXTS, batch_size=batch_size)
        assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-6)
        assert {row["label"] for row in found} == {"reward"}


def test_a_model_that_trl_trained_is_read_where_transformers_reads_it(tmp_path):
    """Transformers' own class, with a pad token that also ends texts."""
    settings = config("llama", EOS)
    settings.num_labels = 1
    native = AutoModelForSequenceClassification.from_config(settings).eval()
    native.save_pretrained(tmp_path)
    ids, mask = padded(ROWS, "right", EOS)
    with torch.no_grad():
        expected = native(ids, attention_mask=mask).logits[:, 0]
        found = load(tmp_path).rewards(ids, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "labels"), [("bert", 1), ("llama", 2)])
def test_another_kind_of_classifier_is_not_loaded(kind, labels, tmp_path):
    settings = config(kind)
    settings.num_labels = labels
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no linear head with one output"):
        load(tmp_path)


def test_the_card_states_data_accuracy_and_interval(tmp_path):
    card = CARD._replace(notes="Trained on noise.")
    page = (
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, card).folder / "README.md"
    ).read_text()
    for words in (
        "| data | 200 pairs \\| of tests |",
        "| accuracy | 0.7500 |",
        "| test pairs | 40 |",
        "| 95 % interval | [0.6000, 0.8750] |",
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
        {"pairs": 0},
        {"level": 1.0},
        {"data": " "},
        {"accuracy": float("nan")},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match="a card needs"):
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, CARD._replace(**wrong))
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(FileExistsError, match="is not empty"):
        export(RewardModel.on(config("llama")), tokenizer(), tmp_path, CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_an_export_that_scores_otherwise_is_an_error(tmp_path, monkeypatch):
    model = RewardModel.on(config("llama", EOS))
    monkeypatch.setattr(reward_model_export, "_with_own_padding", lambda backbone, words: backbone)
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
    assert list(map(float, done.stdout.split())) == pytest.approx(expected, abs=1e-6)


def test_heads_side_by_side_are_single_networks():
    heads = FeatureReward(6, (5, 4))
    params = heads.init([generator(i) for i in range(3)])
    shared, own = (torch.randn(*shape, 6, generator=generator(9)) for shape in ((8,), (3, 2, 7)))
    for i in range(3):
        single = MLP((6,), 1, (5, 4), activation="tanh")
        linear = [layer for layer in single if isinstance(layer, nn.Linear)]
        for k, layer in enumerate(linear):
            layer.weight.data = params[f"{k}.weight"][i].T.contiguous()
            layer.bias.data = params[f"{k}.bias"][i, 0]
        torch.testing.assert_close(heads.rewards(params, shared)[i], single(shared)[:, 0])
        torch.testing.assert_close(heads.rewards(params, own)[i], single(own[i])[..., 0])
        torch.testing.assert_close(
            heads.features(params, own)[i], nn.Sequential(*list(single)[:-1])(own[i])
        )
    assert heads.rewards(params, own).shape == (3, 2, 7)
    assert FeatureReward(6, ()).rewards(
        FeatureReward(6, ()).init([generator(0)]), shared
    ).shape == (
        1,
        8,
    )


def test_heads_side_by_side_are_independent():
    heads = FeatureReward(6, (5,))
    params = heads.init([generator(i) for i in range(3)])
    alone = heads.init([generator(1)])
    assert all(torch.equal(params[k][1:2], alone[k]) for k in params)
    assert params["0.weight"].abs().max() <= 6**-0.5
    assert params["0.weight"].abs().max() > 0.9 * 6**-0.5
    x = torch.randn(3, 2, 8, 6, generator=generator(9))

    def loss(tensors, x):
        chosen, rejected = heads.rewards(tensors, x).unbind(1)
        return bradley_terry(chosen, rejected).mean(-1).sum()

    together, single = torch.func.grad(loss)(params, x), torch.func.grad(loss)(alone, x[1:2])
    for name in params:
        torch.testing.assert_close(together[name][1:2], single[name])


def test_dropout_of_heads_is_drawn_from_its_generator():
    heads = FeatureReward(6, (400,), dropout=0.25)
    params = heads.init([generator(0), generator(1)])
    x = torch.randn(5, 6, generator=generator(9))
    kept = heads.features(params, x)
    dropped = heads.features(params, x, generator(2))
    assert torch.equal(dropped, heads.features(params, x, generator(2)))
    assert 0.7 < (dropped != 0).float().mean() < 0.8
    torch.testing.assert_close(dropped[dropped != 0], kept[dropped != 0] / 0.75)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inputs": 0}, "inputs >= 1"),
        ({"widths": (3, 0)}, "widths >= 1"),
        ({"activation": "step"}, "activation in"),
        ({"dropout": 1.0}, "dropout < 1"),
    ],
)
def test_wrong_settings_of_heads_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        FeatureReward(**{"inputs": 6, **settings})


@pytest.mark.parametrize("shape", [(8, 5), (6,), (3, 8, 6)])
def test_features_of_another_shape_are_refused(shape):
    heads = FeatureReward(6)
    with pytest.raises(ValueError, match=r"x must be \(B, 6\) or \(2, ..., 6\)"):
        heads.rewards(heads.init([generator(0), generator(1)]), torch.zeros(shape))
