"""What a finished run has made, as artifacts and tables of Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metaopt.files.numbers import or_nan
from metaopt.runs.contents import delivered
from metaopt.runs.export import FILES


def artifacts(run_id: str, folder: Path, models: bool) -> Iterator[Any]:
    """Yield artifacts of the types outer and product, of the files in a run's folder; and model.

    Args:
        run_id: names the artifacts, such as outer-<id>.
        folder: of the run, an absolute path: files stay where they are until they are sent.
        models: whether there is one of the trained inner level and of the folders delivered.
    """
    outer = [folder / name for name in FILES if name.startswith("outer.")]
    made = sorted(path for path in folder.iterdir() if delivered(path))
    products = {
        "outer": [path for path in outer if path.is_file()],
        "product": [path for path in made if path.is_file()],
        "model": [folder / "inner.safetensors", *(p for p in made if p.is_dir())] if models else [],
    }
    for kind, paths in products.items():
        if present := [path for path in paths if path.exists()]:
            yield _artifact(kind, run_id, present)


def _artifact(kind: str, run_id: str, paths: list[Path]) -> Any:
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run_id}", type=kind)
    for path in paths:  # not copied: immutable
        if path.is_dir():
            artifact.add_dir(str(path), name=path.name, policy="immutable", skip_cache=True)
        else:
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def tables(result: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and the tables of the csv files of a run, and its replicates as one."""
    import pandas as pd
    import wandb

    for path in sorted([*folder.glob("*.csv"), *(folder / "figures").glob("*.csv")]):
        yield f"tables/{path.stem}", wandb.Table(dataframe=pd.read_csv(path))
    if replicates := result.get("replicates"):
        values = {k: [or_nan(x) for x in v] for k, v in replicates.items()}
        count = len(next(iter(values.values())))
        frame = pd.DataFrame({"seed": result.get("seeds") or range(count), **values})
        yield "tables/replicates", wandb.Table(dataframe=frame)
