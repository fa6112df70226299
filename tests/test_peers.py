"""The comparison with other libraries, without any of them."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import __main__ as driver
from benchmarks.peers import environment, formulas, measure, peer
from benchmarks.peers.case import CASES, TERM_STEP, TERMS, TINY
from benchmarks.peers.page import page

SIZE = "2.4 k"
ABSENT = peer.Peer("Absent", "absent_library", ("absent-library==1.0",), {})


@pytest.mark.parametrize("name", peer.FILES)
def test_a_peer_is_well_formed_without_its_package(name, monkeypatch):
    library = peer.load(name)
    if library.requirements:
        for module in [m for m in sys.modules if m.startswith(f"{library.module}.")]:
            monkeypatch.delitem(sys.modules, module)  # of betty, which other tests import
        monkeypatch.setitem(sys.modules, library.module, None)  # importing it is an error
    file = importlib.reload(sys.modules[f"benchmarks.peers.{peer.FILES[name]}"])
    assert Path(file.__file__).stem != library.module
    assert library.loops.keys() <= CASES.keys()
    assert library.differs.keys() <= library.loops.keys()
    assert not library.requirements or "==" in library.requirements[0]
    if library.requirements:
        problem = CASES[next(iter(library.loops))].problem[SIZE]()
        for loop in library.loops.values():
            with pytest.raises(ImportError, match=library.module):
                next(loop(problem, 1.0))


def environment_whose_python(says, monkeypatch):
    """Replace environments by one whose interpreter is a script."""

    def create(builder, place):
        (place / "bin").mkdir(parents=True)
        (place / "lib" / "python3" / "site-packages").mkdir(parents=True)
        (place / "bin" / "python").write_text(f"#!/bin/sh\n{says}\n")
        (place / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(environment.venv.EnvBuilder, "create", create)
    for module in (driver, sys.modules["benchmarks.peers.page"]):
        monkeypatch.setattr(module, "load", lambda name: ABSENT)


def test_a_peer_that_cannot_be_installed_is_listed_with_the_error(monkeypatch, tmp_path):
    message = "ERROR: No matching distribution found for absent-library==1.0"
    environment_whose_python(f"echo '{message}' >&2; echo hint >&2; exit 1", monkeypatch)
    result = driver.measured("absent", tmp_path)
    assert result == {"error": f"could not be installed: {message}"}
    assert not list(tmp_path.glob("absent/installed.txt"))
    text = page({"absent": result}, {"Commit": "none"})
    assert f"| Absent | not run: could not be installed: {message} |" in text
    assert "- Absent: absent-library==1.0" in text
    assert driver.unexplained({"absent": result}) == []


def test_a_peer_that_cannot_be_run_is_listed_with_the_error(monkeypatch, tmp_path):
    message = "ImportError: cannot import name vjp"
    says = f'[ "$2" = pip ] && exit 0; echo "{message}" >&2; exit 1'
    environment_whose_python(says, monkeypatch)
    assert driver.measured("absent", tmp_path) == {"error": message}
    assert (tmp_path / "absent" / "installed.txt").read_text() == "absent-library==1.0"


def test_an_unknown_peer_is_refused(capsys):
    assert driver.main(["hihger"]) == 2
    assert "no peer hihger; there are higher, torchopt" in capsys.readouterr().err


def series_by_hand(problem, phi, params, rows, forward):
    """Return dF/dphi - J^T q with the truncated Neumann series q."""
    theta = list(params.values())
    v = torch.autograd.grad(problem.meta_loss(forward(params), rows), theta)
    g = problem.training_loss(phi, forward(params), rows)
    slope = torch.autograd.grad(g, theta, create_graph=True)
    q = term = [TERM_STEP * t for t in v]
    for _ in range(TERMS - 1):
        products = torch.autograd.grad(slope, theta, term, retain_graph=True)
        term = [t - TERM_STEP * p for t, p in zip(term, products, strict=True)]
        q = [a + b for a, b in zip(q, term, strict=True)]
    return -torch.autograd.grad(slope, phi, q)[0]


def by_hand(problem, outer_lr, series=False, eps_first=False):
    """Take outer steps by torch alone; `eps_first` adds Adam's eps before the bias correction."""
    model, phi = problem.model, torch.zeros(problem.rows, dtype=torch.float64, requires_grad=True)
    start = {name: p.detach() for name, p in model.named_parameters()}

    def forward(params):
        return lambda x: torch.func.functional_call(model, params, x)

    for step in range(10**6):
        rows = problem.batch_of(step)
        params = {name: p.clone().requires_grad_() for name, p in start.items()}
        mean = square = dict.fromkeys(params, 0.0)
        for t in range(1, problem.inner_steps + 1):
            loss = problem.training_loss(phi, forward(params), rows)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            grads = dict(zip(params, grads, strict=True))
            moves = grads
            if problem.algorithm == "adam":
                root = (1 - 0.999**t) ** 0.5
                mean = {k: 0.9 * mean[k] + 0.1 * g for k, g in grads.items()}
                square = {k: 0.999 * square[k] + 0.001 * g**2 for k, g in grads.items()}
                before, after = (problem.eps, 0.0) if eps_first else (0.0, problem.eps)
                moves = {
                    k: mean[k] / (1 - 0.9**t) / ((square[k].sqrt() + before) / root + after)
                    for k in grads
                }
            params = {k: p - problem.lr * moves[k] for k, p in params.items()}
        if series:
            params = {k: p.detach().requires_grad_() for k, p in params.items()}
            grad = series_by_hand(problem, phi, params, rows, forward)
        else:
            (grad,) = torch.autograd.grad(problem.meta_loss(forward(params), rows), phi)
        with torch.no_grad():
            phi -= outer_lr * grad
        if problem.warm_start:
            start = {k: p.detach() for k, p in params.items()}
        yield phi


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if SIZE in case.problem])
def test_metaopt_takes_the_outer_steps_of_a_loop_by_hand(name):
    case = CASES[name]
    reference = by_hand(case.problem[SIZE](), case.outer_lr, series=name == "Neumann series")
    assert measure.difference(case.by_metaopt(SIZE), reference, steps=2) < 1e-10


