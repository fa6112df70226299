"""The estimators' documented formulas with dense matrices, and none of the estimators' code.

phi and theta are flat vectors. H = d2g/dtheta2 (n, n) and J = d2g/dtheta dphi (n, m) are of the
solve's batch, v = dF/dtheta and direct = dF/dphi of the outer batch.
"""

import itertools
from dataclasses import replace

import torch
from torch.autograd.functional import hessian, jacobian

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import SGD
from metaopt.testing.differences import differences_of, run_differences


def flat(values):
    return torch.cat([t.reshape(-1) for t in values.values()])


def unflat(vector, like):
    parts = vector.split([t.numel() for t in like.values()])
    return {k: p.view_as(t) for (k, t), p in zip(like.items(), parts, strict=True)}


def gradient(differences):
    """Return the gradient whose slopes along as many directions as phi has numbers are known."""
    rows = torch.stack([flat(d) for d in differences.directions])
    assert rows.shape[0] == rows.shape[1]
    assert differences.uncertainty < 1e-7
    return torch.linalg.solve(rows, torch.tensor(differences.slopes, dtype=rows.dtype))


def through_run(loop, outer, inner, key, steps):
    """Return the derivative of F after a whole run."""
    return gradient(run_differences(loop, outer, inner, key, steps, flat(outer).numel()))


def through_last_step(loop, outer, inner, key, steps):
    """Return the derivative of F through the last step of a run, what came before held fixed."""
    before = loop.run(outer, tree.clone(inner), key, steps - 1)

    def value(phi):
        after = loop.step_(phi, tree.clone(before), loop.draw(before, key, steps - 1))
        return float(loop.evaluate(phi, after, key).value)

    return gradient(differences_of(value, outer, key, flat(outer).numel()))


def expected_after_step(loop, outer, inner, key):
    """Return the derivative of E[F] over the labels that one step is taken on."""

    def value(phi):
        total = 0.0
        for probability, _ in labelled(loop, phi, inner, key):
            after = loop.run(phi, tree.clone(inner), key, 1)
            total += float(probability * loop.evaluate(phi, after, key).value)
        return total

    return gradient(differences_of(value, outer, key, flat(outer).numel()))


def labelled(loop, outer, inner, key):
    """Yield the probability of each pair of labels of a step, the problem made to take them."""
    problem = loop.problem
    rows = problem.inner_batch(loop.draw(inner, key, 0))
    try:
        for pair in itertools.product((0, 1), repeat=2):
            problem.forced = torch.tensor(pair)
            batch = rows[0], problem.forced
            yield problem.log_prob(outer, None, batch).detach().sum().exp(), problem.forced
    finally:
        problem.forced = None


class At:
    """Derivatives of g and F at one state.

    Args:
        draw: the batch of g.
    """

    def __init__(self, loop, outer, inner, key, draw):
        def g(phi, theta):
            at = inner.at(unflat(theta, inner.params))
            return loop.inner_value(unflat(phi, outer), at, draw)

        def outer_loss(phi, theta):
            at = inner.at(unflat(theta, inner.params))
            return loop.outer_value(unflat(phi, outer), at, loop.outer_draw(inner, key))

        self.optimizer = loop.optimizer(outer, inner.step)
        self.inner, self.place = inner, (flat(outer), flat(inner.params))
        self.direct, self.v = jacobian(outer_loss, self.place)
        self.g_phi, self.g_theta = jacobian(g, self.place)
        (_, _), (self.J, self.H) = hessian(g, self.place)

    @property
    def stationary(self):
        """H of g plus the optimizer's decay."""
        decay = self.optimizer.weight_decay
        return self.H + decay * torch.eye(len(self.H), dtype=self.H.dtype)


def at_end(loop, outer, inner, key, steps):
    """Return the derivatives where a run ends, g on the batch of the solve."""
    end = loop.run(outer, tree.clone(inner), key, steps)
    return At(loop, outer, end, key, loop.solve_draw(end, key, steps))


def implicit(at, q):
    """Return dF/dphi - J^T q."""
    return at.direct - at.J.T @ q


def inverse(at):
    """Return H^+ v. A parameter that g does not read has no curvature, and J no entry for it."""
    return torch.linalg.pinv(at.stationary, hermitian=True) @ at.v


def neumann(at, terms, step):
    """Return step * sum_{i < terms} (I - step H)^i v."""
    shrink = torch.eye(len(at.H), dtype=at.H.dtype) - step * at.stationary
    return step * sum(torch.linalg.matrix_power(shrink, i) @ at.v for i in range(terms))


def adapted(at):
    """Return w = -(du/dgrad)^T v for the optimizer's next step u."""
    theta, grad = at.place[1], at.g_theta
    moments = {k: flat(m) for k, m in at.inner.optimizer.items()}

    def u(grad):
        return update(at.optimizer, theta, grad, moments, at.inner.step)[0]

    return -jacobian(u, grad).T @ at.v


