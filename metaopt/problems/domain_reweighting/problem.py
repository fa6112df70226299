"""Domains of unequal quality: the weight of each is learned from a meta-loss (DreamPRM)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState, InnerTensors
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import Draw, fold, generator
from metaopt.problems.domain_reweighting.batches import Rows, Sampler, Sampling
from metaopt.problems.domain_reweighting.diagnostics import (
    alignments,
    perplexity,
    random_weights,
    update_moments_,
    zero_moments,
)
from metaopt.problems.domain_reweighting.export import learned_weights
from metaopt.problems.domain_reweighting.options import (
    Initial,
    Objective,
    Reference,
    Retraining,
    Trained,
    check_options,
)
from metaopt.problems.domain_reweighting.phases import (
    filter_weights,
    fit,
    reference_losses,
)
from metaopt.problems.domain_reweighting.population import (
    first_ages,
    population,
    refresh_,
)
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.rating import rank_correlations
from metaopt.problems.domain_reweighting.report import WeightReport
from metaopt.problems.domain_reweighting.retraining import retrained, savings, uniform
from metaopt.problems.domain_reweighting.task import Autocast, ReweightingTask
from metaopt.problems.domain_reweighting.weight_summary import weight_summary
from metaopt.problems.domain_reweighting.weights import Weights, WeightTable


class DomainReweighting(GradientProblem):
    """A model theta learns from K domains, weighted by phi; meta examples say how well.

    g(phi, theta) = mean_b w_b(phi) l_b(theta),  w of mean 1;
    F(phi, theta) = mean_b m_b(theta)                                      (objective=meta).

    phi (`outer`) holds the weights (see `weights`), theta (`inner`) the model's parameters,
    kept from step to step. g is linear in w, so that the hypergradient of a domain's weight is
    -<dF/dtheta, dl_k/dtheta>: what `FiniteDifference` measures by two forward passes.

    The problem's own state holds `moments` of the hypergradient, `weights`, the sum of the table of
    weights over outer steps, `reference`, the losses under the reference model, and at the end
    `uniform`, the model trained with uniform weights. With `refresh` it holds `born`, the inner
    step at which each model of the population was initialised; with `follow`, `curve` and
    `uniform_curve`.

    Args:
        task: examples, domains and losses; see `ReweightingTask`.
        inner_optimizer: how the model is stepped.
        weights: phi and what examples count under it.
        objective: meta; worst_domain, F = -mean w_b l_b, the ascent of group DRO; or excess,
            F = -mean w_b max(l_b - l_b(reference), 0), that of DoReMi, whose reference was trained
            with uniform weights. The last two have no meta examples and want estimator=direct.
        sampling: domains (each equally often) or rows (each row equally often: uniform weights
            are then proportional to size).
        train_on: domains; or meta, the model that knows the meta examples alone (a baseline).
        initial: the weights to start from. uniform; oracle, proportional to the task's `quality`;
            random, of a given `effective_domains`; filter, 1 / `keep` for the share `keep` with the
            least loss under a reference model, and 0 for other examples.
        effective_domains: perplexity of random weights, in [1, K]; `None` for the oracle's.
        keep: share of examples that the filter keeps, in (0, 1].
        reference: what the filter's reference model is trained on: the meta examples, or the
            training examples with uniform weights, as that of objective=excess always is.
        reference_steps: steps of the reference of objective=excess and initial=filter, >= 1.
        batch, meta_batch: examples in a batch, each >= 1; see the trap.
        retrain: at the end, train a new model with the final weights of phi, or with the average
            over the run's outer steps, frozen, or with equal weights on the share `export_keep` of
            examples with the largest ones (top); or `None`.
        retrain_steps: of the retraining and of `compare_uniform`, >= 1; `None` for as many as the
            run has taken.
        export_keep: share of examples that retrain=top keeps, and weights.parquet marks, in (0, 1].
        follow: metric of the task, smaller is better, that is measured along the retraining and the
            uniform training, which both take; or `None`.
        refresh: inner steps after which a model of the task's population is initialised again, at
            staggered ages, where an outer step ends; 0 for never.
        finetune: steps on meta examples at the end, >= 0.
        compare_uniform: train a model with uniform weights at the end, for the same number of
            steps, and report it as well.
        seed: of the random weights and of the reference.
        device: where the weights live; the task's tensors must be there, too.

    Trap: at batches of one example the hypergradient is noise. A meta batch of 64 carries a signal
    in a single step, one of 1 does not in a hundred; see z in `metrics`.

    References: Cao et al., DreamPRM, NeurIPS 2025; Sagawa et al., group DRO, ICLR 2020; Xie et
    al., DoReMi, NeurIPS 2023; Fan et al., DoGE, ICML 2024.
    """

    inner_optimizer: InnerOptimizer

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
        reference: Reference = "meta",
        reference_steps: int = 500,
        batch: int = 96,
        meta_batch: int = 64,
        retrain: Retraining | None = None,
        retrain_steps: int | None = None,
        export_keep: float = 1.0,
        follow: str | None = None,
        refresh: int = 0,
        finetune: int = 0,
        compare_uniform: bool = False,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.task, self.inner_optimizer, self.resplit = task, inner_optimizer, task.resplit
        self.weights: Weights = WeightTable() if weights is None else weights
        self.objective, self.sampling, self.train_on = objective, sampling, train_on
        self.initial, self.effective_domains, self.keep = initial, effective_domains, keep
        self.reference, self.reference_steps = reference, reference_steps
        self.batch, self.meta_batch = batch, meta_batch
        self.retrain_steps, self.export_keep = retrain_steps, export_keep
        self.follow, self.refresh = follow, refresh
        self.retrain, self.finetune, self.compare_uniform = retrain, finetune, compare_uniform
        self.seed, self.device = seed, torch.device(device)
        check_options(self)
        self.compute_dtype = task.compute_dtype if isinstance(task, Autocast) else None
        self.domain = task.domain.to(self.device)
        self.sampler = Sampler(task, sampling)
        if isinstance(self.weights, Rater):
            self.weights.read(task, self.models_trained, self.device)
        self._beside: dict[str, float] = {}
        self._spent: Mapping[str, float] = {}
        self.report = WeightReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the phi of the initial weights."""
        return self.weights.init(self._start(generator), self.domain, generator)

    def _start(self, draw: Generator) -> Tensor:
        """Return the weights (n,) to start from."""
        if self.initial == "uniform":
            return torch.ones(len(self.domain), device=self.device)
        if self.initial == "filter":
            return filter_weights(self._reference_losses, self.keep)
        quality = self.task.quality
        weights = torch.ones(len(self.task.domains)) if quality is None else quality
        weights = weights.double() / weights.double().mean()
        if self.initial == "random":
            effective = self.effective_domains or float(perplexity(weights))
            weights = random_weights(len(weights), effective, draw)
        return weights.to(self.device, torch.float32)[self.domain]

    @cached_property
    def _reference_losses(self) -> Tensor:
        """The losses (n,) of all examples under the model of the filter or of the excess."""
        on_meta = self.initial == "filter" and self.reference == "meta"
        sample = self.sampler.meta if on_meta else self.sampler.even
        return reference_losses(
            InnerLoop(self), self.task, lambda k, g: sample(g, self.batch), self.reference_steps,
            fold(self.seed, "reference"),
        )  # fmt: skip

    @cached_property
    def models_trained(self) -> int | None:
        """The number R of models that the task trains; `None` where its losses have no axis."""
        return population(self.task)

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return the task's parameters."""
        return self.task.init(generator)[0]

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the task's buffers."""
        return self.task.init(generator(fold(self.seed, "buffers")))[1]

    def init_state(self, outer: Tree, params: Tree) -> dict[str, Any]:
        """Return zero moments, and what the reference says of the examples."""
        state: dict[str, Any] = {"moments": zero_moments(len(self.task.domains), self.device)}
        if isinstance(self.weights, WeightTable):
            state["weights"] = torch.zeros_like(self.weights.table(outer))
        if self.objective == "excess":
            state["reference"] = self._reference_losses.clone()
        if self.refresh:
            state["born"] = first_ages(self.models_trained or 1, self.refresh)
        return state

    def inner_batch(self, draw: Draw) -> Rows:
        """Return training examples; meta examples where those are trained on."""
        return self.training_rows(draw.generator)

    def training_rows(self, generator: Generator) -> Rows:
        """Return a batch to train on."""
        if self.train_on == "meta":
            return self.sampler.meta(generator, self.batch)
        return self.sampler.rows(generator, self.batch)

    def outer_batch(self, draw: Draw) -> Rows:
        """Return meta examples, or training examples for an objective without a meta-loss."""
        if self.objective == "meta":
            return self.sampler.meta(draw.generator, self.meta_batch)
        return self.sampler.rows(draw.generator, self.meta_batch)

    def prepare_batch(self, outer: Tree, inner: InnerTensors, batch: Rows, draw: Draw) -> Rows:
        """Return the batch; weights that read gradients are decided here, on new meta examples."""
        if self.weights.reads != "gradients" or batch.meta or batch.weights is not None:
            return batch
        meta = self.sampler.meta(draw.generator, self.meta_batch).rows
        rest = {k: v for k, v in inner.items() if k not in inner.params}
        values = self.aligned(inner.params, rest, batch.rows, meta, draw.generator.initial_seed())
        return batch._replace(weights=self.weigh(outer, batch.rows, values))

    def inner_loss(self, outer: Tree, inner: InnerTensors, batch: Rows) -> Tensor:
        """Return the weighted loss of the examples, a scalar; a sum over the task's runs."""
        if batch.meta:
            return self.task.meta_losses(inner, batch.rows).mean(-1).sum()
        losses = self.task.row_losses(inner, batch.rows)
        weights = batch.weights
        if weights is None:
            weights = self.weigh(outer, batch.rows, losses)
        return (weights.to(losses.device) * losses).mean(-1).sum()

    def outer_loss(self, outer: Tree, inner: InnerTensors, batch: Rows) -> Tensor:
        """Return the meta-objective, a scalar."""
        if self.objective == "meta":
            return self.task.meta_losses(inner, batch.rows).mean(-1).sum()
        losses = self.task.row_losses(inner, batch.rows)
        weights = self.weigh(outer, batch.rows, losses)
        if self.objective == "excess":
            losses = (losses - inner.state["reference"][batch.rows]).clamp(min=0)
        # The outer level climbs: it looks for the weights that the model is worst on.
        return -(weights * losses).mean(-1).sum()

    # What leaving out a training example is; see `metaopt.engine.example_weights.ExampleLosses`.

    @property
    def example_count(self) -> int:
        """The number n of training examples."""
        return len(self.domain)

    def examples_of(self, batch: Rows) -> Tensor:
        """Return the indices of a batch's training examples.

        Raises:
            ValueError: the model is trained on meta examples.
        """
        if batch.meta:
            raise ValueError("train_on=meta trains on no training examples; set train_on=domains.")
        return batch.rows

    def batch_of(self, examples: Tensor) -> Rows:
        """Return the batch of given training examples."""
        return Rows(examples)

    def example_losses(self, outer: Tree, inner: InnerTensors, batch: Rows) -> Tensor:
        """Return the losses of training examples, (..., B), each of weight 1 whatever phi."""
        return self.task.row_losses(inner, batch.rows)

    def learned_weights(self, outer: Tree, inner: GradientState) -> Tensor:
        """Return the weight of each training example that a run has learned, (n,)."""
        return learned_weights(self, outer, inner)

    def weigh(self, outer: Tree, rows: Tensor, values: Tensor) -> Tensor:
        """Return the weights of examples, (..., B); `values` are their losses or alignments."""
        rows = rows.to(self.device)
        return self.weights(outer, rows, self.domain[rows], values)

    def aligned(self, params: Tree, rest: Tree, rows: Tensor, meta: Tensor, key: int) -> Tensor:
        """Return <dF/dtheta, dl/dtheta> of examples."""
        return alignments(
            lambda theta: self.task.meta_losses(theta | rest, meta).mean(-1).sum(),
            lambda theta: self.task.row_losses(theta | rest, rows),
            tree.detach(params), key, self.compute_dtype,
        )  # fmt: skip

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return the state to report: retrained, fine-tuned, with a uniform model to compare."""
        self._beside = self._costs(inner.step)
        learned = inner
        if self.retrain is not None:
            inner = retrained(self, outer, learned, loop, fold(key, "retrain"))
        if self.finetune:
            moments = loop.optimizer(outer, 0).init(inner.params)
            inner = fit(
                loop, inner._replace(optimizer=moments, step=0),
                lambda k, g: self.sampler.meta(g, self.batch), self.finetune, fold(key, "finetune"),
            )  # fmt: skip
        if self.compare_uniform:
            compared = uniform(self, learned, loop, fold(key, "uniform"))
            inner = inner._replace(state=inner.state | compared)
        return inner

    def _costs(self, steps: int) -> dict[str, float]:
        """Return what a run of so many inner steps costs outside of the estimator."""
        retraining = self.retrain_steps or steps
        phases = (self.retrain is not None) + self.compare_uniform
        trained = phases * retraining + self.finetune + self._steps_of_reference
        aligned = steps if self.weights.reads == "gradients" else 0
        return {
            "inner_steps": trained, "gradients": trained + aligned, "evaluations": 2 * aligned,
        }  # fmt: skip

    @property
    def _steps_of_reference(self) -> int:
        reference = self.initial == "filter" or self.objective == "excess"
        return self.reference_steps if reference else 0

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the cost of references, of what `finish` trains, and of weights by gradients."""
        learning = spent.get("gradients", 0.0) + self._steps_of_reference
        self._spent = {**spent, "gradients": learning}
        return self._beside

    def final_phi(self, outer: Tree, inner: GradientState) -> Tree:
        """Return the phi to retrain with, which is also that of the weights to hand over."""
        count = inner.state["moments"]["count"]
        if self.retrain != "average" or not isinstance(self.weights, WeightTable) or not count:
            return outer
        return self.weights.inverse(inner.state["weights"] / count.float())

    # Observation and metrics.

    @torch.no_grad()
    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Return the state with the hypergradient by domain in its moments.

        Raises:
            ValueError: weights that left their simplex; see `WeightTable.check`.
        """
        if self.refresh:
            refresh_(self, inner)
        if isinstance(self.weights, WeightTable):
            self.weights.check(outer)
        if feedback.grad is None:
            return inner
        slopes = self.weights.slopes(feedback.grad, self.domain)
        if slopes is not None:
            update_moments_(inner.state["moments"], slopes)
        if isinstance(self.weights, WeightTable):
            inner.state["weights"] += self.weights.table(outer)
        return inner

    def models(self, inner: GradientState) -> dict[str, Tree]:
        """Return the tensors of the model, and of the uniform one where it was trained."""
        models = {"reweighted": inner.params | inner.buffers}
        return models | ({"uniform": inner.state["uniform"]} if "uniform" in inner.state else {})

    @torch.no_grad()
    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, float | Tensor]:
        """Return the task's metrics, the weights, and the hypergradients' mean and z by domain.

        Names: the task's own; `uniform/<name>` for the uniform model; `weight/<domain>`,
        `hypergradient/<domain>`, `z/<domain>`; `effective_share`, the effective sample size as a
        share of the examples.
        """
        metrics: dict[str, float | Tensor] = {}
        for name, tensors in self.models(inner).items():
            prefix = "" if name == "reweighted" else f"{name}/"
            metrics |= {f"{prefix}{k}": v for k, v in self.task.metrics(tensors).items()}
        summary = weight_summary(self, outer, inner)
        for name in ("weight", "hypergradient", "z"):
            if name in summary:
                metrics |= {
                    f"{name}/{domain}": float(value)
                    for domain, value in zip(self.task.domains, summary[name], strict=True)
                }
        metrics |= rank_correlations(self, outer) | savings(self, inner, self._spent)
        return metrics | {"effective_share": float(summary["effective_share"])}
