"""Preferences in words, and one reward model on a transformers backbone."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from transformers import AutoConfig

from metaopt.data.folder import model_source
from metaopt.data.origin import origin
from metaopt.engine import tree
from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.remat_blocks import remat_blocks
from metaopt.metrics.binary import wilson
from metaopt.nn.lora import add_adapters, merge_adapters
from metaopt.nn.model_card import ModelCard, Proportion
from metaopt.nn.pretrained import progress_bars
from metaopt.nn.word_tokenizer import tokenizer_of
from metaopt.problems.reward_model.data.dialogue import plain
from metaopt.problems.reward_model.data.pair import Pair, Preferences, split, with_noise
from metaopt.problems.reward_model.data.pair_sources import transferred
from metaopt.problems.reward_model.data.text_features import HELD_OUT, unlabelled_half
from metaopt.problems.reward_model.model.export import export
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.text_encoder import frozen_features
from metaopt.problems.reward_model.model.tokens import check_room, encode
from metaopt.problems.reward_model.model.training import bradley_terry
from metaopt.problems.reward_model.report import table
from metaopt.problems.reward_model.task import PreferenceTask, reward_figures


class Encoded(NamedTuple):
    """Token ids and their mask, (n, 2, T): the better answer first where the label is right.

    Args:
        features: what a frozen backbone makes of them, (n, 2, d); `None` where it is trained.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor | None = None


