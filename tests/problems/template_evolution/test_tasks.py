"""A user's own queries: checked by expressions, refused with file and line."""

import gzip
import json

import pytest

from metaopt.problems.template_evolution.tasks import PromptFile


def write(folder, *rows):
    path = folder / "queries.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def test_outcomes_follow_the_expressions(tmp_path):
    both = {"query": "q", "success": r"\bparis\b", "failure": "sorry"}
    task = PromptFile(write(tmp_path, both, {"query": "r", "success": "yes"}, {"query": "s"}))
    said = {"Paris it is": True, "Sorry, no": False, "hm": None, "sorry, paris": None}
    assert {text: task.check(0, text, 0) for text in said} == said
    assert [task.check(1, text, 0) for text in ("YES", "no")] == [True, False]
    assert task.check(2, "yes", 0) is None


def test_first_prompts_are_drawn_without_replacement(tmp_path):
    known = ["a", "b", "c", "d"]
    task = PromptFile(
        write(tmp_path, {"query": "q", "success": "x", "prompts": known}, {"query": "r"})
    )
    assert sorted(task.prompts(0, 4, key=1)) == known
    assert sorted(task.prompts(0, 9, key=1)) == known
    assert len(set(task.prompts(0, 2, key=3))) == 2
    assert task.prompts(1, 3, key=0) == ["r"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", r"queries.jsonl:2 is not valid JSON"),
        ("[]", r":2 needs an object with a text under 'query'"),
        ({"query": ""}, r":2 needs an object with a text under 'query'"),
        ({"query": "q", "success": "("}, r":2: 'success' is not a regular expression"),
        ({"query": "q", "success": 3}, r":2: 'success' is not a regular expression"),
        ({"query": "q", "prompts": "a"}, r":2: 'prompts' must be a list of texts"),
        ({"query": "q", "canary": "a"}, r":2 has the unknown key 'canary'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        PromptFile(write(tmp_path, {"query": "fine"}, row))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no record"):
        PromptFile(write(tmp_path))


def test_a_compressed_array_is_read_as_well(tmp_path):
    path = tmp_path / "queries.json.gz"
    path.write_bytes(gzip.compress(json.dumps([{"query": "q"}, {"query": "r"}]).encode()))
    assert PromptFile(str(path)).queries == ["q", "r"]
