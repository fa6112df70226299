"""Process reward models: one pass against many, batches, transformers' own forward pass."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")


import pytest
import torch
from tiny_process_rewards import Answer, close
from torch.func import functional_call
from transformers import AutoModel, AutoModelForCausalLM

from metaopt.engine.random import generator, replay
from metaopt.problems.process_reward.model.scorer import TransformerScorer
from metaopt.problems.process_reward.model.steps import scores

CHAINS = [
    Answer("3 + 4 * 2", ("4 * 2 = 3", "3 + 3 = 1")),
    Answer("1 - 2", ("1 - 2 = 4",)),
    Answer("2 * 2 + 4 - 1 * 3", ("2 * 2 = 4", "4 + 4 = 3", "1 * 3 = 3", "3 - 3 = 0")),
    Answer("0", ("0 = 0", "0")),
]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "qwen2": {"num_key_value_heads": 1, "intermediate_size": 32},
    "llama": {"num_key_value_heads": 2, "intermediate_size": 32},
    "gpt2": {},
    "bert": {"intermediate_size": 32},
}


def source(kind: str = "qwen2", **more) -> dict:
    wide = {"initializer_range": 0.5, "max_position_embeddings": 64}
    return {"model_type": kind, **SIZES, **KINDS[kind], **wide, **more}


def scorer(kind: str = "qwen2", **options) -> TransformerScorer:
    return TransformerScorer(CHAINS, source(kind), **options)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("head", ["hidden", "vocabulary"])
def test_one_pass_scores_each_step_as_transformers_scores_its_prefix(kind, head):
    """Against the library's own class, called on every prefix alone, padded on the left."""
    model = scorer(kind, head=head)
    params, buffers = model.init(generator(0))
    assert buffers == {}
    steps = model.encode(CHAINS)
    logits = model.logits(params, steps, False)
    auto = AutoModel if head == "hidden" else AutoModelForCausalLM
    theirs = auto.from_config(model.config, attn_implementation="eager").eval()
    names = {k.removeprefix("backbone."): v for k, v in params.items() if k[:9] == "backbone."}
    if head == "vocabulary":
        names = {f"{theirs.base_model_prefix}.{k}": v for k, v in names.items()}
        if "vocabulary.weight" in params:
            names["lm_head.weight"] = params["vocabulary.weight"]
    words = model.tokens.tokenizer
    assert logits[steps.mask].std() > 0.05
    for i, chain in enumerate(CHAINS):
        for k in range(len(chain.steps)):
            text = " [STEP] ".join((chain.prompt, *chain.steps[: k + 1])) + " [STEP]"
            ids = torch.tensor([[0, 0, *words(text)["input_ids"]]])
            mask = torch.ones_like(ids)
            mask[0, :2] = 0
            places = (torch.arange(ids.shape[1])[None] - 2).clamp(min=0)
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
            out = functional_call(theirs, names, (), given)
            read = out.last_hidden_state if head == "hidden" else out.logits
            z = read[0, -1] @ params["head.weight"][0] + params["head.bias"][0]
            close(logits[i, k], z)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *((kind, layout) for kind in ("qwen2", "gpt2") for layout in ("chain", "prefix")),
        ("bert", "prefix"),
    ],
)
def test_scores_do_not_depend_on_the_batch(kind, layout):
    model = scorer(kind, layout=layout)
    params, _ = model.init(generator(1))
    steps = model.encode(CHAINS)
    together = model.logits(params, steps, False)
    assert together.shape == steps.mask.shape == (4, 4)
    for i in range(len(CHAINS)):
        alone = model.logits(params, steps.take(torch.tensor([i])), False)
        close(alone[0][steps.mask[i]], together[i][steps.mask[i]])
    assert steps.take(torch.tensor([1])).ids.shape[1] < steps.ids.shape[1]
    for batch in (1, 3, 9):
        close(scores(model, params, steps, batch)[steps.mask], together[steps.mask])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_steps_that_follow_change_nothing(kind):
    whole, prefix = scorer(kind), scorer(kind, layout="prefix")
    params, _ = whole.init(generator(2))
    steps = whole.encode(CHAINS)
    close(*(m.logits(params, steps, False)[steps.mask] for m in (whole, prefix)))


def test_an_encoder_that_would_see_the_steps_that_follow_is_refused():
    with pytest.raises(ValueError, match=r"BertModel is an encoder, .*Take layout=prefix\."):
        scorer("bert").init(generator(2))


def test_the_same_seed_gives_the_same_model_and_dropout_is_replayed():
    model = TransformerScorer(CHAINS, source(attention_dropout=0.3))
    first, again, other = (model.init(generator(s))[0] for s in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    steps = model.encode(CHAINS)
    with replay(5):
        a = model.logits(first, steps, True)
    with replay(5):
        b = model.logits(first, steps, True)
    assert torch.equal(a, b)
    assert (a - model.logits(first, steps, False)).abs().max() > 1e-3


def test_gradients_are_those_of_autograd_on_a_difference():
    model = scorer()
    params = {k: v.double() for k, v in model.init(generator(6))[0].items()}
    steps = model.encode(CHAINS)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = model.logits(leaves, steps, True)[steps.mask].sum()
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    step = {k: torch.randn(v.shape, generator=generator(7)).double() for k, v in params.items()}
    ends = []
    for sign in (1, -1):
        moved = {k: v + sign * 1e-4 * step[k] for k, v in params.items()}
        ends.append(model.logits(moved, steps, True)[steps.mask].sum())
    slope = (ends[0] - ends[1]) / 2e-4
    torch.testing.assert_close(
        slope, sum((grads[k] * step[k]).sum() for k in grads), rtol=1e-3, atol=0
    )


def test_a_long_prompt_loses_its_beginning_and_what_does_not_fit_is_counted():
    whole = scorer().encode(CHAINS)
    tight = scorer(max_length=14).encode(CHAINS)
    assert whole.cut.tolist() == [0, 0, 0, 0]
    assert tight.cut.tolist() == [0, 0, 2, 0]
    assert tight.mask[2].tolist() == [True, True, False, False]
    assert tight.lengths.max() == 14
    row = tight.ids[0, : int(tight.lengths[0])]
    assert torch.equal(row, whole.ids[0, whole.lengths[0] - 14 : whole.lengths[0]])
    with pytest.raises(ValueError, match="first step of chain 0 has 6 tokens, of which 5 fit"):
        scorer(max_length=5).encode(CHAINS)


def test_wrong_arguments_are_named():
    for name in ("head", "layout", "precision"):
        with pytest.raises(ValueError, match=f"{name} to be one of .*; got {name}='x'"):
            scorer(**{name: "x"})
    with pytest.raises(ValueError, match="1 of 2 chains have no steps: chains 1"):
        scorer().encode([CHAINS[0], Answer("q", ())])
    with pytest.raises(ValueError, match="needs chains with steps; got none"):
        scorer().encode([])
    with pytest.raises(ValueError, match="1 of 1 chains have images; this model reads text"):
        scorer().encode([Answer("q", ("a",), ("i.png",))])
    with pytest.raises(ValueError, match="source needs a model_type"):
        TransformerScorer(CHAINS, {"hidden_size": 4})
    with pytest.raises(ValueError, match=r"vocab_size=3, fewer than the \d+ tokens"):
        TransformerScorer(CHAINS, source(vocab_size=3))
    with pytest.raises(ValueError, match="has no token in this vocabulary"):
        scorer(separator=" ")
    with pytest.raises(ValueError, match="chain 0 has a step without tokens"):
        scorer(separator="").encode([Answer("q", ("",))])