class TextPreferences(PreferenceTask):
    """Pairs of texts and a `RewardModel` on any transformers model; one run, G = 1.

    The trained model is written as a folder that transformers and TRL load, read back and compared;
    adapters are multiplied out first. All weights are trained, or the head alone on the features of
    a frozen backbone, which reads each text once and without dropout, or adapters and the head.

    A training pair with a margin m has the loss softplus(m - d), d = r(chosen) - r(rejected);
    without one m = 0. Losses of tests are those of m = 0, and strengths are not used.

    Args:
        source: pairs that are split into a training part and the test `held_out`.
        backbone: a local folder or an id of the hub; minilm or smollm2, which `metaopt-fetch`
            brings; or a configuration with `model_type`, for random weights, whose vocabulary size
            is the tokenizer's.
        transfer: further tests, or their sources, by name; `None` for none.
        unlabelled: which test, `held_out` or one of these, gives half of its pairs, without their
            labels, as two responses per prompt; the test is then on the other half.
        tokenizer: a folder or an id; `None` for the backbone's, or, with a configuration, one token
            for each word of the training texts.
        pooling: see `RewardModel.on`.
        training: training pairs, or their share.
        noise_share: share of training labels that are exchanged, in [0, 1].
        max_length: most tokens of a text; longer ones lose their beginning, see `encode`.
        evaluation_batch: pairs in a forward pass where nothing is trained, >= 1.
        frozen: whether the head alone is trained.
        lora: arguments of `peft.LoraConfig`, such as {r: 8, lora_alpha: 16, target_modules:
            [q_proj, v_proj]} ([query, value] of BERT); `None` for no adapters.
        cache: folder that keeps the features of a frozen backbone, see `TextEncoder`.
        remat: pattern of the names of layers of the backbone that keep their inputs alone and are
            computed again for derivatives; see `metaopt.remat_blocks`.
        seed: of the split, the noise and the random weights.
        device: where the model lives.

    Attributes:
        rows, prompts: numbers of training pairs and of prompts with unlabelled responses.
        cut: texts that were cut short, of all.

    Raises:
        ValueError: a number out of its range, more tokens than the backbone has positions for, an
            unknown name of unlabelled pairs, a pattern that no layer matches, or options that
            exclude each other.
        ImportError: lora without peft.
        OSError: there is no such folder or model.
    """

    def __init__(
        self,
        source: Preferences,
        backbone: str | Mapping[str, Any],
        transfer: Mapping[str, Preferences | str] | None = None,
        unlabelled: str = HELD_OUT,
        tokenizer: str | None = None,
        pooling: str = "last",
        training: int | float = 0.75,
        noise_share: float = 0.0,
        max_length: int = 256,
        evaluation_batch: int = 64,
        frozen: bool = False,
        lora: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        remat: str | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.max_length, self.evaluation_batch = max_length, evaluation_batch
        check_ranges(self, "max_length >= 1", "evaluation_batch >= 1")
        if frozen and (lora is not None or remat is not None):
            raise ValueError(
                "frozen=true trains the head alone, which leaves nothing for lora or remat to do; "
                "use frozen=false with them, or leave them out."
            )
        if cache is not None and not frozen:
            raise ValueError(
                f"cache={str(cache)!r} keeps the features of a frozen backbone, and this one is "
                f"trained; use frozen=true, or cache=null."
            )
        rows, other = split(source.pairs, training, seed)
        trained = with_noise([plain(source.pairs[i]) for i in rows], noise_share, seed)
        tests = {HELD_OUT: [plain(source.pairs[i]) for i in other]}
        tests |= {name: [plain(p) for p in s.pairs] for name, s in transferred(transfer).items()}
        draw = torch.Generator().manual_seed(seed)
        unlabelled_pairs = unlabelled_half(
            tests, unlabelled, lambda n: torch.randperm(n, generator=draw).tolist()
        )
        self.source, self.cut, self.device = source.source, 0, torch.device(device)
        if isinstance(backbone, str):
            backbone = str(model_source(backbone))
        texts = (f"{p.prompt}{side}" for p in trained for side in (p.chosen, p.rejected))
        self.tokenizer: Any = tokenizer_of(backbone, tokenizer, texts)
        start = backbone if isinstance(backbone, str) else _config(backbone, self.tokenizer)
        self.origin = origin(backbone)
        with progress_bars():
            self.module = RewardModel.on(start, pooling, seed)
        check_room(max_length, self.module)
        layers: torch.nn.Module = self.module.backbone
        self._reads_features, self._has_adapters, self._cache = frozen, lora is not None, cache
        if frozen:
            layers.requires_grad_(False)
        if lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_adapters(layers, lora)
        if remat is not None:
            remat_blocks(layers, remat)
        torch.nn.Module.to(self.module, self.device)
        params, self._buffers, self.frozen = split_module(self.module)
        # With the leading axis G = 1 that all tasks have.
        self._params = {name: value[None] for name, value in params.items()}
        self._training, self._unlabelled = self._encoded(trained), self._encoded(unlabelled_pairs)
        self._margins = torch.tensor([pair.margin or 0.0 for pair in trained], device=self.device)
        self.noise_share = noise_share
        self._tests = {name: self._encoded(pairs) for name, pairs in tests.items()}
        self.rows, self.prompts = len(trained), len(unlabelled_pairs)
        self.resplit = len(other) / len(trained)

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the backbone's and the head's parameters, (1, ...), and the module's buffers."""
        return tree.clone(self._params), tree.clone(self._buffers)

    def row_losses(self, tensors: Mapping[str, Tensor], rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each training pair, (1, B)."""
        first, second = self._rewards(tensors, self._training, rows, train).unbind(-1)
        return bradley_terry(first, second, self._margins[rows.to(self.device)])[None]

    def responses(self, tensors: Mapping[str, Tensor], prompts: Tensor) -> Tensor:
        """Return the rewards of the two responses to each prompt, (1, B, 2); without dropout.

        With it two equal responses would differ, and J would spread the noise.
        """
        return self._rewards(tensors, self._unlabelled, prompts, False)[None]

    @torch.no_grad()
    def metrics(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return accuracy, loss and mean |margin| by test, and J."""
        tests = {name: self._all(tensors, pairs) for name, pairs in self._tests.items()}
        return reward_figures(
            {name: (both[..., 0], both[..., 1]) for name, both in tests.items()},
            self._all(tensors, self._unlabelled),
        )

    @torch.no_grad()
    def deliver(self, tensors: Mapping[str, Tensor], folder: Path) -> str:
        """Write the folder reward_model with a card; return the figures and where it is."""
        module = self._trained(tensors)
        figures = self.metrics(tensors)
        card = self._card(figures, self._all(tensors, self._tests[HELD_OUT])[0])
        path = folder / "reward_model"
        if path.exists():  # of a run that was stopped while it wrote
            shutil.rmtree(path)
        made = export(module, self.tokenizer, path, card, max_length=self.max_length)
        lines = table({name: (value, None) for name, value in figures.items()})
        return (
            f"{lines}\n{made.architecture} in {made.folder}, read back: rewards differ by at "
            f"most {made.difference:.1g}; {self.cut} texts were cut to {self.max_length} tokens"
        )

    def _trained(self, tensors: Mapping[str, Tensor]) -> RewardModel:
        """Return the module with these weights, and with adapters multiplied out."""
        self.module.load_state_dict(self._state(tensors), strict=False)
        if not self._has_adapters:
            return self.module
        module = copy.deepcopy(self.module)
        merge_adapters(module.backbone)
        return module

    def _card(self, figures: Mapping[str, Tensor], rewards: Tensor) -> ModelCard:
        """Return the card of figures by name, and of the rewards (n, 2) of the held-out pairs."""
        count, share = len(rewards), figures["held_out_accuracy"].item()
        low, high = map(float, wilson(share, count))
        ties = int((rewards[:, 0] == rewards[:, 1]).sum())
        others = "".join(
            f"| {name} | {figures[f'{name}_accuracy'].item():.4f} | {len(pairs.ids)} |\n"
            for name, pairs in self._tests.items()
            if name != HELD_OUT
        )
        return ModelCard(
            data=f"{self.source}: {self.rows} training pairs, {100 * self.noise_share:g} % of them "
            f"with exchanged labels, and {count} held-out pairs.",
            figures={"accuracy": Proportion(share, low, high, count)},
            base=self.origin.base,
            licence=self.origin.licence,
            notes=f"Texts longer than {self.max_length} tokens were cut at their beginning, in "
            f"training and tests: {self.cut} texts. Equal rewards count half in every accuracy "
            f"here ({ties} of {count} held-out pairs); `python -m "
            f"metaopt.problems.reward_model.bench` counts them as wrong, as RewardBench does.\n\n"
            + (f"| other test | accuracy | pairs |\n|---|---|---|\n{others}" if others else ""),
        )

    def _all(self, tensors: Mapping[str, Tensor], pairs: Encoded) -> Tensor:
        """Return the rewards of all pairs, (1, n, 2)."""
        parts = torch.arange(len(pairs.ids)).split(self.evaluation_batch)
        return torch.cat([self._rewards(tensors, pairs, rows, False) for rows in parts])[None]

    def _rewards(
        self, tensors: Mapping[str, Tensor], pairs: Encoded, rows: Tensor, train: bool
    ) -> Tensor:
        """Return rewards (B, 2)."""
        if pairs.features is not None:
            return pairs.features[rows.to(self.device)] @ tensors["score.weight"][0, 0]
        state = self._state(tensors)
        ids, mask = (part[rows].flatten(0, 1).to(self.device) for part in pairs[:2])
        self.module.train(train)  # functional_call reads the mode from the module
        result: Tensor = functional_call(self.module, state, (ids, mask)).logits.view(-1, 2)
        return result

    def _state(self, tensors: Mapping[str, Tensor]) -> Tree:
        return {k: tensors[k][0] for k in self._params} | {k: tensors[k] for k in self._buffers}

    def _encoded(self, pairs: Sequence[Pair]) -> Encoded:
        texts = [f"{p.prompt}{side}" for p in pairs for side in (p.chosen, p.rejected)]
        ids, mask, cut = encode(self.tokenizer, texts, self.max_length)
        self.cut += len(cut)
        result = Encoded(*(part.view(len(pairs), 2, -1) for part in (ids, mask)))
        if not self._reads_features:
            return result
        features = frozen_features(
            self.module, self.tokenizer, texts, self.max_length, self.evaluation_batch, self._cache
        )
        return result._replace(features=features.view(len(pairs), 2, -1).to(self.device))


def _config(settings: Mapping[str, Any], tokenizer: Any) -> Any:
    if "model_type" not in settings:
        raise ValueError(
            f"a backbone that is not a folder or id needs model_type, such as llama; got "
            f"{sorted(settings)}."
        )
    size, pad = len(tokenizer), tokenizer.pad_token_id
    return AutoConfig.for_model(**{**settings, "vocab_size": size, "pad_token_id": pad})
