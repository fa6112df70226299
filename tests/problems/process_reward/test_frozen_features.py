"""A process reward model on a frozen model's features: fitted, cached, delivered, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_models import CHAINS, LLAMA, saved
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from safetensors.torch import load_file

from metaopt.engine.random import generator
from metaopt.nn.model_card import ModelCard
from metaopt.problems.process_reward.model.export import export, load
from metaopt.problems.process_reward.model.frozen_features import FrozenFeatures, frozen_scorer
from metaopt.problems.process_reward.model.frozen_reader import FrozenReader
from metaopt.problems.process_reward.model.steps import scores


def test_the_configuration_reads_and_scores(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    with initialize_config_module("metaopt.configs", version_base=None):
        config = compose("model/process_reward/prm_frozen").model.process_reward
    config.reader.source = str(saved(tmp_path / "model", LLAMA))
    config.reader.layers = [1, -1]
    scorer = instantiate(config)(CHAINS)
    x = scorer.features(CHAINS)
    assert x.shape == (9, 2 * 16 + 2)
    torch.testing.assert_close(x.mean(0), torch.zeros(34), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(34), rtol=0, atol=1e-3)
    params, _ = scorer.init(generator(0))
    steps = scorer.encode(CHAINS)
    assert scores(scorer, params, steps)[steps.mask].isfinite().all()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass, and everything is in the cache")

    monkeypatch.setattr(FrozenReader, "_read", refuse)
    again = instantiate(config)(CHAINS)
    assert torch.equal(again.features(CHAINS), x)
    config.reader.layers = [2, -1]
    with pytest.raises(AssertionError, match="a forward pass"):
        instantiate(config)(CHAINS)


def test_a_cache_changes_no_feature(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", LLAMA)
    plain = FrozenReader(folder)(CHAINS)
    for _ in ("written", "read"):
        kept = FrozenReader(folder, cache=tmp_path / "cache")(CHAINS)
        assert all(map(torch.equal, kept, plain))
    with pytest.raises(ValueError, match="dtype=float64 takes no cache"):
        FrozenReader(folder, dtype="float64", cache=tmp_path / "cache")


def test_a_delivered_folder_names_its_frozen_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", LLAMA)
    monkeypatch.chdir(tmp_path)
    reader = FrozenReader("model", [1], likelihood=True)
    scorer = frozen_scorer(CHAINS, reader, widths=(5,))
    params, _ = scorer.init(generator(0))
    card = ModelCard("4 chains", {"best of 4": 0.5})
    assert export(scorer, params, tmp_path / "out", card, CHAINS) <= 1e-5
    assert f"looked for at `{folder}`" in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    read, tensors = load(tmp_path / "out")
    assert isinstance(read.features, FrozenFeatures)
    steps = read.encode(CHAINS)
    torch.testing.assert_close(
        scores(read, tensors, steps)[steps.mask], scores(scorer, params, steps)[steps.mask]
    )
    assert not [p for p in (tmp_path / "out").iterdir() if p.stat().st_size > 50_000]
    saved(tmp_path / "model", {**LLAMA, "rms_norm_eps": 1e-5})
    with pytest.warns(UserWarning, match="another configuration or tokenizer, as after an upgrade"):
        load(tmp_path / "out")
    saved(tmp_path / "model", LLAMA, seed=1)
    with pytest.raises(ValueError, match=r"is not the model that .*/out was trained on"):
        load(tmp_path / "out")


@pytest.mark.slow
def test_a_run_on_a_frozen_model_is_resumed_to_the_bit(metaopt: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", LLAMA)
    run = (
        "problem=domain_reweighting", "debug=tiny", "figures=false",
        "model@problem.task.scorer=process_reward/prm_frozen", "checkpoint_every=1",
        f"problem.task.scorer.reader.source={folder}", "problem.task.scorer.reader.layers=[1]",
        f"problem.task.scorer.reader.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    assert metaopt(*run, "hydra.run.dir=whole", "outer_steps=3").code == 0
    assert metaopt(*run, "hydra.run.dir=parts", "outer_steps=2").code == 0
    done = metaopt("resume=parts", "outer_steps=3")
    assert done.code == 0, done.err
    for file in ("inner.safetensors", "outer.safetensors"):
        whole, parts = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)
