"""The house style of all figures, and the learning curves of one run.

Figures are made without pyplot, so no backend is chosen and nothing global changes. matplotlib is
imported where a figure is made: it takes longer to import than a small run takes to finish.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metaopt.files.numbers import or_nan
from metaopt.files.reading import read_records
from metaopt.files.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers tell apart; their yellow is too pale."""

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""Line styles: when the palette is used up, the next one starts."""

MOST_PANELS = 9
"""Panels in one figure, three by three; further ones go into another."""

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
}


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of that many inches in the house style; write it after the block.

    Its parts make room for each other, and the folder of `path` is made.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:])


def line(index: int) -> dict[str, Any]:
    """Return the colour and the dashes of the `index`-th line, >= 0; 28 differ."""
    dashes = DASHES[index // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": dashes}


class Curve(NamedTuple):
    """One metric along a run: outer steps, inner steps (NaN where unknown), finite values."""

    outer: Array
    inner: Array
    value: Array


def read_curves(
    path: Path, names: Container[str] | None = None, replicate: int | None = None
) -> dict[str, Curve]:
    """Return the curves of a metrics.jsonl by name, all or `names`; empty where there is no file.

    Of a run with replicates these are their means, or the curves of one `replicate`, which the
    first one has also of what was measured once.

    Inner steps are those a line counts as `inner_step`, else its `budget/inner_steps`. A value that
    was not finite, and a line cut short by a kill, is left out. Of two values at one outer step the
    later counts.

    Raises:
        DamagedFileError: a line is not a record.
    """
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for record in read_records(path) if path.exists() else ():
        inner = or_nan(record.get("inner_step", record.get("budget/inner_steps")))
        each = record.pop("replicates", {})
        if replicate is not None:
            if replicate:
                record = {"outer_step": record["outer_step"]}
            record |= {name: values[replicate] for name, values in each.items()}
        for name, value in record.items():
            included = "/" in name if names is None else name in names
            if included and math.isfinite(number := or_nan(value)):
                points.setdefault(name, {})[record["outer_step"]] = (inner, number)
    return {name: _curve(by_step) for name, by_step in points.items()}


def _curve(by_step: dict[int, tuple[float, float]]) -> Curve:
    steps = sorted(by_step)
    inner, value = zip(*(by_step[step] for step in steps), strict=True)
    return Curve(np.array(steps, float), np.array(inner, float), np.array(value, float))


def binned(curve: Curve, most: int = 200) -> Curve:
    """Return the curve averaged over equal runs of points, so that at most `most` are left."""
    if len(curve.outer) <= most:
        return curve
    groups = np.array_split(np.arange(len(curve.outer)), most)
    return Curve(*(np.array([part[group].mean() for group in groups]) for part in curve))


def inner_axis(axes: Axes, outer: Array, inner: Array) -> bool:
    """Add an axis of inner steps at the top, and return whether the points allow one.

    Args:
        axes: where the x axis counts outer steps.
        outer, inner: the same moments counted both ways, in any order.
    """
    known = np.isfinite(inner) & (outer > 0) & (inner > 0)
    x, first = np.unique(outer[known], return_index=True)
    y = inner[known][first]
    if len(x) == 0 or np.any(np.diff(y) <= 0):
        return False
    x, y = np.append(0, x), np.append(0, y)
    rate = y[-1] / x[-1]
    top = axes.secondary_xaxis(
        "top", functions=(lambda s: _line(s, x, y, rate), lambda s: _line(s, y, x, 1 / rate))
    )
    top.set_xlabel("inner steps")
    _count(top)
    return True


def _line(at: Any, x: Array, y: Array, rate: float) -> Array:
    """Interpolate within the points and go on at `rate` beyond them."""
    at = np.asarray(at, dtype=float)
    inside: Array = np.interp(at, x, y)
    beyond: Array = rate * (np.minimum(at - x[0], 0) + np.maximum(at - x[-1], 0))
    return inside + beyond


def outer_axis(axes: Axes, last: float, label: str = "outer steps") -> None:
    """Let the x axis count steps from 0 to `last`: whole numbers, 1500 written as 1.5k."""
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.02 * max(last, 1))
    _count(axes)


def log_floor(values: Array, lows: Array | None = None) -> float:
    """Return where a logarithmic y axis begins, or -inf where the axis is to be linear.

    It is logarithmic where the values are positive and span more than two decades.

    Args:
        values: of the lines.
        lows: lower ends of the bands, > 0. The axis has room for them, but for those that are
            further than a decade below all lines.
    """
    if not len(values) or values.min() <= 0 or values.max() <= 100 * values.min():
        return -math.inf
    lowest = values.min() if lows is None else np.nanmin(np.append(lows, values))
    return float(max(lowest, values.min() / 10) / 1.5)


def fit_scale(axes: Axes, floor: float) -> None:
    """Make the y axis logarithmic from a `log_floor` on, once all is drawn; not from -inf."""
    if floor > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)


def _count(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def learning_curve(folder: Path, into: Path | None = None) -> list[Path]:
    """Draw learning_curves.png of a run's folder: losses and held-out metrics.

    A panel for the outer loss, one for the inner loss, and those of the `eval/` metrics, see
    `panels`; x axes in outer steps and, where the log counts them, in inner steps. Where there are
    more than `MOST_PANELS`, the others are in learning_curves_2.png and so on.

    Args:
        folder: the run's.
        into: where the figures go; the run's figures/ by default.

    Returns:
        The figures' paths; none when the log has no metric at two steps.
    """
    logged = read_curves(folder / "metrics.jsonl")
    # One point is no curve, and drawing it takes a second: many tables evaluate at the end alone.
    curves = {name: curve for name, curve in logged.items() if len(curve.outer) > 1}
    evaluated = sorted(name for name in curves if name.startswith("eval/"))
    losses = (name for name in ("outer/loss", "inner/loss") if name in curves)
    drawn: list[list[str]] = [[name] for name in losses]
    drawn += panels(evaluated)
    path = (into or folder / "figures") / "learning_curves.png"
    parts = [drawn[at : at + MOST_PANELS] for at in range(0, len(drawn), MOST_PANELS)]
    return [_curves(curves, part, numbered(path, at)) for at, part in enumerate(parts)]


def panels(names: Sequence[str]) -> list[list[str]]:
    """Return what each panel shows of the `eval/` metrics, most of them one.

    `eval/weight/a` and `eval/weight/b`, one metric of several things, share a panel. So do
    `eval/loss` and `eval/uniform/loss`, one metric of two models.
    """
    grouped: dict[str, list[str]] = {}
    for name in names:
        group, _, last = name.rpartition("/")
        alike = f"eval/{last}"
        key = name if group == "eval" else alike if alike in names else group
        grouped.setdefault(key, []).append(name)
    return list(grouped.values())


def numbered(path: Path, at: int) -> Path:
    """Return the path of the `at`-th of several figures, from 0: its own, then name_2 and so on."""
    return path.with_stem(f"{path.stem}_{at + 1}") if at else path


def _curves(curves: dict[str, Curve], drawn: Sequence[Sequence[str]], path: Path) -> Path:
    last = max(curves[name].outer[-1] for names in drawn for name in names)
    columns = len(drawn) if len(drawn) <= 3 else 2 if len(drawn) == 4 else 3
    rows = math.ceil(len(drawn) / columns)
    with new_figure(path, 3.6 * columns, 2.9 * rows) as figure:
        for at, names in enumerate(drawn):
            axes = figure.add_subplot(rows, columns, at + 1)
            if len(names) == 1:
                axes.set_title(names[0])
                _panel(axes, curves[names[0]], color=_LEVELS[names[0].split("/")[0]])
            else:
                _several(axes, {name: curves[name] for name in names})
            fit_scale(axes, log_floor(np.concatenate([curves[name].value for name in names])))
            outer_axis(axes, last)
            inner_axis(axes, curves[names[0]].outer, curves[names[0]].inner)
    return path


def _several(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw several metrics in one panel, titled with what their names share; the rest is a key."""
    pairs = [name.rpartition("/")[::2] for name in curves]
    groups, lasts = (list(dict.fromkeys(part)) for part in zip(*pairs, strict=True))
    axes.set_title(groups[0] if len(groups) == 1 else f"eval/{lasts[0]}")
    for index, ((group, last), curve) in enumerate(zip(pairs, curves.values(), strict=True)):
        label = last if len(groups) == 1 else group.removeprefix("eval/")
        _panel(axes, curve, label=label, **line(index))
    axes.legend(
        fontsize=7, ncols=2 if len(curves) <= 8 else 3, loc="upper center",
        bbox_to_anchor=(0.5, -0.2), handlelength=1.4, columnspacing=1.0,
    )  # fmt: skip


_LEVELS = {"outer": PALETTE[0], "inner": PALETTE[1], "eval": PALETTE[2]}


def _panel(axes: Axes, curve: Curve, **style: Any) -> None:
    smooth = binned(curve)
    if len(smooth.outer) < len(curve.outer):
        axes.plot(curve.outer, curve.value, alpha=0.25, linewidth=0.5, color=style["color"])
    marker = "o" if len(smooth.outer) <= 25 else None
    axes.plot(smooth.outer, smooth.value, marker=marker, markersize=3.5, **style)
