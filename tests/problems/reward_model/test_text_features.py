"""Preferences in words as features: what is fitted where, and which label is wrong."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from metaopt.engine.random import generator
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.pair import Message, Pair, Preferences, split
from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.data.text_features import preference_texts, seed_of
from metaopt.problems.reward_model.denoising import Denoised
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.text_encoder import TextEncoder

WORDS = [f"word{i}" for i in range(40)]
ROOT = Path(os.environ.get("METAOPT_DATA", "")) / "preferences"


def pairs(count, seed):
    draw = np.random.default_rng(seed)

    def text(size):
        return " ".join(draw.choice(WORDS, size))

    return Preferences(tuple(Pair(text(4), text(9), text(9)) for _ in range(count)))


def made(**settings):
    transfer = {"one": pairs(12, 1), "two": pairs(7, 2)}
    settings = {"runs": 2, "training": 30, "answer_size": 5, "prompt_size": 3, **settings}
    return preference_texts(pairs(50, 0), transfer, "one", **settings)


def test_shapes_and_tests():
    data = made(trusted=0.1)
    assert data.training.chosen.shape == (2, 30, 8)
    assert data.responses.shape == (2, 6, 2, 8)
    assert {k: v.chosen.shape for k, v in data.tests.items()} == {
        "held_out": (2, 20, 8), "one": (2, 6, 8), "two": (2, 7, 8),
    }  # fmt: skip
    assert data.trusted == 3
    assert not data.training.wrong.any()
    assert torch.allclose(data.training.chosen[..., 5:], data.training.rejected[..., 5:])


def test_features_are_those_of_a_vectorizer_fitted_on_the_training_texts():
    source = pairs(50, 0)
    data = made(runs=1)
    training, held_out = split(source.pairs, 30, seed_of(0, 0))
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    texts = [side for i in training for side in (source.pairs[i].chosen, source.pairs[i].rejected)]
    weighed = vectorizer.fit_transform(texts)
    result = TruncatedSVD(5, n_iter=50, random_state=1).fit(weighed)
    scale = result.transform(weighed).std(0)
    expected = (
        result.transform(vectorizer.transform([source.pairs[i].chosen for i in held_out])) / scale
    )
    kernel = data.tests["held_out"].chosen[0, :, :5].numpy()
    spectrum = [np.linalg.svd(x, compute_uv=False) for x in (kernel, expected)]
    np.testing.assert_allclose(spectrum[0], spectrum[1], rtol=0.15)


def test_noise_exchanges_training_answers_only():
    quiet, noisy = made(), made(noise=0.3)
    wrong = noisy.training.wrong
    assert wrong.sum(-1).tolist() == [9, 9]
    back = torch.where(wrong[..., None], noisy.training.rejected, noisy.training.chosen)
    assert torch.equal(back, quiet.training.chosen)
    for name in quiet.tests:
        assert torch.equal(quiet.tests[name].chosen, noisy.tests[name].chosen)


def test_a_split_does_not_depend_on_those_beside_it():
    one, two = made(runs=1), made(runs=2)
    assert torch.allclose(one.training.chosen[0], two.training.chosen[0])
    assert torch.equal(one.training.wrong[0], two.training.wrong[0])


def test_no_split_of_one_seed_is_one_of_another():
    seeds = {seed_of(seed, run) for seed in range(20) for run in range(20)}
    assert len(seeds) == 400
    first, second = made(runs=2), made(runs=2, seed=1)
    assert not torch.equal(first.training.chosen[1], second.training.chosen[0])


def test_unlabelled_responses_are_no_test_pairs():
    data = made(runs=1)
    test, responses = data.tests["one"].chosen[0], data.responses[0].flatten(0, 1)
    assert float(torch.cdist(test, responses).min()) > 0


def test_conversations_are_read_as_plain_text():
    asked, said = (Message("user", "word1 word2"),), (Message("assistant", "word3 word4"),)
    other = (Message("assistant", "word5 word6"),)
    talk = Preferences(tuple(Pair(asked, said, other) for _ in range(4)))
    data = preference_texts(
        pairs(50, 0), {"one": talk}, "one", runs=1, training=30, answer_size=5, prompt_size=3
    )
    assert data.tests["one"].chosen.shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runs": 0}, "runs, answer_size, prompt_size, words >= 1"),
        ({"trusted": 0.0}, r"trusted in \(0, 1\]"),
        ({"noise": 2.0}, r"rate in \[0, 1\]"),
    ],
)
def test_mistakes_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        made(**settings)


def test_unlabelled_pairs_must_be_among_the_transfer():
    with pytest.raises(ValueError, match="unlabelled must be one of held_out, one; got 'two'"):
        preference_texts(pairs(50, 0), {"one": pairs(4, 1)}, "two")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    words = WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *WORDS])}, unk_token="[UNK]")
    splitter = Tokenizer(words)
    splitter.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter, unk_token="[UNK]", pad_token="[PAD]"
    )
    config = BertConfig(
        vocab_size=42, pad_token_id=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.5, max_position_embeddings=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder")
    for part in (tokenizer, BertModel(config)):
        part.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_encoder_s_features_are_its_hidden_states_scaled_by_the_training_texts(encoder):
    source = pairs(50, 0)
    data = made(runs=1, encoder=TextEncoder(encoder, max_length=32))
    training, held_out = split(source.pairs, 30, seed_of(0, 0))
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)

    def states(rows):
        chosen = [source.pairs[i] for i in rows]
        texts = [p.prompt + side for p in chosen for side in (p.chosen, p.rejected)]
        read = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in texts]
        return torch.stack([x.mean(0) for x in read])

    train = states(training)
    expected = (states(held_out) - train.mean(0)) / train.std(0, correction=0)
    result = data.tests["held_out"]
    both = torch.stack((result.chosen[0], result.rejected[0]), 1).flatten(0, 1)
    torch.testing.assert_close(both, expected, atol=1e-4, rtol=1e-4)
    assert data.training.chosen.shape == (1, 30, 16)
    assert data.responses.shape == (1, 6, 2, 16)


def test_the_labels_wrong_with_an_encoder_are_those_without(encoder):
    one, other = made(noise=0.3), made(noise=0.3, encoder=TextEncoder(encoder, "last", 32))
    assert torch.equal(one.training.wrong, other.training.wrong)


def test_every_method_reads_an_encoder_s_features(encoder):
    data = made(encoder=TextEncoder(encoder, max_length=32), noise=0.2, trusted=0.2)
    model = partial(FeatureReward, widths=(4,))
    quick = {"models": 2, "folds": 2}
    ways = {"flip": 0.2}, {"smoothing": 0.9, "margin": 1.0}, {"drop": True}
    for labels in (None, *(Denoised(**way, **quick) for way in ways)):
        task = FeaturePreferences(data, model, labels, members=2, aggregate="worst")
        params = task.init(generator(0))[0]
        rows = torch.arange(4)
        losses = task.row_losses(params, rows), task.meta_losses(params, rows)
        assert all(loss.shape == (4, 4) and bool(loss.isfinite().all()) for loss in losses)
        assert task.metrics(params)["held_out_accuracy"].shape == (2,)


def test_mistakes_about_an_encoder_are_named(tmp_path, encoder):
    with pytest.raises(ValueError, match="max_length=512 is more than the 32 positions"):
        TextEncoder(encoder)
    with pytest.raises(OSError, match=r"gone' must be a folder, or an id of the hub, with a model"):
        TextEncoder(tmp_path / "gone")
    with pytest.raises(ValueError, match="TextEncoder needs max_length >= 1; got max_length=0"):
        TextEncoder("any", max_length=0)


def test_features_are_kept_by_text_and_by_what_made_them(encoder, tmp_path, monkeypatch):
    texts = ["word1 word2", "word3", "word1 word2"]
    plain = TextEncoder(encoder, max_length=32)(texts)
    kept = TextEncoder(encoder, max_length=32, cache=tmp_path)(texts)
    torch.testing.assert_close(kept, plain, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(RewardModel, "features", None)  # nothing is read any more
    assert torch.equal(TextEncoder(encoder, max_length=32, cache=tmp_path)(texts[1:]), kept[1:])
    for settings in ({"pooling": "last"}, {"max_length": 3}):
        with pytest.raises(TypeError, match="not callable"):
            TextEncoder(encoder, cache=tmp_path, **{"max_length": 32, **settings})(texts)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not ROOT.is_dir(), reason=f"{ROOT} is missing: set METAOPT_DATA")
def test_hh_rlhf_has_its_splits():
    source = preferences("hh_harmless", malformed="report")
    transfer = {"llmbar": preferences("llmbar")}
    data = preference_texts(source, transfer, "llmbar", runs=1, training=1700)
    assert data.training.chosen.shape == (1, 1700, 128)
    assert data.tests["held_out"].chosen.shape == (1, 608, 128)
    assert data.resplit == 608 / 1700
