"""Folders of process reward models: read back in another process, cards, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
import transformers
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_process_rewards import CHAINS, SOURCE, TEXT, Answer
from transformers import AutoModelForCausalLM, AutoTokenizer

from metaopt.engine.random import generator
from metaopt.problems.process_reward.model.export import ProcessCard, export, load
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.scorer import TransformerScorer, scores


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


SEEN = {
    "model_type": "qwen2_vl",
    "text_config": TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "vision_config": {
        "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 4,
    },
}  # fmt: skip
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
CARD = ProcessCard(
    "200 chains | of\nsums", {"best of 8": 0.9375}, {"noisy": 0.125}, "me/base", "mit", "A note."
)


def trained(scorer, seed=0):
    draw = generator(seed)
    params = scorer.init(draw)[0]
    return {k: v + 0.2 * torch.randn(v.shape, generator=draw).to(v) for k, v in params.items()}


def make(kind):
    options = {
        "features": {},
        "plain": {},
        "vocabulary": {"head": "vocabulary", "layout": "prefix", "max_length": 60},
        "lora": {"lora": LORA, "seed": 4},
        "official": {"precision": "official"},
    }[kind]
    if kind == "features":
        return FeatureScorer(CHAINS, size=4, widths=(5,), dropout=0.25)
    return TransformerScorer(CHAINS, SOURCE, **options)


@pytest.mark.parametrize("name", ["prm_tiny", "prm_features", "prm_transformers", "prm_qwen2_vl"])
def test_configurations_make_scorers(name):
    with initialize_config_module("metaopt.configs", version_base=None):
        config = compose(f"model/{name}").model
    if name in ("prm_transformers", "prm_qwen2_vl"):
        config.source = SOURCE if name == "prm_transformers" else SEEN
        config.separator = None
    scorer = instantiate(config)(CHAINS)
    params, buffers = scorer.init(generator(0))
    steps = scorer.encode(CHAINS)
    assert buffers == {}
    assert scores(scorer, params, steps)[steps.mask].isfinite().all()
    if name == "prm_tiny":
        assert sum(v.numel() for v in params.values()) < 100_000


@pytest.mark.parametrize("kind", ["features", "plain", "vocabulary", "lora", "official"])
def test_a_folder_read_back_scores_the_same(kind, tmp_path):
    scorer = make(kind)
    params = trained(scorer)
    difference = export(scorer, params, tmp_path / "out", CARD, CHAINS)
    assert difference <= (0.02 if kind == "official" else 1e-6)
    read, tensors = load(tmp_path / "out")
    assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in params.items()}
    steps = read.encode(CHAINS)
    found = scores(read, tensors, steps)[steps.mask]
    torch.testing.assert_close(found, scores(scorer, params, steps)[steps.mask])
    page = (tmp_path / "out" / "README.md").read_text()
    for text in ("base_model: me/base", "license: mit", "| data | 200 chains \\| of sums |",
                 "| best of 8 | 0.9375 |", "| weight of noisy | 0.125 |", "A note."):  # fmt: skip
        assert text in page
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix in (".bin", ".pkl", ".pt")]


@pytest.mark.slow
def test_a_folder_is_read_in_a_new_process(tmp_path):
    scorer = make("plain")
    params = trained(scorer)
    export(scorer, params, tmp_path, CARD, CHAINS)
    code = f"""
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.export import load
from metaopt.problems.process_reward.model.scorer import scores
scorer, tensors = load({str(tmp_path)!r})
print(scores(scorer, tensors, scorer.encode([Chain("1 - 2", ("1 - 2 = 4",))])).item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = scores(scorer, params, scorer.encode(CHAINS))[1, 0].item()
    assert float(done.stdout.strip().splitlines()[-1]) == pytest.approx(expected, abs=1e-5)


def test_lora_on_a_pretrained_folder_keeps_the_frozen_weights_there(tmp_path):
    """Pretrained weights and the language model's own logits come from the folder."""
    first = TransformerScorer(CHAINS, SOURCE)
    theirs = AutoModelForCausalLM.from_config(first.config)
    theirs.save_pretrained(tmp_path / "base")
    first.tokens.tokenizer.save_pretrained(tmp_path / "base")
    scorer = TransformerScorer((), tmp_path / "base", lora=LORA, head="vocabulary", separator="=")
    fresh, _ = scorer.init(generator(0))
    with torch.no_grad():
        steps = scorer.encode(CHAINS)
        ids = steps.ids[1:2, : steps.lengths[1]]
        logits = theirs.eval()(ids).logits[0, steps.ends[1, 0]]
        z = logits @ fresh["head.weight"][0] + fresh["head.bias"][0]
        torch.testing.assert_close(scorer.logits(fresh, steps, False)[1, 0], z)
    params = trained(scorer)
    export(scorer, params, tmp_path / "out", CARD, CHAINS)
    assert set(load_file(tmp_path / "out" / "steps.safetensors")) == set(params)
    assert (
        f"frozen weights are those of {tmp_path / 'base'}"
        in (tmp_path / "out" / "README.md").read_text()
    )
    assert load(tmp_path / "out")[0].source == str(tmp_path / "base")
    assert isinstance(
        AutoTokenizer.from_pretrained(tmp_path / "out"), type(scorer.tokens.tokenizer)
    )


def test_a_model_that_sees_keeps_its_image_processor(tmp_path):
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    chains = [Answer("0", ("0 = 0",), (str(tmp_path / "i.png"),)), CHAINS[0]]
    scorer = TransformerScorer(chains, SEEN, longest=64)
    params = trained(scorer)
    assert export(scorer, params, tmp_path / "out", CARD, chains) <= 1e-5
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_what_is_wrong_with_a_folder_is_named(tmp_path, monkeypatch):
    scorer = make("plain")
    params = trained(scorer)
    with pytest.raises(ValueError, match="a card needs data and measured"):
        export(scorer, params, tmp_path, CARD._replace(measured={}), CHAINS)
    with pytest.raises(ValueError, match="needs chains with steps"):
        export(scorer, params, tmp_path, CARD, [])
    with pytest.raises(FileNotFoundError, match=r"has no steps\.json"):
        load(tmp_path)
    export(scorer, params, tmp_path / "out", CARD, CHAINS)
    with pytest.raises(FileExistsError, match="is not empty"):
        export(scorer, params, tmp_path / "out", CARD, CHAINS)
    path = tmp_path / "out" / "steps.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "other"}))
    with pytest.raises(ValueError, match="kind='other'; legal: transformer, features"):
        load(tmp_path / "out")

    def spoilt(tensors, where):
        save_file({k: v + 0.1 for k, v in tensors.items()}, where)

    monkeypatch.setattr("metaopt.problems.process_reward.model.export.save_file", spoilt)
    with pytest.raises(RuntimeError, match="does not hold this model"):
        export(scorer, params, tmp_path / "spoilt", CARD, CHAINS)
    assert not (tmp_path / "spoilt" / "README.md").exists()
