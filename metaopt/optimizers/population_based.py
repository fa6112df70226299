"""Population-based training: members that copy the better ones and perturb what they copied."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.population import Members, best_member
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.optimizers.open_loop import Grid
from metaopt.optimizers.spaces import Normal, Space, draw, require_names

Exploit = Literal["truncation", "tournament", "none"]


class PopulationBased:
    """Population-based training (PBT): train P members, copy the good ones, perturb the copies.

    Each outer step trains all members for K inner steps with hyperparameters of their own, phi_i,
    and measures F of each. Then some members *exploit*: they take over the hyperparameters and the
    inner state (parameters and the inner optimizer's moments) of a better one. Each of these
    *explores*: every entry of its hyperparameters is multiplied by one of `factors`, with equal
    probability, or drawn from `space` again. What is found is a schedule of hyperparameters rather
    than one value, in one run of P members.

    - truncation: each of the `fraction` of the members with the largest F copies one of the
      `fraction` with the lowest, each equally likely.
    - tournament: each member meets another one, each equally likely, and copies it if that has a
      lower F.
    - none: nobody copies: a random search of P members that are trained to the end.

    In both, a member that has diverged (F = NaN or inf) copies one that has not.

    The method is asynchronous in the paper; here all members exploit after every outer step, so
    that a run is a function of its seed. F is measured on the outer batch: have test examples
    besides, since the best of P members has been selected on it.

    Symbols: h = phi, theta = the inner state, eval = -F, ready = every `inner_steps` steps.

    Args:
        members: number P of members, >= 2.
        space: what the first hyperparameters are drawn from, as of `Random`; names that it leaves
            out start equal at the problem's own. `None`: normal around these, of deviation 1.
        start: a grid of P points at which the members start, instead of drawing from `space`; or
            `None`.
        exploit: see above.
        fraction: of members that truncation replaces, in (0, 0.5], at least one of them.
        factors: what a hyperparameter is multiplied by, > 0.
        log: whether phi holds logarithms, to which log(factor) is then added; or the names of
            those entries that do.
        resample: probability that an entry is drawn from `space` in place of being perturbed.

    Raises:
        ValueError: an argument outside its range, a fraction of less than one member, or a grid of
            another size.

    Estimator: `PopulationScore`, whose feedback has F of each member.

    Reference: Jaderberg et al., Population Based Training of Neural Networks, arXiv 1711.09846,
    2017 (truncation of 20 % and factors 0.8 and 1.2 in its appendix).

    Example:
        >>> from metaopt.optimizers import Uniform
        >>> search = PopulationBased(members=5, space={"log_lr": Uniform(-6.0, 0.0)})
        >>> search.init({"log_lr": torch.tensor(-3.0)})
        >>> members = search.ask(0)
        >>> values = torch.tensor([0.3, 0.1, 0.9, 0.2, 0.5])
        >>> search.tell(Feedback(0.1, artifacts={"values": values}))
        >>> search.ask(1).parents  # member 2 was the worst, member 1 the best
        tensor([0, 1, 1, 3, 4])
    """

    def __init__(
        self,
        members: int = 20,
        space: Space | None = None,
        start: Grid | None = None,
        exploit: Exploit = "truncation",
        fraction: float = 0.2,
        factors: Sequence[float] = (0.8, 1.2),
        log: bool | Collection[str] = True,
        resample: float = 0.0,
    ) -> None:
        self.members, self.space, self.start, self.exploit = members, space, start, exploit
        self.fraction, self.factors, self.log, self.resample = fraction, factors, log, resample
        check_choices(self, exploit=get_args(Exploit))
        check_ranges(self, "members >= 2", "0 < fraction <= 0.5", "0 <= resample <= 1")
        if isinstance(factors, str) or not factors or not all(f > 0 for f in factors):
            raise ValueError(
                f"PopulationBased needs factors > 0, such as [0.8, 1.2]; got {factors!r}."
            )
        if exploit == "truncation" and not self._replaced:
            raise ValueError(
                f"PopulationBased with members={members} and fraction={fraction} replaces nobody; "
                f"have fraction >= {1 / members:.3g}, or exploit=tournament."
            )
        if start is not None and start.size != members:
            raise ValueError(
                f"PopulationBased with members={members} needs a grid of as many points to start "
                f"at; start has {start.size}."
            )
        self._initial: Tree = {}
        self._solution: Tree = {}
        self._members: Members | None = None
        self._values: Tensor | None = None

    @property
    def _replaced(self) -> int:
        """How many members truncation replaces."""
        return math.floor(self.members * self.fraction + 1e-9)

    def init(self, outer: Any) -> None:
        """Keep the problem's first outer variable, which the members are drawn around.

        Raises:
            TypeError: it is not a dict of floating-point tensors.
            ValueError: `space` or `log` names something that it does not hold.
        """
        self._initial = tree.clone(tree.named_tensors(outer, "PopulationBased"))
        self._solution = self._initial
        self._members = self._values = None
        if not isinstance(self.log, bool):
            require_names(outer, dict.fromkeys(self.log), "log")
        self._first(0)  # only to see it fail
        self._drawn(0)

    def ask(self, key: int) -> Members:
        """Return the outer variables of all members, and from which member each goes on."""
        if self._members is None:
            self._members = Members(self._first(key), torch.arange(self.members))
        elif self._values is not None:
            parents = self._parents(self._values, generator(fold(key, "exploit")))
            self._members = Members(self._explored(self._members, parents, key), parents)
            self._values = None
        return self._members

    def tell(self, feedback: Feedback) -> None:
        """Learn F of each member.

        Raises:
            TypeError: the feedback has not one value for each member.
            RuntimeError: nothing has been asked for.
        """
        if self._members is None:
            raise RuntimeError("PopulationBased.tell needs an ask first.")
        artifacts = feedback.artifacts
        values = artifacts.get("values") if isinstance(artifacts, dict) else None
        if not isinstance(values, Tensor) or values.shape != (self.members,):
            raise TypeError(
                f"PopulationBased needs feedback with F of each of its {self.members} members in "
                f"artifacts['values']. Use estimator=population_score."
            )
        self._values = values.detach().cpu().clone()
        self._solution = tree.clone(self._members.of(best_member(self._values)))

    @property
    def solution(self) -> Tree:
        """The outer variable of the best member in the last step; the problem's own before it."""
        return self._solution

    def state_dict(self) -> dict[str, Any]:
        """Return the members, F of each, and the best one's outer variable."""
        return {"members": self._members, "values": self._values, "solution": self._solution}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._members, self._values = state["members"], state["values"]
        self._solution = state["solution"]

    def _first(self, key: int) -> Tree:
        """Return the first hyperparameters of all members."""
        if self.start is None:
            each = [self._drawn(fold(key, i)) for i in range(self.members)]
        else:
            each = [self.start.outer_at(self._initial, i) for i in range(self.members)]
        return {k: torch.stack([one[k] for one in each]) for k in self._initial}

    def _drawn(self, key: int) -> Tree:
        """Return hyperparameters of one member, drawn from the space."""
        space = Normal() if self.space is None else self.space
        drawn: Tree = draw(space, self._initial, generator(key))
        return drawn

    def _parents(self, values: Tensor, random: Generator) -> Tensor:
        """Return from which member each goes on, (P,)."""
        parents, count = torch.arange(self.members), self.members
        lost = ~torch.isfinite(values)
        if self.exploit == "none" or lost.all():
            return parents
        order = values.argsort(stable=True)
        replaced, best = lost.clone(), order[: int((~lost).sum())]  # those that have not diverged
        if self.exploit == "truncation":
            replaced[order[count - self._replaced :]] = True
            best = best[: self._replaced]
        else:  # one of the others: the draw skips the member itself
            rival = torch.randint(count - 1, (count,), generator=random)
            rival += rival >= parents
            parents = torch.where(values[rival] < values, rival, parents)
        drawn = best[torch.randint(len(best), (count,), generator=random)]
        return torch.where(replaced, drawn, parents)

    def _explored(self, members: Members, parents: Tensor, key: int) -> Tree:
        """Return the members' outer variables, of which those of copies are perturbed."""
        after = {k: v[parents.to(v.device)] for k, v in members.outer.items()}
        for i in Members(after, parents).copied().nonzero().flatten().tolist():
            again, random = (
                self._drawn(fold(key, "resample", i)),
                generator(fold(key, "perturb", i)),
            )
            for name, value in after.items():
                value[i] = self._perturbed(name, value[i], again[name], random)
        return after

    def _perturbed(self, name: str, value: Tensor, again: Tensor, random: Generator) -> Tensor:
        """Return one entry of a copy after it has explored."""
        which = torch.randint(len(self.factors), value.shape, generator=random)
        factor = torch.tensor(list(self.factors), dtype=torch.float64)[which]
        renewed = torch.rand(value.shape, generator=random) < self.resample
        factor, renewed = factor.to(value.device), renewed.to(value.device)
        is_log = self.log if isinstance(self.log, bool) else name in self.log
        moved = value + factor.log().to(value) if is_log else value * factor.to(value)
        return torch.where(renewed, again, moved)
