"""Folders of process reward models: read back in another process, cards, refusals."""

from __future__ import annotations

import json
import os
import shutil
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
from tiny_process_rewards import CHAINS, SOURCE, TEXT, Answer, by_transformers, close
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from metaopt.engine.random import generator
from metaopt.nn.model_card import ModelCard
from metaopt.problems.process_reward.model.export import _custom, export, load
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.scorer import TransformerScorer
from metaopt.problems.process_reward.model.steps import scores


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
BERT = {**{k: v for k, v in TEXT.items() if k != "num_key_value_heads"}, "vocab_size": 64}
CARD = ModelCard("200 chains | of\nsums", {"best of 8": 0.9375}, "me/base", "mit", "A note.")


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
        config = compose(f"model/process_reward/{name}").model.process_reward
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
    tolerance = 0.02 if kind == "official" else 1e-5
    assert difference <= tolerance
    read, tensors = load(tmp_path / "out")
    if kind in ("features", "plain", "official"):
        assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in params.items()}
    steps = read.encode(CHAINS)
    close(
        scores(read, tensors, steps)[steps.mask],
        scores(scorer, params, steps)[steps.mask],
        tolerance,
    )
    page = (tmp_path / "out" / "README.md").read_text()
    for text in ("base_model: me/base", "license: mit", "| data | 200 chains \\| of sums |",
                 "| best of 8 | 0.9375 |", "A note."):  # fmt: skip
        assert text in page
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix in (".bin", ".pkl", ".pt")]


@pytest.mark.parametrize(
    ("source", "options", "architecture"),
    [
        (SOURCE, {}, "Qwen2ForTokenClassification"),
        (SOURCE, {"head": "vocabulary"}, "Qwen2ForTokenClassification"),
        (SOURCE, {"lora": LORA, "seed": 4}, "Qwen2ForTokenClassification"),
        ({**BERT, "model_type": "bert"}, {"layout": "prefix"}, "BertForTokenClassification"),
        ({**TEXT, "model_type": "gpt2"}, {}, "GPT2ForTokenClassification"),
        ({**BERT, "model_type": "modernbert"}, {"layout": "prefix"}, "ProcessRewardModel"),
    ],
)
def test_transformers_loads_the_folder_and_scores_the_same(source, options, architecture, tmp_path):
    scorer = TransformerScorer(CHAINS, source, **options)
    params = trained(scorer)
    export(scorer, params, tmp_path / "out", CARD, CHAINS)
    steps = scorer.encode(CHAINS)
    expected = scores(scorer, params, steps)
    for i, chain in enumerate(CHAINS):
        log_odds, name = by_transformers(tmp_path / "out", chain)
        assert name == architecture
        close(log_odds, expected[i][steps.mask[i]], 1e-4)
    assert isinstance(
        AutoTokenizer.from_pretrained(tmp_path / "out"), type(scorer.tokens.tokenizer)
    )


def test_a_tokenizer_that_transformers_would_take_for_another_keeps_its_tokens(tmp_path):
    """Qwen2's class splits the word `3+2` into letters, so its name is not in the folder."""
    chains = [Answer("3 +2 *4", ("3+2 = 0", "0*4 is 0")), Answer("1 -2", ("1-2 = 4",))]
    scorer = TransformerScorer(chains, SOURCE)
    params = trained(scorer)
    export(scorer, params, tmp_path / "out", CARD, chains)
    log_odds, name = by_transformers(tmp_path / "out", chains[0])
    assert name == "ProcessRewardModel"
    close(log_odds, scores(scorer, params, scorer.encode(chains))[0], 1e-4)


@pytest.mark.slow
def test_a_model_of_its_own_class_loads_where_metaopt_is_not_installed(tmp_path):
    scorer = TransformerScorer(CHAINS, {**BERT, "model_type": "modernbert"}, layout="prefix")
    params = trained(scorer)
    export(scorer, params, tmp_path / "out", CARD, CHAINS)
    expected, _ = by_transformers(tmp_path / "out", CHAINS[0])
    page = (tmp_path / "out" / "README.md").read_text()
    program = page.split("```python\n")[1].split("\n# the same")[0]
    chain = CHAINS[0]
    code = (
        "import sys; sys.modules['metaopt'] = None\n"
        f"FOLDER, PROMPT, STEPS = {str(tmp_path / 'out')!r}, {chain.prompt!r}, {chain.steps!r}\n"
        f"{program}\nprint(*log_odds.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    read = list(map(float, done.stdout.strip().splitlines()[-1].split()))
    assert read == pytest.approx(expected.tolist(), abs=1e-5)


def test_lora_on_a_pretrained_folder_is_merged_into_its_weights(tmp_path):
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
    shutil.rmtree(tmp_path / "base")  # nothing of the export is left there
    expected = scores(scorer, params, steps)[0][steps.mask[0]]
    close(by_transformers(tmp_path / "out", CHAINS[0])[0], expected, 1e-4)


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
    with pytest.raises(ValueError, match="a card needs data and figures"):
        export(scorer, params, tmp_path, CARD._replace(figures={}), CHAINS)
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

    def spoilt(classes, config, backbone, head):
        return _custom(backbone, nn.Linear(head.in_features, 2))

    monkeypatch.setattr("metaopt.problems.process_reward.model.export.native", spoilt)
    with pytest.raises(RuntimeError, match="does not hold this model"):
        export(scorer, params, tmp_path / "spoilt", CARD, CHAINS)
    assert not (tmp_path / "spoilt" / "README.md").exists()
