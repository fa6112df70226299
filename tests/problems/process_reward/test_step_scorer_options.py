"""LoRA, precision and images: against peft's merged weights and transformers' own processor."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_process_rewards import CHAINS, SOURCE, TEXT, Answer, close, frozen
from torch.func import functional_call
from transformers import AutoModel, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from metaopt.engine.random import generator, replay
from metaopt.problems.process_reward.model.aggregation import aggregate, outcome_loss, step_loss
from metaopt.problems.process_reward.model.scorer import TransformerScorer

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def scrambled(params, seed=0):
    draw = generator(seed)
    return {k: v + 0.3 * torch.randn(v.shape, generator=draw).to(v) for k, v in params.items()}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
@torch.no_grad()
def test_lora_trains_adapters_and_head_and_is_what_peft_merges():
    from peft import LoraConfig, get_peft_model

    model = TransformerScorer(CHAINS, SOURCE, lora=LORA)
    params, buffers = model.init(generator(0))
    assert buffers == {}
    assert {k.split(".")[-3] for k in params if "lora" in k} == {"lora_A", "lora_B"}
    assert [k for k in params if "lora" not in k] == ["head.weight", "head.bias"]
    assert len(params) == 2 + 2 * 2 * 2
    steps = model.encode(CHAINS)
    start = model.logits(params, steps, False)
    changed = scrambled(params)
    logits = model.logits(changed, steps, False)[steps.mask]
    assert (logits - start[steps.mask]).abs().max() > 0.05

    theirs = AutoModel.from_config(model.config, attn_implementation="eager").eval()
    base = {
        k.removeprefix("backbone.").replace(".base_layer", ""): v for k, v in frozen(model).items()
    }
    assert not theirs.load_state_dict(base, strict=True).missing_keys
    wrapped = get_peft_model(theirs, LoraConfig(**LORA))
    adapters = {
        k.replace("backbone.", "base_model.model."): v for k, v in changed.items() if "lora" in k
    }
    assert not wrapped.load_state_dict(adapters, strict=False).unexpected_keys
    merged = wrapped.merge_and_unload()
    for i in range(len(CHAINS)):
        ids = steps.ids[i : i + 1, : steps.lengths[i]]
        hidden = merged(ids).last_hidden_state[0, steps.ends[i][steps.mask[i]]]
        z = hidden @ changed["head.weight"][0] + changed["head.bias"][0]
        close(model.logits(changed, steps, False)[i][steps.mask[i]], z)


def test_frozen_weights_come_from_the_scorer_s_seed_and_adapters_from_the_generator():
    one, two = (TransformerScorer(CHAINS, SOURCE, lora=LORA, seed=s) for s in (1, 1))
    a, b = one.init(generator(0))[0], two.init(generator(5))[0]
    same = frozen(two)
    assert all(torch.equal(v, same[k]) for k, v in frozen(one).items())
    name = next(k for k in a if "lora_A" in k)
    assert not torch.equal(a[name], b[name])
    fresh = TransformerScorer(CHAINS, SOURCE, lora=LORA, seed=1)
    steps = fresh.encode(CHAINS)
    assert torch.equal(fresh.logits(a, steps, False), one.logits(a, steps, False))


def test_lora_names_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match=r"lora must hold arguments of peft\.LoraConfig"):
        TransformerScorer(CHAINS, SOURCE, lora={"rank": 4})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install metaopt\[lora\]"):
        TransformerScorer(CHAINS, SOURCE, lora=LORA)


@pytest.mark.parametrize("lora", [None, LORA])
def test_precisions_differ_in_what_is_stored_and_agree_in_what_is_computed(lora):
    logits = {}
    for precision in ("float32", "master", "official"):
        model = TransformerScorer(CHAINS, SOURCE, precision=precision, lora=lora)
        params, _ = model.init(generator(0))
        kinds = {v.dtype for k, v in params.items() if k[:5] != "head."}
        half = precision == "official" and lora is None
        assert kinds == {torch.bfloat16 if half else torch.float32}
        assert params["head.weight"].dtype == torch.float32
        stored = {v.dtype for v in frozen(model).values()}
        expected = torch.float32 if precision == "float32" else torch.bfloat16
        assert stored == (set() if lora is None else {expected})
        steps = model.encode(CHAINS)
        leaves = {k: v.requires_grad_() for k, v in params.items()}
        z = model.logits(leaves, steps, True)
        assert z.dtype == torch.float32
        grads = torch.autograd.grad(z[steps.mask].sum(), list(leaves.values()), allow_unused=True)
        assert all(g is not None and g.isfinite().all() for g in grads)
        logits[precision] = z[steps.mask].detach()
    scale = logits["float32"].std()
    for precision in ("master", "official"):
        difference = (logits[precision] - logits["float32"]).abs().max() / scale
        assert 0 < difference < 0.2


@pytest.mark.parametrize("precision", ["float32", "master"])
def test_two_forward_passes_give_the_gradient_of_an_exact_unrolled_step(precision):
    """d F(theta - a grad sum_k w_k L_k) / dw_k, dropout on, by double differentiation."""
    source = {**SOURCE, "initializer_range": 0.1, "attention_dropout": 0.1}
    model = TransformerScorer(CHAINS, source, precision=precision)
    params, _ = model.init(generator(0))
    draw = generator(1)
    train = model.encode(CHAINS * 8)
    labels = torch.rand(train.mask.shape, generator=draw)
    meta = model.encode([*reversed(CHAINS)] * 4)
    outcome = (torch.rand(len(meta), generator=draw) > 0.3).float()
    domain = torch.arange(len(train)) // 6

    def row_losses(tensors):
        with replay(3):
            return step_loss(model.logits(tensors, train, True), labels, train.mask)

    def meta_loss(tensors):
        with replay(4):
            score = aggregate(model.logits(tensors, meta, True), meta.mask)
        return outcome_loss(score, outcome).mean()

    rate, weights = 1e-3, torch.ones(4, requires_grad=True)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    names, loss = list(leaves), (weights[domain] * row_losses(leaves)).sum()
    grads = torch.autograd.grad(
        loss, list(leaves.values()), create_graph=True, materialize_grads=True
    )
    after = {k: leaves[k] - rate * g for k, g in zip(names, grads, strict=True)}
    exact = torch.autograd.grad(meta_loss(after), weights)[0]

    there = {k: v.detach().requires_grad_() for k, v in after.items()}
    v = torch.autograd.grad(meta_loss(there), list(there.values()), materialize_grads=True)
    size = torch.stack([p.square().sum() for p in params.values()]).sum().sqrt()
    radius = 3e-4 * size / torch.stack([g.square().sum() for g in v]).sum().sqrt()
    with torch.no_grad():
        ends = [
            row_losses({k: params[k] + sign * radius * g for k, g in zip(names, v, strict=True)})
            for sign in (1, -1)
        ]
    slope = (ends[0] - ends[1]) / (2 * radius)
    actual = -rate * torch.zeros(4).index_add(0, domain, slope)
    assert torch.cosine_similarity(actual, exact, dim=0) > 0.99
    assert (actual - exact).norm() < 0.05 * exact.norm()


SEEN = {
    "model_type": "qwen2_vl",
    "text_config": {
        **TEXT,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
    "vision_config": {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "initializer_range": 0.5,
    },
}


@pytest.fixture
def pictured(tmp_path):
    draw = np.random.default_rng(0)
    paths = []
    for i, shape in enumerate([(64, 80), (120, 60), (70, 70)]):
        pixels = draw.integers(0, 255, (*shape, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return [
        Answer("3 + 4 * 2", ("4 * 2 = 3", "3 + 3 = 1"), (paths[0],)),
        Answer("1 - 2", ("1 - 2 = 4",)),
        Answer("2 * 2 + 4", ("2 * 2 = 4", "4 + 4 = 3", "3 = 3"), (paths[1], paths[2])),
        Answer("0", ("0 = 0",), (paths[0],)),
    ]


@torch.no_grad()
def test_images_are_seen_as_transformers_own_processor_and_model_see_them(pictured):
    model = TransformerScorer(pictured, SEEN)
    params, _ = model.init(generator(0))
    steps = model.encode(pictured)
    assert len(steps.images.paths) == 3
    assert steps.pictures.tolist() == [[0, -1], [-1, -1], [1, 2], [0, -1]]
    logits = model.logits(params, steps, False)
    theirs = Qwen2VLModel._from_config(model.config, attn_implementation="eager").eval()
    weights = {k.removeprefix("backbone."): v for k, v in params.items() if k[:9] == "backbone."}
    assert set(weights) == {k for k, _ in theirs.named_parameters()}
    processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2)
    words = model.tokens.tokenizer
    image = model.config.image_token_id
    for i, chain in enumerate(pictured):
        given = {}
        ids = []
        if chain.images:
            opened = [Image.open(path).convert("RGB") for path in chain.images]
            given = dict(processor(images=opened, return_tensors="pt"))
            for grid in given["image_grid_thw"]:
                start, end = model.config.vision_start_token_id, model.config.vision_end_token_id
                ids += [start, *[image] * (int(grid.prod()) // 4), end]
        text = " [STEP] ".join((chain.prompt, *chain.steps)) + " [STEP]"
        ids = torch.tensor([ids + words(text)["input_ids"]])
        if chain.images:
            given["mm_token_type_ids"] = (ids == image).int()
        hidden = functional_call(theirs, weights, (), {"input_ids": ids, **given})[0][0]
        read = hidden[ids[0] == words.convert_tokens_to_ids("[STEP]")][1:]
        z = read @ params["head.weight"][0] + params["head.bias"][0]
        close(logits[i][steps.mask[i]], z, atol=5e-5)
    assert logits[steps.mask].std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("head", ["hidden", "vocabulary"])
def test_images_do_not_depend_on_batch_or_layout(pictured, head):
    model = TransformerScorer(pictured, SEEN, head=head)
    params, _ = model.init(generator(0))
    steps = model.encode(pictured)
    together = model.logits(params, steps, False)
    prefix = TransformerScorer(pictured, SEEN, head=head, layout="prefix")
    close(prefix.logits(params, steps, False)[steps.mask], together[steps.mask], atol=5e-5)
    for rows in ([2], [1], [3, 0]):
        some = model.logits(params, steps.take(torch.tensor(rows)), False)
        close(some[steps.mask[rows]], together[rows][steps.mask[rows]], atol=5e-5)
    blind = [Answer(c.prompt, c.steps) for c in pictured]
    without = model.logits(params, model.encode(blind), False)
    gap = (without - together).abs()
    assert gap[1, 0] < 5e-5
    assert gap[0][steps.mask[0]].min() > 1e-3


def test_a_rematerialised_model_sees_images_and_learns_from_them_as_another_does(pictured):
    grads = []
    for pattern in (None, r"(layers|blocks)\.\d+$"):
        model = TransformerScorer(pictured, SEEN, remat=pattern)
        leaves = {k: v.requires_grad_() for k, v in model.init(generator(0))[0].items()}
        steps = model.encode(pictured)
        loss = model.logits(leaves, steps, True)[steps.mask].square().sum()
        grads.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
    assert all(map(torch.equal, *grads))
    assert any("visual" in k and bool(g.any()) for k, g in zip(leaves, grads[1], strict=True))


def test_an_image_is_shrunk_to_its_longer_side_and_has_to_be_there(pictured):
    wide = TransformerScorer(pictured, SEEN).encode(pictured)
    small = TransformerScorer(pictured, SEEN, longest=60).encode(pictured)
    assert small.lengths[0] < wide.lengths[0]
    gone = Answer("q", ("s",), ("nowhere.png",))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are not there: nowhere.png"):
        TransformerScorer(pictured, SEEN).encode([gone])
    with pytest.raises(ValueError, match="Vision needs longest >= 1"):
        TransformerScorer(pictured, SEEN, longest=0)
