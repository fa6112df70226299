"""What few-shot re-ranking writes of a run: the test queries one by one, and what each gains."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.problems.few_shot_ranking.export import export
from metaopt.report.figures import line, new_figure

if TYPE_CHECKING:
    from metaopt.problems.few_shot_ranking.problem import FewShotRanking

FILE = "queries.csv"


class RankingReport(Report):
    """nDCG@20 of each test query, for each k, beside the baseline's."""

    def __init__(self, problem: FewShotRanking) -> None:
        self.problem = problem

    def snapshot(self, outer: Tree, inner: Any) -> dict[str, Any]:
        """Return by k what the test queries have with the scorer and with the baseline."""
        problem, by_shots = self.problem, {}
        for k in problem.shots:
            test = problem.test_ndcg(outer, k)
            baseline = problem.ranked_ndcg(problem.baseline, problem.split.test, k)
            by_shots[str(k)] = {"ndcg": test.ndcg, "baseline": baseline}
            if test.fused is not None:
                by_shots[str(k)]["fused"] = test.fused
        return {"queries": problem.split.test, "shots": by_shots}

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Draw the gains of the last snapshot, the queries in their order."""
        if not snapshots:
            return []
        step, last = snapshots[-1]
        path = folder / "gains.png"
        with new_figure(path, 5.6, 3.6) as figure:
            axes = figure.subplots()
            axes.axhline(0, color="black", lw=0.8)
            for i, (k, values) in enumerate(last["shots"].items()):
                gain = (values["ndcg"] - values["baseline"]).sort().values
                share = [(j + 0.5) / len(gain) for j in range(len(gain))]
                axes.plot(share, gain.tolist(), label=f"k = {k}", **line(i))
            axes.set(
                title=f"Test queries after {step:,} outer step{'s' * (step != 1)}",
                xlabel="share of the queries that gain less",
                ylabel=f"gain in nDCG@20 over {self.problem.baseline.replace('_', ' ')}",
            )
            axes.legend(frameon=False)
        return [path]

    def deliver(self, outer: Tree, inner: Any, snapshots: Snapshots, folder: Path) -> str:
        """Write queries.csv, a row for each test query and k, and the scorer of a collection."""
        last = snapshots[-1][1] if snapshots else self.snapshot(outer, inner)
        with (folder / FILE).open("w", newline="") as file:
            table = csv.writer(file)
            names = [*next(iter(last["shots"].values()))]
            table.writerow(["query", "k", *names])
            for k, values in last["shots"].items():
                columns = [values[name].tolist() for name in names]
                for query, *numbers in zip(last["queries"].tolist(), *columns, strict=True):
                    table.writerow([query, k, *(f"{x:.6g}" for x in numbers)])
        said = f"nDCG@20 of each of {len(last['queries'])} test queries: {folder / FILE}"
        if export(self.problem, outer, folder) is not None:
            said += f"\nmetaopt score {folder} FOLDER --query TEXT re-ranks a folder of documents"
        return said
