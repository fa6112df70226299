"""Solvers on small systems H q = v: what they report is measured, and no divergence is returned."""

import pytest
import torch

from metaopt.estimators import ConjugateGradient, Exact, Neumann, Nystrom


def products(diagonal):
    diagonal = torch.tensor(diagonal, dtype=torch.float64)
    return lambda p: {"x": diagonal * p["x"]}


def vector(*values):
    return {"x": torch.tensor(values, dtype=torch.float64)}


def true_residual(product, q, v):
    gap = torch.linalg.norm(v["x"] - product(q)["x"])
    return gap / torch.linalg.norm(v["x"])


@pytest.mark.parametrize("share", [0.0, 1e-12, 1e-8, 1e-4, 1.0])
def test_an_own_step_that_misses_the_largest_eigenvalue_is_made_smaller(share):
    product, v = products([100.0, 1.0, 0.5]), vector(share, 1.0, 1.0)
    q, state, metrics = Neumann(terms=4000)(product, v, {}, 0)
    torch.testing.assert_close(
        q["x"], torch.tensor([share / 100, 1.0, 2.0]).double(), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(
        metrics["solve/residual"], true_residual(product, q, v), rtol=0, atol=1e-7
    )
    assert metrics["solve/step"] < 2 / 100 or share == 0.0
    # The direction that was found is where the next outer step's estimate starts.
    _, _, metrics = Neumann(terms=5)(product, v, state, 1)
    assert metrics["solve/residual"] < 1


@pytest.mark.parametrize("terms", [1, 3, 10])
@pytest.mark.parametrize("step", [None, 0.3])
def test_a_truncated_series_reports_its_residual(terms, step):
    product, v = products([3.0, 1.0, 0.1]), vector(1.0, -2.0, 1.0)
    calls = []
    q, _, metrics = Neumann(terms, step)(lambda p: calls.append(1) or product(p), v, {}, 0)
    torch.testing.assert_close(metrics["solve/residual"], true_residual(product, q, v))
    assert metrics["solve/negative_curvature"] == 0
    assert len(calls) == terms + (3 if step is None else 0)


def test_a_step_that_diverges_is_refused():
    with pytest.raises(ValueError, match=r"Neumann\(step=0.3\) diverges: .*eigenvalue of about 10"):
        Neumann(terms=10, step=0.3)(products([10.0, 1.0]), vector(1.0, 1.0), {}, 0)


def test_a_series_of_its_own_step_ends_at_negative_curvature():
    product, v = products([1.0, -0.5]), vector(1.0, 0.1)
    q, _, metrics = Neumann(terms=200)(product, v, {}, 0)
    assert metrics["solve/negative_curvature"] == 1
    assert metrics["solve/residual"] < 0.5
    torch.testing.assert_close(metrics["solve/residual"], true_residual(product, q, v))


def test_a_series_of_a_given_step_has_all_its_terms_at_negative_curvature():
    curvatures, values, step = torch.tensor([1.0, -0.5]).double(), torch.tensor([1.0, 0.1]), 0.1
    product, v = products(curvatures.tolist()), vector(*values.tolist())
    q, _, metrics = Neumann(terms=60, step=step)(product, v, {}, 0)
    assert metrics["solve/negative_curvature"] == 1
    factors = 1 - step * curvatures
    expected = step * sum(factors**i for i in range(60)) * values
    torch.testing.assert_close(torch.cat([x.flatten() for x in q.values()]).double(), expected)
    torch.testing.assert_close(metrics["solve/residual"], true_residual(product, q, v))


def test_a_series_of_its_own_step_needs_a_curvature():
    with pytest.raises(ValueError, match=r"Neumann: .* no curvature along dF/dtheta.* set a step"):
        Neumann(terms=3)(products([0.0, 2.0]), vector(1.0, 0.0), {}, 0)
    q, state, metrics = Neumann(terms=3)(products([0.0, 2.0]), vector(0.0, 0.0), {}, 0)
    assert not q["x"].any()
    assert not state
    assert metrics.keys() == Neumann(terms=3)(products([2.0]), vector(1.0), {}, 0)[2].keys()


def test_an_own_step_is_estimated_again_where_the_last_direction_has_lost_its_curvature():
    product, v = products([0.0, 2.0, 1.0]), vector(0.0, 1.0, -3.0)
    last = {"direction": vector(1.0, 0.0, 0.0)}  # that of a unit which has died since
    q, state, metrics = Neumann(terms=200)(product, v, last, 1)
    torch.testing.assert_close(q["x"], vector(0.0, 0.5, -3.0)["x"])
    torch.testing.assert_close(metrics["solve/residual"], true_residual(product, q, v))
    assert state["direction"]["x"][0] == 0


@pytest.mark.parametrize("damping", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("preconditioner", [None, Nystrom(rank=2)])
def test_conjugate_gradient_reports_the_residual_without_its_damping(damping, preconditioner):
    product, v = products([5.0, 2.0, 1.0, 0.1]), vector(1.0, 1.0, -1.0, 2.0)
    solver = ConjugateGradient(3, damping, 0.0, preconditioner=preconditioner)
    state = {}
    for key in range(3):
        q, state, metrics = solver(product, v, state, key)
        true = true_residual(product, q, v)
        torch.testing.assert_close(metrics["solve/residual"], true, rtol=0, atol=1e-12)


def test_a_system_that_is_singular_but_for_round_off_is_refused():
    direction = torch.tensor([1.0, 1 / 3, -0.7], dtype=torch.float64)
    hessian = torch.diag(direction.square().sum().expand(3)) - torch.outer(direction, direction)
    v = vector(1.0, 2.0, 3.0)

    def product(p):
        return {"x": hessian @ p["x"]}

    with pytest.raises(ValueError, match="singular"):
        Exact()(product, v, {}, 0)
    q, _, metrics = Exact(damping=0.1)(product, v, {}, 0)
    torch.testing.assert_close(metrics["solve/residual"], true_residual(product, q, v))


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_what_no_loss_reads_leaves_an_exact_solve_to_the_rest(damping):
    q, _, _ = Exact(damping)(products([2.0, 0.0, 5.0]), vector(1.0, 0.0, 1.0), {}, 0)
    expected = torch.tensor([1 / (2 + damping), 0.0, 1 / (5 + damping)], dtype=torch.float64)
    torch.testing.assert_close(q["x"], expected)
    # What F alone reads, or the optimizer alone moves, has no solution.
    if not damping:
        with pytest.raises(ValueError, match="singular"):
            Exact()(products([2.0, 0.0, 5.0]), vector(1.0, 1e-9, 1.0), {}, 0)


@pytest.mark.parametrize("solver", [Neumann(), Exact(), ConjugateGradient()])
def test_what_is_not_finite_stays_so(solver):
    # The engine stops a run there and says at which step.
    q, _, _ = solver(products([1.0, float("nan")]), vector(1.0, 1.0), {}, 0)
    assert not q["x"].isfinite().all()


SHAPES = {"scale": (), "weight": (2, 2, 1), "bias": (4,)}


def shaped(vector, dtype=torch.float64):
    """Return 9 entries as parameters, of which the bias has another precision."""
    parts = zip(SHAPES.items(), vector.split([1, 4, 4]), strict=True)
    made = {name: part.reshape(shape) for (name, shape), part in parts}
    return {**made, "bias": made["bias"].to(dtype)}


def flat(values):
    return torch.cat([t.flatten().double() for t in values.values()])


def semidefinite(rank):
    draw = torch.Generator().manual_seed(0)
    factor = torch.randn(rank, 9, generator=draw, dtype=torch.float64)
    return factor.T @ factor / 9, torch.randn(9, generator=draw, dtype=torch.float64)


def test_a_sketch_takes_parameters_of_any_shape():
    (hessian, v), damping = semidefinite(7), torch.tensor(0.1, dtype=torch.float64)
    apply, _ = Nystrom(rank=9)(lambda p: shaped(hessian @ flat(p)), shaped(v), damping, {}, 0)
    values, vectors = torch.linalg.eigh(hessian)
    values, vectors = values[2:], vectors[:, 2:]
    gain = (values[0] + damping) / (values + damping) - 1
    torch.testing.assert_close(flat(apply(shaped(v))), v + vectors @ (gain * (vectors.T @ v)))


def test_a_sketch_takes_parameters_of_several_precisions():
    hessian, v = semidefinite(9)
    hessian, like = hessian + 0.1 * torch.eye(9).double(), shaped(v, torch.float32)
    solver = ConjugateGradient(9, 0.0, 1e-5, preconditioner=Nystrom(rank=3))
    q, _, _ = solver(lambda p: shaped(hessian @ flat(p), torch.float32), like, {}, 0)
    assert [t.dtype for t in q.values()] == [t.dtype for t in like.values()]
    wanted = torch.linalg.solve(hessian, flat(like))
    torch.testing.assert_close(flat(q), wanted, rtol=1e-3, atol=1e-4)


def test_a_sketch_of_what_is_not_finite_is_refused():
    solver = ConjugateGradient(preconditioner=Nystrom(rank=2))
    with pytest.raises(ValueError, match=r"Nystrom: a product with the Hessian .* is not finite"):
        solver(products([1.0, float("inf")]), vector(1.0, 1.0), {}, 0)
