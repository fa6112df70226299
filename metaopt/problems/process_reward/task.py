"""A process reward model as a task of `DomainReweighting`: step labels below, outcomes above."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf
from pathlib import Path

import torch
from torch import Generator, Tensor

from metaopt.data.origin import origin
from metaopt.data.weights_file import Example, content_hash
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.metrics.best_of_n import best_of_n, majority_vote, pass_at_n
from metaopt.metrics.binary import auroc, expected_calibration_error
from metaopt.nn.model_card import ModelCard
from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.chain import refuse
from metaopt.problems.process_reward.model.aggregation import (
    AGGREGATES,
    LOSSES,
    aggregate,
    outcome_loss,
    step_loss,
)
from metaopt.problems.process_reward.model.steps import ScorerFactory, Steps, scores
from metaopt.problems.process_reward.report import compare

MODEL = "process_reward_model"
"""Folder of a run with the trained model."""

SYSTEM = "always the same system"
"""Name of the baseline that takes the answer of the system which is best on the meta-set."""

PROBES = 8
"""Training chains whose scores are compared after the model is read back."""


class ProcessSupervision:
    """Training examples are chains with step labels, meta examples chains with an outcome.

    l_i = mean over labelled steps of (sigma(z) - p)^2;   m_j = (sigma(A(z)) - r)^2,
    z the log-odds of the steps, p their labels, A an aggregate over the chain, r its outcome.

    Args:
        data: chains, meta-set, test questions; see `ProcessData`.
        scorer: makes the process reward model from the training chains.
        row_loss: mse or bce, of steps.
        meta_loss: mse or bce, of outcomes.
        aggregation: how the meta-loss sums up a chain: mean, sum, last, min or product.
        ranking: how candidates are ranked, likewise.
        evaluation_batch: chains scored at a time, >= 1.
        save_model: write the trained model at the run's end; see
            `metaopt.problems.process_reward.model.export`.
        device: where chains and parameters live.

    Attributes:
        domains, domain, meta_rows, quality, resplit: see `ReweightingTask`.
        meta_kinds: outcomes of the meta-set, in whose shares meta batches are drawn.
        correct: which candidates are right, (Q, C).
        examples, hashed_columns: see `Identified` there; where all training chains come from rows
            of files. The columns are those of TRL's stepwise type.

    A scorer's max_length may cut chains: a warning counts them, steps that were cut off are neither
    trained on nor scored, and a first wrong step among them counts as not found.

    Raises:
        ValueError: names the argument and what is legal; training chains whose labels were all cut
            off, with their count.

    Reference: Cao et al., DreamPRM, NeurIPS 2025.
    """

    def __init__(
        self,
        data: ProcessData,
        scorer: ScorerFactory,
        row_loss: str = "mse",
        meta_loss: str = "mse",
        aggregation: str = "mean",
        ranking: str = "mean",
        evaluation_batch: int = 256,
        save_model: bool = True,
        device: str = "cpu",
    ) -> None:
        self.data, self.device = data, torch.device(device)
        self.row_loss, self.meta_loss = row_loss, meta_loss
        self.aggregation, self.ranking = aggregation, ranking
        self.evaluation_batch, self.save_model = evaluation_batch, save_model
        check_choices(self, row_loss=LOSSES, meta_loss=LOSSES)
        check_choices(self, aggregation=AGGREGATES, ranking=AGGREGATES)
        check_ranges(self, "evaluation_batch >= 1")
        if all(chain.row for chain in data.train):
            self.hashed_columns = ("prompt", "completions", "labels")
            self.examples = [_example(chain) for chain in data.train]
        self.scorer = scorer(data.train)
        self.compute_dtype: torch.dtype | None = getattr(self.scorer, "compute_dtype", None)
        self.domains = data.domains
        index = {name: k for k, name in enumerate(self.domains)}
        self.domain = torch.tensor([index[chain.domain] for chain in data.train])
        self.meta_rows, self.resplit = len(data.meta), data.resplit
        self.quality: Tensor | None = None
        if data.quality is not None:
            self.quality = torch.tensor([data.quality[name] for name in self.domains])
        self._train = self._encode("train", data.train)
        self._labels, known = self._labelled(data.train, self._train)
        self._known = known & self._train.mask
        refuse(
            "train", (~self._known.any(1)).tolist(), "labelled step within the scorer's max_length",
            "Raise it, or leave them out.",
        )  # fmt: skip
        if data.meta:
            self._meta = self._encode("meta", data.meta)
        self.meta_kinds = torch.tensor([int(bool(chain.outcome)) for chain in data.meta])
        self._outcome = self.meta_kinds.float().to(device)
        self.correct = torch.tensor([[bool(c.outcome) for c in row] for row in data.candidates])

    def _encode(self, part: str, chains: Sequence[Chain]) -> Steps:
        steps = self.scorer.encode(chains)
        cut = int((steps.cut > 0).sum())
        if cut:
            warnings.warn(
                f"{part}: {cut} of {len(chains)} chains are longer than the scorer's max_length "
                f"and lose {int(steps.cut.sum())} of {sum(len(c.steps) for c in chains)} steps.",
                stacklevel=2,
            )
        return steps.to(self.device)

    def _labelled(self, chains: Sequence[Chain], steps: Steps) -> tuple[Tensor, Tensor]:
        """Return labels, 0 where unknown, and which are known, (n, S) each, cut steps too."""
        width = steps.mask.shape[1]
        rows = [(*chain.labels[:width], *(None,) * (width - len(chain.labels))) for chain in chains]
        labels = torch.tensor([[0.0 if x is None else x for x in row] for row in rows])
        known = torch.tensor([[x is not None for x in row] for row in rows]).to(self.device)
        return labels.to(self.device), known

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the scorer's parameters and buffers."""
        params, buffers = self.scorer.init(generator)
        return (
            {k: v.to(self.device) for k, v in params.items()},
            {k: v.to(self.device) for k, v in buffers.items()},
        )

    def row_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each chain's labelled steps, (B,)."""
        rows = rows.to(self.device)
        logits = self.scorer.logits(tensors, self._train.take(rows), train)
        return step_loss(logits, self._labels[rows], self._known[rows], self.row_loss)

    def meta_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each chain's outcome, (B,)."""
        rows = rows.to(self.device)
        steps = self._meta.take(rows)
        score = aggregate(self.scorer.logits(tensors, steps, train), steps.mask, self.aggregation)
        return outcome_loss(score, self._outcome[rows], self.meta_loss)

    @cached_property
    def _candidates(self) -> tuple[Steps, Tensor]:
        """The different candidate chains, and which of them each candidate is, (Q, C).

        A chain that comes twice is scored once, so that its ties are exact.
        """
        positions: dict[tuple[str, ...], int] = {}
        distinct: list[Chain] = []
        index = []
        for row in self.data.candidates:
            for chain in row:
                name = (chain.prompt, *chain.steps, "", *chain.images)
                if name not in positions:
                    positions[name] = len(distinct)
                    distinct.append(chain)
                index.append(positions[name])
        return self._encode("candidates", distinct), torch.tensor(index).view(self.correct.shape)

    @torch.no_grad()
    def candidate_scores(self, tensors: Tree) -> Tensor:
        """Return the scores of all candidates of the test questions, (Q, C), as log-odds."""
        steps, index = self._candidates
        logits = scores(self.scorer, tensors, steps, self.evaluation_batch)
        return aggregate(logits, steps.mask, self.ranking).float().cpu()[index]

    @property
    def sizes(self) -> list[int]:
        """The n of best-of-n that are reported: powers of 2, and the number of candidates."""
        count = self.correct.shape[1] if self.correct.ndim == 2 else 0
        powers = [2**k for k in range(count.bit_length()) if 2**k <= count]
        return powers if not count or powers[-1] == count else [*powers, count]

    @torch.no_grad()
    def metrics(self, tensors: Tree) -> Mapping[str, float | Tensor]:
        """Return best-of-n in % and how well steps are told apart, on held-out chains.

        `best_of_<n>` for n = 1, 8 and all; for all, what needs no model: `pass_at_<n>` (one of them
        is right), where answers are known `majority_<n>` (the most frequent one is right), and
        where several systems wrote the candidates `system_<n>` (that of the system which is right
        most often in the meta-set is right: what knowing who wrote an answer is worth).
        `step_auroc`, `ece` (expected calibration error of step
        probabilities) and `first_error_f1` (harmonic mean in % of how often the first wrong step is
        found at probability 1/2, and how often a right chain is passed), each as the mean over
        held-out domains and, where there are several, for each.
        """
        metrics: dict[str, float | Tensor] = {}
        if self.sizes:
            sizes = sorted({1, min(8, self.sizes[-1]), self.sizes[-1]})
            table = best_of_n(self.candidate_scores(tensors), self.correct, sizes)
            metrics |= {
                f"best_of_{n}": 100 * x for n, x in zip(sizes, table.mean(0).tolist(), strict=True)
            }
        return metrics | self._votes | self._step_metrics(tensors)

    @cached_property
    def _votes(self) -> dict[str, float]:
        """Pass@n, the majority vote and the best system's of all n candidates, in %."""
        most, right = self.sizes[-1:], self.correct.numpy()
        if not most:
            return {}
        shares = {f"pass_at_{most[0]}": 100 * float(pass_at_n(right, most).mean())}
        if self.data.answers is not None:
            vote = majority_vote(self.data.answers, right, most)
            shares[f"majority_{most[0]}"] = 100 * float(vote.mean())
        if self._system_scores is not None:
            picked = best_of_n(self._system_scores, right, most)
            shares[f"system_{most[0]}"] = 100 * float(picked.mean())
        return shares

    @cached_property
    def _system_scores(self) -> Tensor | None:
        """How often each candidate's system is right in the meta-set, (Q, C); -inf where unknown.

        `None` where the meta-set does not tell the candidates' systems apart.
        """
        outcomes: dict[str, list[float]] = {}
        for chain in self.data.meta:
            outcomes.setdefault(chain.policy, []).append(float(bool(chain.outcome)))
        shares = {name: sum(known) / len(known) for name, known in outcomes.items() if name}
        rows = [[shares.get(chain.policy, -inf) for chain in row] for row in self.data.candidates]
        return torch.tensor(rows) if len({share for row in rows for share in row}) > 1 else None

    @cached_property
    def _held_out(self) -> dict[str, tuple[Steps, Tensor, Tensor]]:
        encoded = {}
        for name, chains in self.data.held_out.items():
            steps = self._encode(f"held_out, {name}", chains)
            encoded[name] = (steps, *self._labelled(chains, steps))
        return encoded

    def _step_metrics(self, tensors: Tree) -> dict[str, float]:
        by_domain: dict[str, dict[str, float | None]] = {}
        for name, (steps, labels, known) in self._held_out.items():
            p = scores(self.scorer, tensors, steps, self.evaluation_batch).float().sigmoid()
            read = known & steps.mask
            predicted, truth = p[read].cpu().numpy(), labels[read].cpu().numpy()
            by_domain[name] = {
                "step_auroc": auroc(predicted, truth) if len(predicted) else None,
                "ece": expected_calibration_error(predicted, truth) if len(predicted) else None,
                "first_error_f1": first_error_f1(p, labels, known, read),
            }
        metrics: dict[str, float] = {}
        for name in ("step_auroc", "ece", "first_error_f1"):
            values = {d: x for d, row in by_domain.items() if (x := row[name]) is not None}
            if values:
                metrics[name] = sum(values.values()) / len(values)
            if len(by_domain) > 1:
                metrics |= {f"{name}/{d}": x for d, x in values.items()}
        return metrics

    def deliver_models(
        self, models: Mapping[str, Tree], weights: Mapping[str, float], folder: Path
    ) -> str:
        """Write best_of_n.csv with a figure, and the reweighted model as a folder of its own.

        Returns a table of best-of-n by model, and where the model is.
        """
        parts = []
        if self.sizes:
            scores = {name: self.candidate_scores(tensors) for name, tensors in models.items()}
            if self._system_scores is not None:
                scores[SYSTEM] = self._system_scores
            parts.append(compare(scores, self.correct, self.data.answers, self.sizes, folder))
        if self.save_model:
            parts.append(self._export(models["reweighted"], weights, folder / MODEL))
        return "\n\n".join(parts)

    def _export(self, tensors: Tree, weights: Mapping[str, float], folder: Path) -> str:
        """Write the model with its card; return where it is."""
        from metaopt.problems.process_reward.model.export import EXPORTED, export

        if not isinstance(self.scorer, EXPORTED):
            return f"{type(self.scorer).__name__} has no export: the model is in the checkpoint."
        if folder.exists():  # of a run that was stopped while it wrote
            shutil.rmtree(folder)
        figures = {k: float(v) for k, v in self.metrics(tensors).items() if "/" not in k}
        if not figures:
            some = torch.arange(min(len(self.domain), self.evaluation_batch))
            loss = self.row_losses(tensors, some, train=False).mean()
            figures = {"training loss; there is no test data": loss.item()}
        lines = (f"| {name} | {value:.3f} |" for name, value in weights.items())
        made_of = origin(getattr(self.scorer, "source", None))
        card = ModelCard(
            f"{len(self.data.train)} chains with step labels of {len(self.domains)} domains, "
            f"weighted by a meta-set of {self.meta_rows} chains with outcomes; "
            f"{len(self.data.candidates)} test questions.",
            figures,
            base=made_of.base,
            licence=made_of.licence,
            notes="\n".join(["| domain | weight in training |", "|---|---|", *lines]),
        )
        difference = export(self.scorer, tensors, folder, card, self.data.train[:PROBES])
        return (
            f"process reward model: {folder}, read back: scores differ by at most "
            f"{difference:.1g}\n{_how_to_load(folder)}"
        )