class MatrixProducts(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return operation(*args, **(kwargs or {}))


def test_a_differentiated_step_takes_the_matrix_products_of_a_loop_by_hand():
    case = CASES["one step and update"]
    counts = []
    for loop in (case.by_metaopt(SIZE), by_hand(case.problem[SIZE](), case.outer_lr)):
        for _ in range(3):  # the first three outer steps, and others later, check the problem
            next(loop)
        with MatrixProducts() as products:
            next(loop)
        counts.append(products.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", formulas.PEER.loops)
def test_metaopt_takes_the_outer_steps_of_the_formulas(name):
    case = CASES[name]
    (size,) = case.problem
    reference = formulas.PEER.loops[name](case.problem[size](), case.outer_lr)
    assert measure.difference(case.by_metaopt(size), reference) < 1e-10


def test_where_adams_eps_is_added_matters_at_its_default_and_not_where_it_is_tiny():
    def effect(name):
        case = CASES[name]
        loops = (by_hand(case.problem[SIZE](), 1.0, eps_first=first) for first in (False, True))
        return measure.difference(*loops, steps=2)

    assert effect("unroll, Adam") > 0.01
    assert effect(f"unroll, Adam, eps {TINY:g}") < 1e-10


def test_what_differs_is_not_timed_and_needs_a_reason():
    case = dataclasses.replace(CASES["one step and update"], steps={SIZE: 1})

    def exact(problem, outer_lr):
        return case.by_metaopt(SIZE)

    def off(problem, outer_lr):
        return (phi * (1 + 1e-6) for phi in case.by_metaopt(SIZE))

    def undefined(problem, outer_lr):
        return (phi * float("nan") for phi in case.by_metaopt(SIZE))

    timed = measure.compare(case, SIZE, exact, turns=2)
    assert timed["difference"] == 0.0
    assert {"metaopt_ms", "peer_ms", "ratio", "low", "high"} <= timed.keys()
    assert measure.compare(case, SIZE, undefined, turns=2).keys() == {"difference"}
    row = measure.compare(case, SIZE, off, turns=2)
    assert row == {"difference": pytest.approx(1e-6, rel=1e-3)}
    of = {"case": "one step and update", "size": SIZE}
    rows = [{**of, **row}, {**of, **timed}]
    results = {"higher": {"rows": rows, "versions": {}, "load": [0.0, 0.0]}}
    assert driver.unexplained(results) == ["higher: one step and update, 2.4 k: differs by 1.0e-06"]
    text = page(results, {})
    assert "| not timed, see 1 | | | | 1.0e-06 |" in text
    assert "1. the reason is not known." in text


def test_a_case_that_fails_leaves_the_others():
    def fails(case, size, loop):
        if size == SIZE:
            raise RuntimeError("no such operation")
        return {"difference": 0.0}

    first, second, *_ = measure.rows(peer.load("higher"), fails)
    assert first["error"] == "RuntimeError: no such operation"
    assert second["difference"] == 0.0
