"""What the report shows: the `report:` key of an experiment, and the command line's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from metaopt.files.errors import listed
from metaopt.report.collect import Collection, ReportError
from metaopt.report.ranges import Range
from metaopt.runs.directions import lower_is_better

COLUMNS = {
    "iqm": "interquartile mean over seeds with its bootstrap interval",
    "losses": "in how many seeds a method is worse than its baseline, beside where it is better",
    "improvement": "probability that a run of a method is better than one of its baseline",
    "budget": "what a run has spent on average, in the table of results",
}
"""Columns that a table has on request."""

LARGE = 1e6
"""From here on a number is in scientific notation, such as a loss that has diverged."""


@dataclass(frozen=True)
class Settings:
    """The keys of `report:` in an experiment's YAML.

    Args:
        title: the table's heading.
        metrics: the table's columns; when empty every `eval/` metric but those of single things,
            such as `eval/weight/<domain>`.
        columns: further columns, some of `COLUMNS`.
        baseline: the method that the others are compared with, seed by seed; or, by method, the
            one that it is compared with; or `None`.
        methods: order of the table's lines; methods that are not named follow.
        group: what precedes the label of a run, such as "2 labels per class", where one table shows
            the methods under several settings.
        scale: factor of the numbers shown, one for all metrics or by metric (100 for percent).
        digits: digits after the point, one for all metrics or by metric.
        labels: heading of a metric's column, by metric.
        ranges: lowest and highest value that a metric can have, not scaled, by metric or pattern,
            such as `eval/best_of_*: [0, 100]`; those of shares are known, see
            `metaopt.report.ranges`. No interval is drawn beyond them.
        lower_is_better: metrics where a smaller value wins; by default those whose names speak of
            a loss, an error (a Brier score, a calibration error), a perplexity, a regret or a
            distance and do not end as an accuracy, an F1 or another score does.
        command: the command that made the runs.
        reported: figures of papers, each {method, metric, value, source} and perhaps `recall: true`
            for one that was quoted from memory.
    """

    title: str | None = None
    metrics: Sequence[str] = ()
    columns: Sequence[str] = ()
    baseline: str | Mapping[str, str] | None = None
    methods: Sequence[str] = ()
    group: str | None = None
    scale: float | Mapping[str, float] = 1.0
    digits: int | Mapping[str, int] = 3
    labels: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lower_is_better: Sequence[str] | None = None
    command: str | None = None
    reported: Sequence[Mapping[str, Any]] = ()

    @property
    def baselines(self) -> list[str]:
        """Every method that some method is compared with."""
        if isinstance(self.baseline, Mapping):
            return list(self.baseline.values())
        return [] if self.baseline is None else [self.baseline]

    def against(self, method: str) -> str | None:
        """Return the method that this one is compared with, or `None`."""
        if isinstance(self.baseline, Mapping):
            return self.baseline.get(method)
        return None if self.baseline == method else self.baseline

    def factor(self, metric: str) -> float:
        """Return what a metric is multiplied by before it is shown."""
        return float(_of(self.scale, metric, 1.0))

    def show(self, metric: str, value: float, sign: bool = False) -> str:
        """Return an already scaled number with the metric's digits."""
        digits = int(_of(self.digits, metric, 3))
        form = f".{digits}f" if abs(value) < LARGE else f".{max(digits, 1)}e"
        return format(value, f"+{form}" if sign else form)

    def label(self, metric: str) -> str:
        """Return the heading of a metric's column."""
        return str(self.labels.get(metric, metric))

    def lower(self, metric: str) -> bool:
        """Return whether a smaller value of the metric wins."""
        if self.lower_is_better is not None:
            return metric in self.lower_is_better
        return bool(lower_is_better(metric))

    def range_of(self, metric: str) -> Range | None:
        """Return the stated range of a metric, not scaled; that of the first pattern it matches."""
        matching = (ends for name, ends in self.ranges.items() if fnmatchcase(metric, name))
        return next(((float(low), float(high)) for low, high in matching), None)


def _of(setting: Any, metric: str, default: float) -> Any:
    return setting.get(metric, default) if isinstance(setting, Mapping) else setting


def settings_for(
    runs: Collection,
    metrics: Sequence[str] | None,
    baseline: str | None,
    columns: Sequence[str] = (),
) -> Settings:
    """Return the experiment's settings with the command line's options in their place.

    Raises:
        ReportError: an unknown key of `report:`, an unknown metric or column, columns that compare
            where there is no baseline or that take splits of one data set to be independent, or a
            baseline of the command line that no finished run has.
    """
    reports = [c.config["report"] for c in runs.cells if c.config.get("report")]
    stated: Mapping[str, Any] = reports[0] if reports else {}
    _check_known("key of report", list(stated), [f.name for f in fields(Settings)])
    settings = Settings(**{k: v for k, v in stated.items() if v is not None})
    for entry in settings.reported:
        if not {"method", "metric", "value", "source"} <= set(entry):
            raise ReportError(
                "Each entry of report.reported needs method, metric, value and source; got "
                f"{entry}."
            )
    for metric, ends in settings.ranges.items():
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ReportError(
                f"report.ranges of {metric} needs its lowest and its highest value, such as "
                f"[0, 100]; got {ends}."
            )
    evaluated = [name for name in runs.metric_names if name.startswith("eval/")]
    held_out = [name for name in evaluated if name.count("/") == 1] or evaluated
    chosen = metrics or settings.metrics or held_out or runs.metric_names
    # Of an experiment's own metrics, its first runs may measure only some.
    stated_alone = not metrics and any(name in runs.metric_names for name in chosen)
    _check_known("metric", [] if stated_alone else chosen, runs.metric_names)
    if baseline is not None:
        _check_baseline(baseline, runs)
    columns = list(dict.fromkeys([*settings.columns, *columns]))
    settings = replace(
        settings, metrics=chosen, baseline=baseline or settings.baseline, columns=columns
    )
    _check_columns(settings, runs)
    return settings


def _check_columns(settings: Settings, runs: Collection) -> None:
    _check_known("column", settings.columns, list(COLUMNS))
    compared = [name for name in ("losses", "improvement") if name in settings.columns]
    if compared and settings.baseline is None:
        raise ReportError(
            f"--columns {' '.join(compared)}: compares with a baseline; name one with --baseline. "
            f"There are:\n{listed(runs.methods)}"
        )
    independent = [name for name in ("iqm", "improvement") if name in settings.columns]
    if independent and runs.resplit:
        raise ReportError(
            f"--columns {' '.join(independent)}: takes seeds to be independent, and those of this "
            "experiment are splits of one data set. Drop it."
        )


def _check_baseline(baseline: str, runs: Collection) -> None:
    if baseline in runs.methods:
        return
    text = f"Unknown baseline: {baseline}. There are:\n{listed(runs.methods)}"
    if runs.incomplete:  # what a method is called depends on the runs that it is told apart from
        path, why = runs.incomplete[0]
        text += (
            "\nMethods are named by what differs among finished runs, and "
            f"{len(runs.incomplete)} others are left out, such as\n  {path}: {why}"
        )
    raise ReportError(text)


def _check_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = "\n".join(f"  {name}" for name in known)
        raise ReportError(f"Unknown {what}: {', '.join(unknown)}. There are:\n{listed}")
