"""A model's card names what it is made of as it was published, and never by a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaopt.data.folder import models
from metaopt.data.origin import Origin, origin


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_a_fetched_model_is_known_wherever_it_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, elsewhere = models()[name], tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "SOURCE.md").write_text(f"| SHA-256 of its wheel | {entry['sha256']} |")
    (elsewhere / "README.md").write_text("---\nlicense: mit\nbase_model: another/one\n---\n")
    expected = Origin(entry["id"], "apache-2.0")
    assert origin(str(elsewhere)) == origin(elsewhere) == expected
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    (tmp_path / "models").mkdir()
    elsewhere.rename(tmp_path / "models" / name)
    assert origin(name) == expected


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("---\nlicense: mit\nbase_model: owner/name\n---\n# Title", Origin("owner/name", "mit")),
        ("---\nbase_model:\n- a/b\n- c/d\n---\n", Origin("a/b")),
        ("---\nlicense: mit\nbase_model: /home/me/model\n---\n", Origin("", "mit")),
        ("# Title\n\n---\nlicense: mit\n---\n", Origin()),
        ("---\n: [\n---\n", Origin()),
        ("---\n- a list\n---\n", Origin()),
        (None, Origin()),
    ],
)
def test_another_folder_says_it_in_its_readme(
    page: str | None, expected: Origin, tmp_path: Path
) -> None:
    if page is not None:
        (tmp_path / "README.md").write_text(page)
    assert origin(tmp_path) == expected


def test_an_id_of_the_hub_and_a_folder_of_its_cache(tmp_path: Path) -> None:
    assert origin("owner/name") == Origin("owner/name")
    for repository, name in (("models--owner--na-me", "owner/na-me"), ("models--gpt2", "gpt2")):
        snapshot = tmp_path / repository / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        assert origin(snapshot) == Origin(name)
    assert origin({"model_type": "llama"}) == origin(None) == Origin()
