"""`metaopt-label`: labels of an exact solver, of a model, what is resumed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from metaopt.cli.labelling import main
from metaopt.files.lock import locked
from metaopt.llm import Reply, Transient, Usage
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy, solve
from metaopt.problems.process_reward.data.formats import Chain, read, write
from metaopt.problems.process_reward.data.process_files import process_files
from metaopt.problems.process_reward.labelling import arithmetic

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
ROWS = [
    {"question": "1 +2 *3", "response": "1+2 = 3\n3*3 = 4", "answer": "4"},
    {"question": "1 +2 *3", "response": "1+2 = 3\n3*3 = 0", "answer": "4"},
    {"question": "2 -4", "response": "2-4 = 3", "answer": "so it is #### 3"},
]


def put(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver without mistakes, whose labels are those of an exact check."""
    monkeypatch.setattr(ArithmeticPolicy, "walk", lambda _, start, moves, draw: solve(start, moves))


def test_labels_are_written_and_read_back(
    sure: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = put(tmp_path / "mine.jsonl", ROWS), tmp_path / "labels"
    main((source, str(folder), "--policy", "arithmetic", "--batch", "2"))
    labels = [chain.labels for chain in read(folder)]
    assert labels == [(1.0, 1.0), (1.0, 0.0), (1.0,)]
    printed = capsys.readouterr()
    assert "3 solutions, 5 of 5 steps labelled with 20 rollouts; mean label 0.800." in printed.out
    assert printed.err.splitlines() == ["2 of 3 solutions", "3 of 3 solutions"]
    meta = put(
        tmp_path / "meta.jsonl",
        [{"question": f"{i} +1", "response": f"{i}+1 = 0", "outcome": i == 4} for i in range(5)],
    )
    data = process_files(str(folder), meta)
    assert [(c.domain, c.labels) for c in data.train] == [("mine", x) for x in labels]
    assert sorted(bool(c.outcome) for c in data.meta) == [False, True]


def test_the_next_command_is_composed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, meta = put(tmp_path / "mine.jsonl", ROWS), str(Path(SAMPLES, "solutions.jsonl"))
    main((source, str(tmp_path / "labels"), "--policy", "arithmetic"))
    shown = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: metaopt ")
    with initialize_config_module("metaopt.configs", version_base="1.3"):
        cfg = compose("train", shown.replace("=FILE", f"={meta}").split())
    data = instantiate(cfg.problem.task.data, _convert_="all")
    assert len(data.train) == 3


def test_labels_that_are_all_zero_or_missing_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "mine.jsonl", [{**row, "answer": "11"} for row in ROWS])
    command = ("--policy", "arithmetic", "--maximum", "4")
    main((source, str(tmp_path / "zero"), *command))
    assert "No completion ended with the right answer." in capsys.readouterr().out

    def complete(self: Any, prompts: Any, prefixes: Any, draw: Any) -> list[str | None]:
        return [None if len(prefix) == 1 else "" for prefix in prefixes]

    monkeypatch.setattr(arithmetic.ArithmeticCompletion, "complete", complete)
    main((put(tmp_path / "two.jsonl", ROWS[:2]), str(tmp_path / "some"), *command))
    assert "2 steps have no label, since no completion" in capsys.readouterr().out
    assert "cut off" in refused(
        capsys, put(tmp_path / "one.jsonl", ROWS[2:]), str(tmp_path / "none"), *command
    )


def test_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ROWS[i % 3] for i in range(9)]
    source = put(tmp_path / "mine.jsonl", rows)
    command = (source, str(tmp_path / "a"), "--policy", "arithmetic", "--batch", "3")
    main(command)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    (tmp_path / "a" / "00001.jsonl").unlink()
    main(command)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == whole

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ArithmeticPolicy, "walk", interrupted)
    assert main((source, str(tmp_path / "b"), *command[2:])) == 130


