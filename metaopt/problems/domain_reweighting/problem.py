"""Domains of unequal quality: the weight of each is learned from a meta-loss (DreamPRM)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Generator, Tensor

from metaopt.engine.inner import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold, generator
from metaopt.problems.domain_reweighting.batches import Rows, Sampler, Sampling
from metaopt.problems.domain_reweighting.diagnostics import (
    alignments,
    perplexity,
    random_weights,
    seen_,
    signal,
    unseen,
)
from metaopt.problems.domain_reweighting.options import (
    Initial,
    Objective,
    Retraining,
    Trained,
    check_options,
)
from metaopt.problems.domain_reweighting.phases import (
    OWN,
    fit,
    kept,
    model,
    part,
    reference_losses,
    untrained,
)
from metaopt.problems.domain_reweighting.report import WeightReport
from metaopt.problems.domain_reweighting.task import Autocast, ReweightingTask
from metaopt.problems.domain_reweighting.weights import Regulariser, Weights, WeightTable, by_domain


class DomainReweighting(GradientProblem):
    """A model theta learns from K domains, each row weighted by phi; meta rows say how well.

    g(phi, theta) = mean_b w_b(phi) l_b(theta),  w of mean 1;
    F(phi, theta) = mean_b m_b(theta) + regulariser(phi)                   (objective=meta).

    phi (`outer`) holds the weights (see `weights`), theta (`inner`) the model's parameters,
    kept from step to step. g is linear in w, so that the hypergradient of a domain's weight is
    -<dF/dtheta, dl_k/dtheta>: what `FiniteDifference` measures by two forward passes.

    Among the buffers, `observed.*` are moments of the hypergradient, `uniform.*` the parameters of
    the model trained with uniform weights, `buffer.*` the task's own, `reference` the rows' losses
    under the reference model.

    Args:
        task: rows, domains and losses; see `ReweightingTask`.
        inner_optimizer: how the model is stepped.
        weights: phi and what rows count under it.
        objective: meta; worst_domain, F = -mean w_b l_b, the ascent of group DRO; or excess,
            F = -mean w_b max(l_b - l_b(reference), 0), that of DoReMi, whose reference was trained
            with uniform weights. The last two have no meta rows and want estimator=direct.
        sampling: domains (each equally often) or rows (each row equally often: uniform weights
            are then proportional to size).
        train_on: domains; or meta, the model that knows the meta rows alone (a baseline).
        initial: the weights to start from. uniform; oracle, proportional to the task's `quality`;
            random, of a given `effective_domains`; filter, 1 / `keep` for the share `keep` of rows
            with the least loss under a model trained on the meta rows, and 0 for the others.
        effective_domains: perplexity of random weights, in [1, K]; `None` for the oracle's.
        keep: share of rows that the filter keeps, in (0, 1].
        reference_steps: steps of the reference of objective=excess and initial=filter, >= 1.
        regulariser: a term of F in phi, or `None`.
        batch, meta_batch: rows in a batch, each >= 1; see the trap.
        retrain: at the end, train a new model with the final weights of phi, or with the average
            over the run's outer steps, frozen, for as many steps; or `None`.
        finetune: steps on meta rows at the end, >= 0.
        compare_uniform: train a model with uniform weights at the end, for the same number of
            steps, and report it beside.
        seed: of the random weights and of the reference.
        device: where the weights live; the task's tensors must be there, too.

    Trap: at batches of one row the hypergradient is noise. A meta batch of 64 carries a signal in
    a single step, one of 1 does not in a hundred; see z in `metrics`.

    References: Cao et al., DreamPRM, NeurIPS 2025; Sagawa et al., group DRO, ICLR 2020; Xie et
    al., DoReMi, NeurIPS 2023; Fan et al., DoGE, ICML 2024.
    """

    def __init__(
        self,
        task: ReweightingTask,
        inner_optimizer: InnerOptimizer,
        weights: Weights | None = None,
        objective: Objective = "meta",
        sampling: Sampling = "domains",
        train_on: Trained = "domains",
        initial: Initial = "uniform",
        effective_domains: float | None = None,
        keep: float = 0.5,
        reference_steps: int = 500,
        regulariser: Regulariser | None = None,
        batch: int = 96,
        meta_batch: int = 64,
        retrain: Retraining | None = None,
        finetune: int = 0,
        compare_uniform: bool = False,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.task, self.inner_optimizer = task, inner_optimizer
        self.weights: Weights = WeightTable() if weights is None else weights
        self.objective, self.sampling, self.train_on = objective, sampling, train_on
        self.initial, self.effective_domains, self.keep = initial, effective_domains, keep
        self.reference_steps, self.regulariser = reference_steps, regulariser
        self.batch, self.meta_batch = batch, meta_batch
        self.retrain, self.finetune, self.compare_uniform = retrain, finetune, compare_uniform
        self.seed, self.device = seed, torch.device(device)
        check_options(self)
        self.compute_dtype = task.compute_dtype if isinstance(task, Autocast) else None
        self.domain = task.domain.to(self.device)
        self.sampler = Sampler(task, sampling)
        self._beside: dict[str, float] = {}
        self.report = WeightReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the phi of the initial weights."""
        return self.weights.init(self._start(generator), self.domain, generator)

    def _start(self, draw: Generator) -> Tensor:
        """Return the weights (n,) to start from."""
        if self.initial == "uniform":
            return torch.ones(len(self.domain), device=self.device)
        if self.initial == "filter":
            return kept(self._reference_losses, self.keep)
        quality = self.task.quality
        found = torch.ones(len(self.task.domains)) if quality is None else quality
        found = found.double() / found.double().mean()
        if self.initial == "random":
            wanted = self.effective_domains or float(perplexity(found))
            found = random_weights(len(found), wanted, draw)
        return found.to(self.device, torch.float32)[self.domain]

    @cached_property
    def _reference_losses(self) -> Tensor:
        """The losses (n,) of all rows under the model of the filter or of the excess."""
        draw = self.sampler.meta if self.initial == "filter" else self.sampler.even
        key = fold(self.seed, "reference")
        return reference_losses(
            self, self.task, lambda g: draw(g, self.batch), self.reference_steps, key
        )

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the task's parameters.

        Raises:
            ValueError: a name that is reserved for buffers.
        """
        params, _ = self.task.init(generator)
        taken = [name for name in params if name.startswith(OWN)]
        if taken:
            raise ValueError(f"parameters may not be called {', '.join(taken)}: the name is taken.")
        return params

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the task's buffers, empty moments, and what the reference says of the rows."""
        _, own = self.task.init(generator(fold(self.seed, "buffers")))
        buffers = {f"buffer.{k}": v for k, v in own.items()}
        moments = unseen(len(self.task.domains), self.device)
        buffers |= {f"observed.{k}": v for k, v in moments.items()}
        if isinstance(self.weights, WeightTable):
            buffers["observed.weights"] = torch.zeros_like(self.weights.table(outer))
        if self.objective == "excess":
            buffers["reference"] = self._reference_losses.clone()
        return buffers

    def inner_batch(self, generator: Generator) -> Rows:
        """Return training rows; meta rows where those are trained on."""
        if self.train_on == "meta":
            return self.sampler.meta(generator, self.batch)
        return self.sampler.rows(generator, self.batch)

    def outer_batch(self, generator: Generator) -> Rows:
        """Return meta rows, or training rows for an objective without a meta-loss."""
        if self.objective == "meta":
            return self.sampler.meta(generator, self.meta_batch)
        return self.sampler.rows(generator, self.meta_batch)

    def decide(self, outer: Tree, inner: Tree, batch: Rows, generator: Generator) -> Rows:
        """Return the batch; weights that read gradients are decided here, on new meta rows."""
        if self.weights.reads != "gradients" or batch.meta or batch.weights is not None:
            return batch
        meta = self.sampler.meta(generator, self.meta_batch).rows
        found = self._aligned(inner, batch.rows, meta, generator.initial_seed())
        return batch._replace(weights=self._weigh(outer, batch.rows, found))

    def inner_loss(self, outer: Tree, inner: Tree, batch: Rows) -> Tensor:
        """Return the weighted loss of the rows, a scalar; a sum over the task's runs."""
        tensors = model(inner)
        if batch.meta:
            return self.task.meta_losses(tensors, batch.rows).mean(-1).sum()
        losses = self.task.row_losses(tensors, batch.rows)
        weights = batch.weights
        if weights is None:
            weights = self._weigh(outer, batch.rows, losses)
        return (weights.to(losses.device) * losses).mean(-1).sum()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Rows) -> Tensor:
        """Return the meta-objective, a scalar."""
        tensors = model(inner)
        if self.objective == "meta":
            loss = self.task.meta_losses(tensors, batch.rows).mean(-1).sum()
        else:
            losses = self.task.row_losses(tensors, batch.rows)
            weights = self._weigh(outer, batch.rows, losses)
            if self.objective == "excess":
                losses = (losses - inner["reference"][batch.rows]).clamp(min=0)
            # The outer level climbs: it looks for the weights that the model is worst on.
            loss = -(weights * losses).mean(-1).sum()
        if self.regulariser is not None and isinstance(self.weights, WeightTable):
            loss = loss + self.regulariser(self.weights.table(outer))
        return loss

    def _weigh(self, outer: Tree, rows: Tensor, values: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return self.weights(outer, rows, self.domain[rows], values)

    def _aligned(self, inner: Tree, rows: Tensor, meta: Tensor, key: int) -> Tensor:
        """Return <dF/dtheta, dl/dtheta> of rows."""
        params = {k: v.detach() for k, v in inner.items() if not k.startswith(OWN)}
        rest = {k: v for k, v in inner.items() if k not in params}
        return alignments(
            lambda theta: self.task.meta_losses(model(theta | rest), meta).mean(-1).sum(),
            lambda theta: self.task.row_losses(model(theta | rest), rows),
            params, key, self.compute_dtype,
        )  # fmt: skip

    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the state to report: retrained, fine-tuned, with a uniform model beside it."""
        steps = inner.step
        self._beside = self._costs(steps)
        if self.retrain is not None:
            anew = fold(key, "retrain")
            state = untrained(self, self.task, anew)
            state = fit(self, state, self.inner_batch, steps, anew, self._frozen(outer, inner))
            inner = state._replace(buffers=inner.buffers | state.buffers)
        if self.finetune:
            afresh = self.inner_optimizer.init(inner.params)
            inner = fit(
                self, inner._replace(optimizer=afresh, step=0),
                lambda g: self.sampler.meta(g, self.batch), self.finetune, fold(key, "finetune"),
            )  # fmt: skip
        if self.compare_uniform:
            key = fold(key, "uniform")
            state = untrained(self, self.task, key)
            state = fit(self, state, lambda g: self.sampler.even(g, self.batch), steps, key)
            beside = model(state.params | state.buffers)
            inner = inner._replace(
                buffers=inner.buffers | {f"uniform.{k}": v for k, v in beside.items()}
            )
        return inner

    def _costs(self, steps: int) -> dict[str, float]:
        """Return what a run of so many inner steps costs outside of the estimator."""
        phases = (self.retrain is not None) + self.compare_uniform
        reference = self.initial == "filter" or self.objective == "excess"
        trained = phases * steps + self.finetune + (self.reference_steps if reference else 0)
        aligned = steps if self.weights.reads == "gradients" else 0
        return {
            "inner_steps": trained, "gradients": trained + aligned, "evaluations": 2 * aligned,
        }  # fmt: skip

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the cost of references, of what `finish` trains, and of weights by gradients."""
        return self._beside

    def _frozen(self, outer: Tree, inner: GradientState) -> Tree:
        """Return the phi to retrain with."""
        count = inner.buffers["observed.count"]
        if self.retrain == "final" or not isinstance(self.weights, WeightTable) or not count:
            return outer
        return self.weights.inverse(inner.buffers["observed.weights"] / count.float())

    # What is seen of it.

    @torch.no_grad()
    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Return the state with the hypergradient by domain in its moments.

        Raises:
            ValueError: weights that left their simplex; see `WeightTable.check`.
        """
        if isinstance(self.weights, WeightTable):
            self.weights.check(outer)
        if feedback.grad is None:
            return inner
        slopes = self.weights.slopes(feedback.grad, self.domain)
        if slopes is not None:
            seen_(part(inner.buffers, "observed."), slopes)
        if isinstance(self.weights, WeightTable):
            inner.buffers["observed.weights"] += self.weights.table(outer)
        return inner

    def models(self, inner: GradientState) -> dict[str, Tree]:
        """Return the tensors of the model, and of the uniform one where it was trained."""
        found = {"reweighted": model(inner.params | inner.buffers)}
        uniform = part(inner.buffers, "uniform.")
        return found | ({"uniform": uniform} if uniform else {})

    @torch.no_grad()
    def domain_weights(self, outer: Tree, inner: GradientState) -> tuple[Tensor, Tensor]:
        """Return the mean weight of each domain, (K,), and the effective share of the rows.

        Of weights that depend on losses or gradients: over the same few rows of each domain.
        """
        rows, values = self.sampler.order, torch.zeros(0, device=self.device)
        if self.weights.reads != "phi":
            rows = self.sampler.audited()
        tensors = inner.params | inner.buffers
        if self.weights.reads == "losses":
            values = self.task.row_losses(model(tensors), rows, train=False)
        elif self.weights.reads == "gradients":
            meta = torch.arange(min(self.task.meta_rows, 256))
            values = self._aligned(tensors, rows, meta, self.seed)
        weights = self._weigh(outer, rows, values)
        weights = weights.flatten(0, -2).mean(0) if weights.ndim > 1 else weights
        domain = self.domain[rows.to(self.device)]
        first, second = by_domain(weights, domain), by_domain(weights**2, domain)
        share = self.sampler.share.to(first)
        return first, (share @ first) ** 2 / (share @ second).clamp(min=1e-30)

    @torch.no_grad()
    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float | Tensor]:
        """Return the task's metrics, the weights, and the hypergradients' mean and z by domain.

        Names: the task's own; `uniform/<name>` for the uniform model; `weight/<domain>`,
        `hypergradient/<domain>`, `z/<domain>`; `effective_share`, the effective sample size as a
        share of the rows.
        """
        found: dict[str, float | Tensor] = {}
        for name, tensors in self.models(inner).items():
            prefix = "" if name == "reweighted" else f"{name}/"
            found |= {f"{prefix}{k}": v for k, v in self.task.metrics(tensors).items()}
        summary = self.weight_summary(outer, inner)
        for name in ("weight", "hypergradient", "z"):
            if name in summary:
                found |= {
                    f"{name}/{domain}": float(value)
                    for domain, value in zip(self.task.domains, summary[name], strict=True)
                }
        return found | {"effective_share": float(summary["effective_share"])}

    @torch.no_grad()
    def weight_summary(self, outer: Tree, inner: GradientState) -> dict[str, Tensor]:
        """Return weights and hypergradients by domain, and the effective share of the rows.

        The hypergradients' mean and z, (K,) each, are there once one was not zero.
        """
        weight, share = self.domain_weights(outer, inner)
        summary = {"weight": weight.cpu(), "effective_share": share.cpu()}
        moments = part(inner.buffers, "observed.")
        if moments["squares"].any():
            mean, z = signal(moments)
            summary |= {"hypergradient": mean.cpu(), "z": z.cpu()}
        return summary
