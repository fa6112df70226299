"""A cross-encoder: what is trained of it, and its scores beside transformers' own."""

import pytest
import torch
from real_models import real_model
from tiny_rankers import BERT, small_world

from metaopt.engine.random import generator
from metaopt.problems.few_shot_ranking.cross_encoder import CrossEncoder
from metaopt.problems.few_shot_ranking.pools import Pools
from metaopt.problems.few_shot_ranking.relevance_feedback import relevance_pools

TINY = {**BERT, "model_type": "bert", "max_position_embeddings": 40, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def read():
    """Return a tiny cross-encoder and the pools that it reads."""
    pools = relevance_pools(small_world(), None, shots=2, size=40)
    scorer = CrossEncoder(TINY, max_length=24, batch=3)
    scorer.read(pools)
    return scorer, pools


def test_biases_and_head_are_trained(read):
    scorer, _ = read
    phi = scorer.init(0, generator(0))
    assert [name for name in phi if not name.endswith("bias")] == ["classifier.weight"]
    assert sum("attention.self.query.bias" in name for name in phi) == 1
    assert sum(name.endswith("LayerNorm.bias") for name in phi) == 3
    frozen = {name for name, _ in scorer.model.frozen()}
    assert not frozen & {*phi}
    assert "bert.encoder.layer.0.attention.self.query.weight" in frozen


def test_scores_are_those_of_one_pair_at_a_time_and_of_the_words_in_it(read):
    scorer, pools = read
    phi = scorer.init(0, generator(0))
    queries, positions = torch.tensor([0, 5]), torch.tensor([[0, 3, 7, 2], [4, 1, 39, 8]])
    x = scorer.pairs(pools, queries, positions, 2)
    other = {name: value + 0.3 for name, value in phi.items()}
    both = {name: torch.stack([phi[name], other[name]]) for name in phi}
    scores = scorer(both, x)
    for i, weights in enumerate((phi, other)):
        for j, pair in enumerate(x[i]):
            assert torch.allclose(scorer(weights, pair[None])[0], scores[i, j], atol=1e-5)
    assert scores[0].unique().numel() == 4
    tokenizer, text = scorer.model.tokenizer, f"{pools.texts[0][0]} [STEP] "
    inputs = tokenizer(text + pools.texts[1][x[0, 0, 1]], return_tensors="pt")
    assert (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("[STEP]")).sum() == 1
    expected = scorer.model.logits(phi, inputs, train=False)[0, 0]
    assert torch.allclose(scores[0, 0], expected, atol=1e-5)


def test_the_derivative_can_be_differentiated_again(read):
    scorer, pools = read
    phi = {k: v.requires_grad_() for k, v in scorer.init(0, generator(0)).items()}
    x = scorer.pairs(pools, torch.tensor(0), torch.arange(4), 2)
    name = "bert.encoder.layer.0.attention.self.query.bias"

    def slope(shift):
        moved = {**phi, name: phi[name] + shift}
        return torch.autograd.grad(scorer(moved, x).square().sum(), moved[name], create_graph=True)[
            0
        ]

    direction = torch.ones(8)
    (product,) = torch.autograd.grad((slope(0) * direction).sum(), phi[name])
    step = 1e-2
    difference = (slope(step * direction) - slope(-step * direction)) / (2 * step)
    assert torch.allclose(product, difference.detach(), rtol=0.05, atol=1e-3)
    assert product.abs().max() > 1e-3


def test_pools_without_texts_and_too_many_tokens_are_refused(read):
    pools = read[1]
    bare = {name: getattr(pools, name) for name in (
        "queries", "documents", "pool", "first_stage", "grades", "feedback", "ideal")}  # fmt: skip
    with pytest.raises(ValueError, match="CrossEncoder reads texts, and these pools have vectors"):
        CrossEncoder(TINY).read(Pools(**bare))
    with pytest.raises(ValueError, match="longer than the 40 positions"):
        CrossEncoder(TINY, max_length=41).read(pools)


@pytest.mark.realmodel
def test_a_pretrained_encoder_reads_a_pair_as_transformers_does():
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = real_model("minilm")
    pools = relevance_pools(small_world(), None, shots=2, size=40)
    scorer = CrossEncoder(str(folder), max_length=32)
    scorer.read(pools)
    phi = scorer.init(0, generator(0))
    assert sum(v.numel() for v in phi.values()) == 26_497
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    model.load_state_dict(phi, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    x = scorer.pairs(pools, torch.tensor(3), torch.tensor([1, 6]), 2)
    texts = [[pools.texts[i][row] for row in x[:, i]] for i in (0, 1)]
    inputs = tokenizer(*texts, padding=True, truncation="only_second", max_length=32,
                       return_tensors="pt")  # fmt: skip
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        expected = model(**inputs).logits[:, 0]
    assert torch.allclose(scorer(phi, x), expected, atol=1e-5)
