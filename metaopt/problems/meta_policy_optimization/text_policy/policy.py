"""A policy that is a causal language model, trained by GRPO under the judge of a rubric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import AdamW, InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import epoch_batch, fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM
from metaopt.nn.transformers_model import TransformersModel
from metaopt.problems.meta_policy_optimization.policy import Reward, State
from metaopt.problems.meta_policy_optimization.text_policy.grpo import (
    GRPO,
    Advantages,
    Tokens,
    group_advantages,
    surrogate,
)
from metaopt.problems.meta_policy_optimization.text_policy.responses import Responder, Responses
from metaopt.problems.meta_policy_optimization.text_policy.teaching import teach_
from metaopt.problems.meta_policy_optimization.text_policy.telltales import nats, telltales
from metaopt.problems.meta_policy_optimization.text_policy.worlds import Measurable, Taught, World


class TextPolicy:
    """A causal language model, by group relative policy optimisation (GRPO).

        A_i = r_i - mean(r), or (r_i - mean(r)) / (sd(r) + 1e-4), within the G responses to a query
        loss = - mean min(rho A, clip(rho, 1 - c, 1 + c) A) + beta mean (exp(d) - 1 - d)

    with rho = pi / pi_old and d = log pi_0 - log pi of each token, means over tokens. A response
    whose judge states no score leaves its group; a group with fewer than two scores, or with equal
    ones, gives no gradient (`inner/flat_groups`), and an update without any other takes no step.

    What is trained, the optimizer's moments and the first weights are the policy's state, and are
    in every checkpoint; frozen weights are held once, and their hash is. An update is the same, to
    the bit, for the same state and key.

    Args:
        world: queries with the first rubric, such as `NoticeWorld` or `PromptFile`.
        model: makes the model from its kind and the world's words, as
            `functools.partial(TransformersModel, source=...)`; adapters by its `lora`.
        group_size: responses G to a query, >= 2.
        queries_per_update: queries of an update, >= 1; every query once before any comes again.
        max_tokens: longest response.
        temperature: of the responses, > 0.
        grpo: c, beta and what else the loss and its steps are made by.
        inner_optimizer: of the steps.
        seed: of the order of queries.
        evaluation: fresh responses that the trained policy is measured on, drawn by the same random
            numbers whenever it is measured, >= 1.
        teaching_steps: steps of supervised learning on the world's template responses that the
            first policy is made by; 0 for a pretrained model. One of random weights writes nothing
            that has a score.
        teaching_lr: learning rate of these steps.

    Raises:
        ValueError: an argument outside its range, or steps of teaching in a world without template
            responses.

    Cost: of an update, `queries_per_update` * `group_size` responses, as many questions to the
    judge (times the items, for `YesNo`), a forward pass and `epochs` forward and backward ones.

    References: Shao et al., DeepSeekMath, arXiv 2402.03300, 2024.
    """

    def __init__(
        self,
        world: World,
        model: Callable[[str, Iterable[str]], TransformersModel],
        group_size: int = 8,
        queries_per_update: int = 1,
        max_tokens: int = 48,
        temperature: float = 1.0,
        grpo: GRPO = GRPO(),  # noqa: B008  (it is frozen)
        inner_optimizer: InnerOptimizer | None = None,
        seed: int = 0,
        evaluation: int = 64,
        teaching_steps: int = 0,
        teaching_lr: float = 1e-2,
    ) -> None:
        self.world, self.seed, self.evaluation = world, seed, evaluation
        self.teaching_steps, self.teaching_lr = teaching_steps, teaching_lr
        self.group_size, self.queries_per_update = group_size, queries_per_update
        self.max_tokens, self.temperature, self.grpo = max_tokens, temperature, grpo
        self.queries, self.rubric = world.queries, world.rubric
        self.truth = world if isinstance(world, Measurable) else None
        self.count = len(self.queries)
        check_ranges(
            self, "group_size >= 2", "1 <= queries_per_update <= count", "max_tokens >= 2",
            "temperature > 0", "evaluation >= 1", "teaching_steps >= 0", "teaching_lr > 0",
        )  # fmt: skip
        if teaching_steps and not isinstance(world, Taught):
            raise ValueError(
                f"teaching_steps={teaching_steps} needs template responses, which "
                f"{type(world).__name__} does not have. Set teaching_steps=0 and take a pretrained "
                "model (model@problem.policy.model=meta_policy_optimization/pretrained)."
            )
        self.optimizer = inner_optimizer or AdamW(lr=1e-5)
        self.model = model("causal", world.words())
        self.responder = Responder(self.model, max_tokens, temperature)

    @property
    def judged(self) -> int:
        """Responses of one update that the judge reads."""
        return self.queries_per_update * self.group_size

    def roles(self) -> Mapping[str, LM]:
        """Return the world's language models."""
        return self.world.roles()

    def check(self, roles: Mapping[str, LM]) -> None:
        """Accept any language models: responses are judged one by one."""

    def saved_judge(self) -> Mapping[str, Any] | None:
        """Return `None`: the judge is a model that is given again."""
        return None

    def init(self, key: int) -> State:
        """Return the first policy, with what its responses show."""
        weights = self._first_weights(key)
        pairs, responses = self._evaluated(weights)
        return {
            "weights": weights, "first": tree.clone(weights), "steps": 0, "updates": 0,
            "flat_groups": 0,
            "moments": self.optimizer.init(weights), "frozen": self._frozen, "last": {},
            "first_measured": {**self._qualities(pairs), **telltales(responses)},
        }  # fmt: skip

    def _first_weights(self, key: int) -> Tree:
        """Return the weights pi_0 that training starts from."""
        weights = self.model.init()
        if self.teaching_steps and isinstance(self.world, Taught):
            teach_(
                weights, self.responder, self.world, self.teaching_steps, self.teaching_lr, key
            )  # fmt: skip
        return weights

    def update(self, state: State, reward: Reward, key: int) -> State:
        """Return the policy after one update; the argument is left as it was.

        Raises:
            ValueError: the frozen weights are others than those that the state was trained on.
        """
        self._check_frozen(state)
        chosen = epoch_batch(self.count, self.queries_per_update, state["updates"], self.seed)
        groups = [int(i) for i in chosen for _ in range(self.group_size)]
        responses = self.respond(state["weights"], groups, fold(key, "responses"))
        pairs = list(zip(groups, responses.texts, strict=True))
        rewards = reward(pairs)
        known = torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64)
        advantages = group_advantages(known.reshape(-1, self.group_size), self.grpo.normalize)
        leaves = tree.leaves(state["weights"])
        tokens = self._tokens(leaves, state["first"], responses)
        updates, flat = state["updates"] + 1, state["flat_groups"] + advantages.flat_groups
        last = {
            "coverage": float(advantages.scored.float().mean()),
            "flat_groups": float(advantages.flat_groups),
            "flat_share": flat / (updates * self.queries_per_update),
            "kl": nats(tokens),
            **telltales(responses),
            **self._qualities(pairs),
        }
        if (share := reward.share(rewards)) is not None:
            last["score"] = share
        state = {**state, "updates": updates, "flat_groups": flat, "last": last}
        return self._stepped(state, leaves, responses, tokens, advantages)

    def respond(self, weights: Tree, queries: Sequence[int], key: int) -> Responses:
        """Return one response to each query, by its index."""
        return self.responder.sample(weights, [self.queries[i] for i in queries], key)

    def sample(self, state: State, count: int, key: int) -> list[tuple[int, str]]:
        """Return responses of the policy, each to a query drawn uniformly."""
        if not count:
            return []
        draw = torch.Generator().manual_seed(fold(key, "queries"))
        queries = torch.randint(self.count, (count,), generator=draw).tolist()
        return list(zip(queries, self.respond(state["weights"], queries, key).texts, strict=True))

    def last(self, state: State) -> Mapping[str, float]:
        """Return what the last update saw, before its step; nothing before the first.

        inner/coverage (share of responses with a score), inner/flat_groups, inner/flat_share (of
        the groups of all updates so far), inner/kl (in nats a response), inner/length (tokens),
        inner/distinct (different words, as a share of all) and, where there was a score,
        inner/score (mean share of the rubric's points); in a world of known truth inner/quality and
        inner/hack_rate.
        """
        return {f"inner/{name}": value for name, value in state["last"].items()}

    def first(self, state: State) -> Mapping[str, float]:
        """Return quality (as it is), hack_rate, length and distinct of the first policy."""
        return dict(state["first_measured"])

    def measure(
        self, state: State, reward: Reward, second: Reward | None = None
    ) -> dict[str, float]:
        """Return what `evaluation` fresh responses show, whether or not the truth is known.

        kl (in nats a response), length (tokens), distinct and distinct_2 (`telltales.distinct`);
        quality, less that of the first policy, and hack_rate in a world of known truth;
        second_judge; and score, of the last update's responses, since asking the judge again would
        be a charge.
        """
        pairs, responses = self._evaluated(state["weights"])
        with torch.no_grad():
            log_p, first = (
                self.responder.log_p(state[name], responses) for name in ("weights", "first")
            )
        numbers = {
            **self._qualities(pairs),
            "kl": nats(Tokens(log_p, log_p, first, responses.mask)),
            **telltales(responses),
        }
        if self.truth is not None:
            numbers["quality"] -= state["first_measured"]["quality"]
        if "score" in state["last"]:
            numbers["score"] = state["last"]["score"]
        if second is not None and (share := second.share(second(pairs))) is not None:
            numbers["second_judge"] = share
        return numbers

    def progress(self, state: State, reward: Reward) -> tuple[float, float] | None:
        """Return quality and score of the last update's responses; `None` without one."""
        last = state["last"]
        if "score" not in last or "quality" not in last:
            return None
        return last["quality"] - state["first_measured"]["quality"], last["score"]

    def loss(self, tokens: Tokens, advantages: Advantages) -> Tensor:
        """Return the loss, given the log-probabilities of responses."""
        return surrogate(tokens, advantages, self.grpo.clip, self.grpo.kl_coefficient)

    def _tokens(self, weights: Tree, first: Tree, responses: Responses) -> Tokens:
        """Return the log-probabilities of responses that `weights` have written."""
        with torch.no_grad():
            reference = self.responder.log_p(first, responses)
        # Of the same pass, and without dropout: rho is 1 in the first step.
        log_p = self.responder.log_p(weights, responses)
        return Tokens(log_p, log_p.detach(), reference, responses.mask)

    def _stepped(
        self, state: State, leaves: Tree, responses: Responses, tokens: Tokens,
        advantages: Advantages,
    ) -> State:  # fmt: skip
        if not advantages.trained.any():
            return state  # an optimizer with momentum or decay would move on no evidence
        advantages = Advantages(*(each.to(responses.ids.device) for each in advantages))
        advantages = advantages._replace(values=advantages.values.to(tokens.old.dtype))
        weights, moments = tree.clone(state["weights"]), tree.clone(state["moments"])
        for epoch in range(self.grpo.epochs):
            if epoch:
                leaves = tree.leaves(weights)
                tokens = tokens._replace(log_p=self.responder.log_p(leaves, responses))
            (grads,) = tree.gradient(self.loss(tokens, advantages), leaves)
            self.optimizer.update_(weights, grads, moments, state["steps"] + epoch)
        steps = state["steps"] + self.grpo.epochs
        return {**state, "weights": weights, "moments": moments, "steps": steps}

    def _evaluated(self, weights: Tree) -> tuple[list[tuple[int, str]], Responses]:
        # In order, as a run of equal prompts is read once.
        queries = sorted(i % self.count for i in range(self.evaluation))
        responses = self.respond(weights, queries, fold(self.seed, "evaluation"))
        return list(zip(queries, responses.texts, strict=True)), responses

    def _qualities(self, pairs: Sequence[tuple[int, str]]) -> dict[str, float]:
        """Return the mean true quality of responses, and how often they show an abuse."""
        if self.truth is None:
            return {}
        texts = [(self.queries[i], text) for i, text in pairs]
        count = len(texts)
        return {
            "quality": sum(self.truth.true_quality(*pair) for pair in texts) / count,
            "hack_rate": sum(self.truth.abuse_rate(*pair) for pair in texts) / count,
        }

    @cached_property
    def _frozen(self) -> str:
        digest = blake2b(digest_size=16)
        for name, value in self.model.frozen():
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _check_frozen(self, state: State) -> None:
        if state["frozen"] != self._frozen:
            raise ValueError(
                "the frozen weights of problem.policy.model are not those that this run was "
                f"started with (hash {state['frozen']}, now {self._frozen}); resume with the same "
                "pretrained weights, or start a new run."
            )
