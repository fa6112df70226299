"""What a frozen language model or encoder makes of each step: hidden states and likelihoods."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from metaopt.data.folder import model_source
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn.adapters import refuse_adapter
from metaopt.nn.feature_cache import FeatureCache, content_hash, fingerprint
from metaopt.nn.positions import positions
from metaopt.nn.precision import say_if_slow
from metaopt.nn.pretrained import progress_bars
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.chain import refuse
from metaopt.problems.process_reward.model.backbone import SCALED, is_causal
from metaopt.problems.process_reward.model.hidden_states import HiddenStates
from metaopt.problems.process_reward.model.packing import Packed, Row, pack
from metaopt.problems.process_reward.model.step_rows import Span, step_rows
from metaopt.problems.process_reward.model.steps import check_steps
from metaopt.problems.process_reward.model.tokens import TokenLayout, default_separator

POOLINGS = ("end", "mean")
LAYOUTS = ("chain", "prefix")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
"""Names of the span within which layers of some models attend."""

LONGEST = 2048
"""Tokens of a sequence where the model has room for more, and of a row of several."""


@dataclass(frozen=True)
class _Read:
    """Of each step of a batch: states (n, layers * poolings * width), log p summed, and tokens."""

    states: Tensor
    log_p: Tensor
    count: Tensor


class FrozenReader:
    """x_i = [h of step i by layer and pooling, mean log p of step i, mean log p of steps 1..i].

    The sequence is [start] question [sep] step 1 [sep] step 2 [sep] ...; a step's tokens are its
    own and the separator after it. Answers to one question share a row: the question is read once,
    answers begin at one position and do not see each other. With likelihood=false, layers above
    the last one that is read are not computed. A model that cannot share rows (it has no
    position_ids, or attends within a window below max_length) reads each answer by itself, with the
    same result.

    A step whose sequence is longer than max_length is read in a sequence of its own, which loses
    the oldest of the earlier steps' tokens first, then the question's beginning, then its own.

    Args:
        source: a local folder, an id of the hub, or a name that `metaopt-fetch` knows, of a model
            in safetensors and its tokenizer.
        layers: indices as in transformers' `hidden_states`: 0 the embeddings, k after k layers, and
            the last one, also -1, after the final norm; [] for likelihoods alone.
        pooling: of a step's tokens: end (the last one's state) or mean; one or both.
        likelihood: add the two log-probabilities (nats per token), of causal models only.
        layout: chain (a causal model reads all steps at once), or prefix (each step in a sequence
            that ends with it, at the cost of reading what is before it again; an encoder, which
            would see later steps, needs it).
        separator: text after question and steps; `None` for a blank line, or the tokenizer's own
            separator where its vocabulary has no blank line; "" for none.
        max_length: most tokens of a sequence; `None` for 2,048, or what the model has room for.
        cache: folder of a `FeatureCache`; `None` to read anew. Features have the precision of
            float16, in which a cache keeps them, with a cache and without.
        batch: tokens of a forward pass, padding included, >= 1.
        dtype: float32, bfloat16 or float64, of weights and arithmetic; float64 is for comparisons,
            takes no cache and does not round features.
        device: where the model reads; features come back to the CPU.

    Attributes:
        width: number of features of a step.
        shares_rows: whether answers to one question are read in one row.

    Raises:
        ValueError: one of these is not met; says which and what is legal.
        OSError: there is no such folder or model.

    Cost: one forward pass over the tokens. On one 2.5 GHz core 1,850 tokens a second of a 6-layer
    encoder of width 384, 155 of a 135M language model with likelihoods.
    """

    def __init__(
        self,
        source: str | Path,
        layers: Sequence[int] = (-1,),
        pooling: Sequence[str] = ("end",),
        likelihood: bool = False,
        layout: str = "chain",
        separator: str | None = None,
        max_length: int | None = None,
        cache: str | Path | None = None,
        batch: int = 4096,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        self.source: str | Path = model_source(source)
        self.likelihood, self.layout = likelihood, layout
        self.pooling, self.dtype, self.device = tuple(pooling), dtype, torch.device(device)
        self.batch = batch
        check_choices(self, layout=LAYOUTS, dtype=tuple(DTYPES))
        check_ranges(self, "batch >= 1")
        if not layers and not likelihood:
            raise ValueError("layers=[] needs likelihood=true: otherwise there is no feature.")
        if cache is not None and dtype == "float64":
            raise ValueError("dtype=float64 takes no cache, which keeps float16; drop cache.")
        if not self.pooling or not set(self.pooling) <= set(POOLINGS):
            raise ValueError(f"pooling must list {' and '.join(POOLINGS)}; got {list(pooling)}.")
        refuse_adapter(self.source)
        kind: Any = AutoModelForCausalLM if likelihood else AutoModel
        with progress_bars():
            model = kind.from_pretrained(
                self.source, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
            ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        self._model = model
        self.backbone: Any = model.base_model if likelihood else model
        self.config = self.backbone.config.get_text_config()
        self.head: Any = model.get_output_embeddings() if likelihood else None
        self.causal = is_causal(self.backbone)
        self._check_kind()
        self._hidden = HiddenStates(self.backbone, layers, keep=likelihood)
        self.layers = self._hidden.layers
        self.max_length = self._room(max_length)
        self.separator = default_separator(tokenizer, separator)
        self.tokens = TokenLayout(tokenizer, self.separator)
        window = min((w for name in WINDOWS if (w := getattr(self.config, name, None))), default=0)
        self.shares_rows = (
            self.layout == "chain"
            and (not window or window >= self.max_length)
            and _shares_rows(self.backbone)
        )
        self.width: int = (
            len(self.layers) * len(self.pooling) * self.config.hidden_size + 2 * likelihood
        )
        self.cache: FeatureCache | None = None
        if cache is not None:
            made_by = {**self.settings, "source": self.fingerprint}
            self.cache = FeatureCache(cache, made_by)
        self._model.to(self.device)
        say_if_slow(DTYPES[dtype], self.device.type, "dtype=float32")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that features depend on, by name, as JSON has them."""
        names = ("layers", "pooling", "likelihood", "layout", "separator", "max_length", "dtype")
        values = {name: getattr(self, name) for name in names}
        place = Path(self.source)
        source = place.absolute() if place.exists() else self.source
        return {"source": str(source), **json.loads(json.dumps(values))}

    @cached_property
    def fingerprint(self) -> str:
        """See `metaopt.nn.feature_cache.fingerprint`; of the layers that are read."""
        return fingerprint(self._model, self.tokens.tokenizer)

    @cached_property
    def content_hash(self) -> str:
        """See `metaopt.nn.feature_cache.content_hash`; of the layers that are read."""
        return content_hash(self._model, self.tokens.tokenizer)

    def _room(self, max_length: int | None) -> int:
        room = positions(self.backbone)
        room = room or getattr(self.config, "max_position_embeddings", None) or LONGEST
        if max_length is None:
            return min(room, LONGEST)
        if not 2 <= max_length <= room:
            raise ValueError(
                f"max_length={max_length} must be 2 to {room}, the tokens that {self.source} has "
                f"room for, or null."
            )
        return max_length

    def _check_kind(self) -> None:
        if self.layout == "chain" and not self.causal:
            raise ValueError(
                f"layout=chain needs a causal model: {type(self.backbone).__name__} of "
                f"{self.source} is an encoder, which sees the steps after the one it reads. Take "
                f"layout=prefix."
            )
        if not self.likelihood:
            return
        scaled = [k for k in SCALED if getattr(self.config, k, None) not in (None, 1.0)]
        if not self.causal or scaled:
            why = f"scales its logits ({scaled[0]})" if scaled else "is an encoder"
            raise ValueError(f"likelihood=true: {self.source} {why}; take likelihood=false.")

    def __call__(self, chains: Sequence[Chain]) -> list[Tensor]:
        """Return the features of each chain, (steps, width).

        Raises:
            ValueError: no chain, one without steps or with images, or a step without tokens.
        """
        check_steps(chains)
        refuse("a frozen reader", (bool(chain.images) for chain in chains), "text alone")
        items = [(chain.prompt, *chain.steps) for chain in chains]
        # Answers to one question next to each other, so that they share a row.
        order = sorted(range(len(items)), key=lambda i: items[i][0])
        ordered = [items[i] for i in order]
        if self.cache:
            rows = self.cache(ordered, self._features)
        else:
            rows = [self._rounded(features) for features in self._features(ordered)]
        features: list[Tensor] = [torch.empty(0)] * len(items)
        for i, row in zip(order, rows, strict=True):
            features[i] = row
        return features

    def _rounded(self, features: Tensor) -> Tensor:
        """Return features as a cache gives them back: the cache must not change a result."""
        return features if self.dtype == "float64" else features.half().float()

    @torch.no_grad()
    def _features(self, items: Sequence[Sequence[str]]) -> list[Tensor]:
        rows, spans = self._rows(items)
        by_row: list[list[Span]] = [[] for _ in rows]
        for span in spans:
            by_row[span.row].append(span)
        by_step: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        for indices in _batches([len(row) for row in rows], self.batch):
            chosen = [span for i in indices for span in by_row[i]]
            read = self._read([rows[i] for i in indices], indices, chosen)
            values = zip(read.states, read.log_p, read.count, strict=True)
            by_step |= {(x.item, x.step): value for x, value in zip(chosen, values, strict=True)}
        features = []
        for i, (_, *steps) in enumerate(items):
            parts = [by_step[i, s] for s in range(len(steps))]
            states, log_p, count = (torch.stack(x) for x in zip(*parts, strict=True))
            if self.likelihood:
                means = torch.stack([log_p / count, log_p.cumsum(0) / count.cumsum(0)], 1)
                states = torch.cat([states, means.to(states.dtype)], 1)
            features.append(states)
        return features

    def _rows(self, items: Sequence[Sequence[str]]) -> tuple[list[Row], list[Span]]:
        """Return what is read of chains, and where in it each step is."""
        chain = self.layout == "chain"
        return step_rows(items, self.tokens, self.max_length, chain, self.shares_rows, LONGEST)

    def _read(self, rows: Sequence[Row], indices: Sequence[int], spans: Sequence[Span]) -> _Read:
        batch = pack(rows, self.tokens.pad)
        states, last = self._states(batch)
        place = {row: i for i, row in enumerate(indices)}
        where = torch.tensor([place[span.row] for span in spans])
        first = torch.tensor([span.first for span in spans])
        end = torch.tensor([span.end for span in spans])
        tokens = torch.arange(batch.ids.shape[1])
        inside = (tokens >= first[:, None]) & (tokens < end[:, None])  # (spans, T)
        count = inside.sum(1)
        pooled = []
        for state in states:
            if "end" in self.pooling:
                pooled.append(state[where, end - 1])
            if "mean" in self.pooling:
                means = [state[i, a:b].mean(0) for i, a, b in zip(where, first, end, strict=True)]
                pooled.append(torch.stack(means))
        empty = last.new_zeros(len(spans), 0)
        log_p = last.new_zeros(len(spans), dtype=torch.float32)
        if self.likelihood:
            row, token = inside.nonzero(as_tuple=True)
            before = last[where[row], batch.previous[where[row], token]]
            target = batch.ids[where[row], token].to(before.device)
            scores = self._log_p(before, target)
            log_p = log_p.to(scores.dtype).index_add_(0, row.to(scores.device), scores)
        features = torch.cat(pooled, 1) if pooled else empty
        return _Read(features.cpu(), log_p.cpu(), count)

    def _states(self, batch: Packed) -> tuple[list[Tensor], Tensor]:
        """Return the states (B, T, width) of the layers that are read, and the last ones."""
        ids = batch.ids.to(self.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.shares_rows:
            inputs |= _shared_rows(batch, DTYPES[self.dtype], self.device)
        elif not self.causal:
            inputs["attention_mask"] = batch.real.long().to(self.device)
        if self.causal:
            inputs["use_cache"] = False
        return self._hidden(inputs)

    def _log_p(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each target, whose logits are large, in parts."""
        parts = [
            -cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), some,
                           reduction="none")
            for block, some in zip(states.split(512), targets.split(512), strict=True)
            for logits in [self.head(block)]
        ]  # fmt: skip
        return torch.cat(parts)


def _shared_rows(batch: Packed, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return positions and the 4-D mask that transformers adds to attention as it is."""
    hidden = torch.zeros(batch.visible.shape, dtype=dtype)
    hidden.masked_fill_(~batch.visible, torch.finfo(dtype).min)
    return {
        "position_ids": batch.positions.to(device),
        "attention_mask": hidden[:, None].to(device),
    }


@torch.no_grad()
def _shares_rows(backbone: Any) -> bool:
    """Ask the model itself: do two answers in one row read as they do in rows of their own?"""
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return False
    row = Row([1, 2, 1], [[2, 2], [1, 1]])
    batch = pack([row], 0)
    inputs = _shared_rows(batch, backbone.dtype, torch.device("cpu"))
    together = backbone(input_ids=batch.ids, **inputs).last_hidden_state[0, 3:]
    ids = torch.tensor([row.stem + branch for branch in row.branches])
    apart = backbone(input_ids=ids).last_hidden_state[:, 3:].flatten(0, 1)
    scale = float(apart.abs().max())
    return bool((together - apart).abs().max() <= 1e-2 * scale)


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length that hold at most so many tokens, or one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