def test_one_process_writes_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (put(tmp_path / "mine.jsonl", ROWS), str(tmp_path / "a"), "--policy", "arithmetic")
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        assert "is being written to by process" in refused(capsys, *command)
    assert main(command) == 0


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("00000.jsonl", '{"question": ', "Delete it; the same command labels its solutions again"),
        ("00000.jsonl", "[1]", "00000.jsonl is damaged: it is not a shard"),
        ("labelling.settings", "", "Name another folder"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, what: str
) -> None:
    command = (put(tmp_path / "mine.jsonl", ROWS), str(tmp_path / "a"), "--policy", "arithmetic")
    main(command)
    (tmp_path / "a" / name).write_text(content)
    assert what in refused(capsys, *command)


def test_chains_of_any_format_have_their_answers_in_another_file(
    sure: None, tmp_path: Path
) -> None:
    write(tmp_path / "chains.json.gz", [Chain("1 +2 *3", ("1+2 = 3", "3*3 = 4"), domain="d")])
    answers = put(tmp_path / "answers.jsonl", [{"problem": " 1 +2  *3", "answer": r"\boxed{4}"}])
    stepwise = tmp_path / "trl.jsonl"
    main((
        str(tmp_path / "chains.json.gz"), str(tmp_path / "labels"), "--answers", answers,
        "--policy", "arithmetic", "--stepwise", str(stepwise), "--hard",
    ))  # fmt: skip
    (row,) = map(json.loads, stepwise.read_text().splitlines())
    assert row["labels"] == [True, True]


def test_columns_may_have_other_names(sure: None, tmp_path: Path) -> None:
    rows = [{"task": r["question"], "said": r["response"], "key": r["answer"]} for r in ROWS]
    source, folder = put(tmp_path / "mine.jsonl", [*rows, {"x": 1}]), tmp_path / "labels"
    command = (source, str(folder), "--policy", "arithmetic", "--columns", "question=task")
    names = ("response=said", "answer=key")
    assert main((*command, *names)) == 2
    with pytest.warns(UserWarning, match="1 of 4, left out"):
        assert main((*command, *names, "--lenient")) == 0
    assert [c.labels for c in read(folder)] == [(1.0, 1.0), (1.0, 0.0), (1.0,)]