def _example(chain: Chain) -> Example:
    """Return what identifies a chain: its file and row, and its content as TRL's stepwise row."""
    row = {"prompt": chain.prompt, "completions": chain.steps, "labels": chain.labels}
    return Example(f"{chain.file}:{chain.row}", content_hash(row, row), chain.file, chain.row)


def _how_to_load(folder: Path) -> str:
    """Return what reads an exported model: transformers knows some of them only."""
    config = folder / "config.json"
    if not config.is_file():
        return "read by metaopt.problems.process_reward.model.export.load; its README shows how"
    custom = "auto_map" in json.loads(config.read_text(encoding="utf-8"))
    trust = " with trust_remote_code=True, since its code is in the folder" if custom else ""
    return f"read by transformers' AutoModelForTokenClassification{trust}; its README shows how"


def first_error_f1(
    p: Tensor, labels: Tensor, known: Tensor, read: Tensor | None = None
) -> float | None:
    """Return ProcessBench's F1 in %: the harmonic mean of two accuracies; `None` without both.

    Of chains with a wrong step: how often the first step below 1/2 is the first wrong one. Of right
    chains: how often no step is below 1/2. Chains without a label count in neither.

    Args:
        p: probability that the chain is right up to and with each step, (n, S).
        labels: 1 for right, 0 for wrong, (n, S); nothing is read after the first wrong step.
        known: which steps have a label, (n, S).
        read: which of them p is of, (n, S), `None` for all; a first wrong step that was not read
            is not found.

    Reference: Zheng et al., ProcessBench, ACL 2025.
    """
    width = p.shape[-1]
    places = torch.arange(width, device=p.device)

    def first(flags: Tensor) -> Tensor:
        return torch.where(flags, places, width).amin(-1)

    true = first(known & (labels == 0))
    predicted = first((known if read is None else read) & (p < 0.5))
    wrong = true < width
    right = ~wrong & known.any(-1)
    if not bool(wrong.any()) or not bool(right.any()):
        return None
    hit = (true == predicted).double()
    a, b = float(hit[wrong].mean()), float(hit[right].mean())
    return 100 * 2 * a * b / (a + b) if a + b else 0.0
