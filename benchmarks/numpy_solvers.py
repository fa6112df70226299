"""SOBA, SABA and SRBA on the stochastic quadratic in plain numpy, without any code of metaopt."""

import numpy as np


class Quadratics:
    """The samples of a problem as numpy arrays, and their derivatives on a block."""

    def __init__(self, problem):
        self.inner, self.outer = ([f.numpy() for f in s] for s in (problem.inner, problem.outer))
        self.batch, self.blocks = problem.batch, (problem.inner_batches, problem.outer_batches)

    def terms(self, point, i, j):
        """Return dg/dz, H q and J^T q on block i of g, dF/dz and dF/dw on block j of F."""
        z, q, w = point
        x, u, left, right, a, b = self.block(self.inner, i)
        n = len(x)
        of_g = [
            (x.T @ (x @ z) + right.T @ (left @ w) + a.sum(0)) / n,
            x.T @ (x @ q) / n,
            left.T @ (right @ q) / n,
        ]
        x, u, left, right, a, b = self.block(self.outer, j)
        n = len(x)
        return [
            *of_g,
            (x.T @ (x @ z) + right.T @ (left @ w) + a.sum(0)) / n,
            (u.T @ (u @ w) + left.T @ (right @ z) + b.sum(0)) / n,
        ]

    def block(self, factors, index):
        if index is None:
            return factors
        return [f[self.batch * index : self.batch * (index + 1)] for f in factors]


def soba(data):
    return lambda t, point, i, j: data.terms(point, i, j)


def saba(data):
    (n, m), zero = (
        data.blocks,
        data.terms([np.zeros(data.inner[k].shape[1]) for k in (0, 0, 1)], 0, 0),
    )
    rows = [np.zeros((count, len(d))) for count, d in zip((n, n, n, m, m), zero, strict=True)]

    def directions(t, point, i, j):
        reduced = []
        for row, k, term in zip(rows, (i, i, i, j, j), data.terms(point, i, j), strict=True):
            reduced.append(term - row[k] + row.mean(0))
            row[k] = term
        return reduced

    return directions


def srba(data, period):
    last = {}

    def directions(t, point, i, j):
        if t % period == 0:
            last["d"] = data.terms(point, None, None)
        else:
            new, old = data.terms(point, i, j), data.terms(last["point"], i, j)
            last["d"] = [d + a - b for d, a, b in zip(last["d"], new, old, strict=True)]
        last["point"] = point
        return last["d"]

    return directions


def steps(problem, directions, blocks, lr):
    """Yield w and z after a step on each (i, j) of `blocks`."""
    z, q = np.zeros(problem.inner_dim), np.zeros(problem.inner_dim)
    w = np.full(problem.outer_dim, -2.0)
    for t, (i, j) in enumerate(blocks):
        slope, product, cross, v, direct = directions(t, (z, q, w), i, j)
        z, q, w = z - lr * slope, q - lr * (product - v), w - lr * (direct - cross)
        yield w, z


def run(problem, directions, blocks, lr):
    """Return w and z after all of `blocks`."""
    *_, last = steps(problem, directions, blocks, lr)
    return last


def f2sa(problem, steps, inner_steps, lr, increment, z_exponent, y_exponent, gamma_exponent):
    """Return w and gamma after F2SA on one block of each loss, as benchmark_bilevel sets it."""
    data, gamma = Quadratics(problem), 1.0
    z = y = np.zeros(problem.inner_dim)
    w = np.full(problem.outer_dim, -2.0)
    zero = np.zeros(problem.inner_dim)

    def slopes(point):
        """Return dg/dz, dF/dz and dF/dw, and dg/dw less what does not depend on z."""
        slope, _, _, v, direct = data.terms((point, zero, w), 0, 0)
        cross = data.terms((point, point, w), 0, 0)[2]
        return slope, v, direct, cross

    for t in range(steps):
        for _ in range(inner_steps):
            z = z - lr * (t + 1) ** -z_exponent * slopes(z)[0]
        for _ in range(inner_steps):
            slope, v, _, _ = slopes(y)
            y = y - lr * (t + 1) ** -y_exponent * (v + gamma * slope)
        grad = slopes(y)[2] + gamma * (slopes(y)[3] - slopes(z)[3])
        w = w - lr * (t + 1) ** -z_exponent * grad
        gamma = gamma + increment * (t + 1) ** -gamma_exponent
    return w, gamma


def implicit(problem, point, solve_blocks, block, outer_block, q, step, kind):
    """Return the hypergradient of StocBiO or AmIGO, each product on a block of its own, and q."""
    data, (z, w) = Quadratics(problem), point
    _, _, _, v, direct = data.terms((z, q, w), 0, outer_block)
    if kind == "stocbio":
        q, term = 0.0 * v, v
        for i in solve_blocks:
            q, term = q + step * term, term - step * data.terms((z, term, w), i, 0)[1]
    else:
        for i in solve_blocks:
            q = q - step * (data.terms((z, q, w), i, 0)[1] - v)
    return direct - data.terms((z, q, w), block, 0)[2], q