def update(optimizer, theta, grad, moments, step):
    """Return theta and moments after a step of the optimizer's formula, as flat vectors."""
    if optimizer.clip_norm is not None:
        grad = grad * (optimizer.clip_norm / (grad.norm() + 1e-6)).clamp(max=1.0)
    lr = optimizer.lr * (1.0 if optimizer.schedule is None else optimizer.schedule(step))
    if isinstance(optimizer, SGD):
        d = grad + optimizer.weight_decay * theta
        if not optimizer.momentum:
            return theta - lr * d, {}
        b = optimizer.momentum * moments["momentum"] + d
        d = d + optimizer.momentum * b if optimizer.nesterov else b
        return theta - lr * d, {"momentum": b}
    if optimizer.decoupled:
        theta = theta - lr * optimizer.weight_decay * theta
    else:
        grad = grad + optimizer.weight_decay * theta
    (b1, b2), t = optimizer.betas, step + 1
    m = b1 * moments["mean"] + (1 - b1) * grad
    s = b2 * moments["square"] + (1 - b2) * grad**2
    # The derivative of a root at 0, times that of the square, is 0 and not NaN.
    denominator = (s / (1 - b2**t) + torch.finfo(s.dtype).tiny).sqrt() + optimizer.eps
    return theta - lr * m / (1 - b1**t) / denominator, {"mean": m, "square": s}


def soba(loop, outer, inner, keys, step):
    """Return dF/dphi - J^T q at the last of several steps of theta and q."""
    inner, q = tree.clone(inner), 0.0 * flat(inner.params)
    for key in keys:
        at = At(loop, outer, inner, key, loop.draw(inner, key, 0))
        result = implicit(at, q)
        q = q - step * (at.stationary @ q - at.v)
        inner = loop.run(outer, inner, key, 1)
    return result


def saba(loop, outer, inner, keys, step):
    """Return SABA's reduced dF/dphi - J^T q at the last of several steps of theta and q."""
    problem, memory = loop.problem, {}
    counts = {"i": problem.inner_batches, "j": problem.outer_batches}
    inner, q = tree.clone(inner), 0.0 * flat(inner.params)
    for key in keys:
        draw, outer_draw = loop.draw(inner, key, 0), loop.outer_draw(inner, key)
        at = At(loop, outer, inner, key, draw)
        places = {"i": problem.block(draw), "j": problem.block(outer_draw)}

        def reduced(name, which, value, places=places):
            rows = memory.setdefault(name, value.new_zeros(counts[which], len(value)))
            direction = value - rows[places[which]] + rows.mean(0)
            rows[places[which]] = value
            return direction

        cross, direct = reduced("cross", "i", at.J.T @ q), reduced("direct", "j", at.direct)
        result = direct - cross
        product, v = reduced("product", "i", at.stationary @ q), reduced("v", "j", at.v)
        q = q - step * (product - v)
        moments = {k: flat(m) for k, m in inner.optimizer.items()}
        slope = reduced("slope", "i", at.g_theta)
        theta, moments = update(at.optimizer, flat(inner.params), slope, moments, inner.step)
        after = loop.run(outer, tree.clone(inner), key, 1)
        inner = after._replace(
            params=unflat(theta, inner.params),
            optimizer={k: unflat(m, inner.params) for k, m in moments.items()},
        )
    return result


def penalty(loop, outer, inner, key, steps, gamma, divisor=None):
    """Return dF/dphi(y) + gamma [dg/dphi(y) - dg/dphi(z)] where both copies end.

    y follows F + gamma g over a divisor, 1 + gamma where none is given.
    """
    divisor = divisor or 1 + gamma
    z = loop.run(outer, tree.clone(inner), key, steps)
    y = tree.clone(inner)
    optimizer = loop.optimizer(outer, 0)
    for k in range(steps):
        theta = tree.leaves(y.params)
        at = y._replace(params=theta)
        loss = loop.outer_value(outer, at, loop.outer_draw(y, key, k))
        loss = loss + gamma * loop.inner_value(outer, at, loop.draw(y, key, k))
        slopes = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        slope = flat(tree.like(theta, slopes)) + gamma * optimizer.weight_decay * flat(y.params)
        # The decay is in the loss here.
        moved, moments = update(
            replace(optimizer, weight_decay=0.0), flat(y.params), slope / divisor,
            {k: flat(m) for k, m in y.optimizer.items()}, y.step,
        )  # fmt: skip
        y = y._replace(
            params=unflat(moved, y.params), step=y.step + 1,
            optimizer={k: unflat(m, y.params) for k, m in moments.items()},
        )  # fmt: skip
    draw = loop.solve_draw(z, key, steps)
    above, below = (At(loop, outer, state, key, draw) for state in (y, z))
    return above.direct + gamma * (above.g_phi - below.g_phi)