def test_a_model_of_transformers_labels_steps(tmp_path: Path) -> None:
    """Random words: what ends by itself within three tokens is judged, the rest is not counted."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from metaopt.nn.word_tokenizer import word_tokenizer

    words = word_tokenizer(text for row in ROWS for text in row.values())
    words.eos_token = "[STEP]"
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, eos_token_id=words.eos_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    source = put(tmp_path / "mine.jsonl", ROWS)
    main((
        source, str(tmp_path / "labels"), "--policy", "transformers",
        "--model", str(tmp_path / "model"), "--max-tokens", "3", "--maximum", "4",
    ))  # fmt: skip
    chains = read(tmp_path / "labels")
    counts = np.array([x or 0 for chain in chains for x in chain.rollouts])
    assert counts.max() <= 4
    assert [len(chain.labels) for chain in chains] == [2, 2, 1]


def test_mistakes_are_answered_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = put(tmp_path / "mine.jsonl", ROWS), str(tmp_path / "labels")
    command = (source, folder, "--policy", "arithmetic")
    bare = put(tmp_path / "bare.jsonl", [{"question": "1 +1", "response": "1+1 = 2", "key": "2"}])
    says = refused(capsys, bare, *command[1:])
    assert "1 of 1 chains ask a question that" in says
    assert "the first row's columns are question, response, key" in says
    other = put(tmp_path / "two.jsonl", [ROWS[0], {**ROWS[0], "answer": "5"}])
    assert "has the answer '5' here and '4' before" in refused(capsys, other, *command[1:])
    assert "there is no file or folder none.jsonl" in refused(capsys, "none.jsonl", *command[1:])
    says = refused(capsys, *command, "--columns", "question")
    assert "--columns needs COLUMN=NAME" in says
    assert "columns={steps: x}: no row has" in refused(capsys, *command, "--columns", "steps=x")
    assert "--maximum must be at least --minimum" in refused(capsys, *command, "--minimum", "9")
    assert "--policy server needs --model" in refused(capsys, source, folder, "--policy", "server")
    assert "--judge needs --policy server" in refused(
        capsys, source, folder, "--policy", "transformers", "--model", "m", "--judge", "j"
    )
    several = (
        "--minimum",
        "9",
        "--limits",
        "calls=3",
        "--hard",
        "--device",
        "cuda",
        "--limit",
        "0",
    )
    said = refused(capsys, "none.jsonl", folder, "--policy", "server", *several).splitlines()
    assert [re.split(";|, .json.gz", line)[0] for line in said] == [
        "metaopt-label: --device needs --policy transformers",
        "--hard is of the file that --stepwise FILE writes",
        "--limit must be at least 1",
        "--maximum must be at least --minimum",
        "there is no file or folder none.jsonl. Give a file (.json",
        "--policy server needs --model.",
    ]
    assert not Path(folder).exists()
    words = put(tmp_path / "words.jsonl", [{**ROWS[0], "question": "one and one"}])
    says = refused(capsys, words, *command[1:])
    assert "questions such as '3 +2 *4'" in says
    assert "this is none: 'one and one'. For other questions choose --policy transformers" in says
    main(command)
    assert "seed=0 (now 1)" in refused(capsys, *command, "--seed", "1")
    with pytest.raises(SystemExit, match="2"):
        main((source, folder))
    assert "the following arguments are required: --policy" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, blocked = put(tmp_path / "mine.jsonl", ROWS), tmp_path / "mine.jsonl"
    model = ("--policy", "transformers", "--model", str(tmp_path / "no model"))
    said = refused(capsys, source, str(blocked / "labels"), *model)
    assert f"{blocked / 'labels'} cannot be written to (Not a directory)" in said
    assert "Name another place as FOLDER" in said
    stepwise = ("--stepwise", str(blocked / "rows.jsonl"))
    said = refused(capsys, source, str(tmp_path / "labels"), *model, *stepwise)
    assert f"{blocked} cannot be written to" in said
    assert "--stepwise FILE" in said


def test_requests_that_failed_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = iter([True] * 3)

    async def chat(self: Any, role: str, *_: Any) -> Reply:
        if next(failing, False):
            raise Transient("HTTP 503: busy", role, after=0.0, kind="HTTP 503")
        return Reply("Final answer: 4", Usage(5, 5), "stop", "m")

    monkeypatch.setattr(OpenAICompatibleLM, "chat", chat)
    source = put(tmp_path / "mine.jsonl", ROWS[:1])
    argv = ("--policy", "server", "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert main((source, str(tmp_path / "labels"), *argv)) == 0
    assert "requests: 11, of which 3 failed (HTTP 503 3)\n" in capsys.readouterr().out


def test_a_budget_bounds_what_is_sent_over_all_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def chat(self: Any, role: str, *_: Any) -> Reply:
        asked.append(role)
        return Reply("Final answer: 4", Usage(5, 5), "stop", "m")

    monkeypatch.setattr(OpenAICompatibleLM, "chat", chat)
    source, folder = put(tmp_path / "mine.jsonl", ROWS[:1]), str(tmp_path / "labels")
    argv = (source, folder, "--policy", "server", "--model", "m")
    for sent in (5, 5):
        assert "goes on with larger --limits" in refused(capsys, *argv, "--limits", "lm_calls=5")
        assert len(asked) == sent
    assert main((*argv, "--limits", "lm_calls=20")) == 0
    assert len(asked) == 8
    away = (*argv[:-4], "--policy", "server", "--model", "m", "--base-url", "https://lm.example/v1")
    said = refused(capsys, *away)
    assert "it needs a budget: --limits lm_calls=20000, say. These solutions take 8 to 16" in said
    for words in ("lm_calls", "lm_calls=many"):
        assert "--limits needs UNIT=AMOUNT" in refused(capsys, *argv, "--limits", words)
    assert "units are lm_calls" in refused(capsys, *argv, "--limits", "calls=3")


@pytest.mark.parametrize(
    "mistake",
    [
        ("transformers", "--model", "no model"),
        ("server", "--model", "m", "--key-variable", "NO_SUCH_KEY"),
        ("arithmetic", "--stepwise", "rows.csv"),
        ("arithmetic", "--seed", "-1"),
    ],
)
def test_a_mistake_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: tuple[str, ...]
) -> None:
    source = put(tmp_path / "mine.jsonl", ROWS)
    refused(capsys, source, str(tmp_path / "labels"), "--policy", *mistake)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
