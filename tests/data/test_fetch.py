"""Downloads against a server on loopback: hashes, partial files, no connection."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest

from metaopt.data import fetch as fetching
from metaopt.data.fetch import FetchError, fetch, main
from metaopt.data.folder import data_sets

CONTENT = b'{"query": "1 + 1"}\n' * 1000


class Published(http.server.BaseHTTPRequestHandler):
    """Answers every path whose end is in `replies`; counts requests; can break off half-way."""

    replies: dict[str, bytes]
    requests: list[str]
    cut: bool

    def do_GET(self):
        self.requests.append(self.path)
        content = self.replies.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def published(monkeypatch):
    handler = type("Handler", (Published,), {"replies": {}, "requests": [], "cut": False})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(fetching, "GITHUB", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def know(monkeypatch):
    def known(*names):
        digest = hashlib.sha256(CONTENT).hexdigest()
        files = {f"sums/{n}": {"source": f"data/{n}", "sha256": digest} for n in names}
        sets = {"sums": {"repository": "some/one", "commit": "abc", "files": files}}
        monkeypatch.setattr(fetching, "data_sets", lambda: sets)

    return known


def test_files_are_written_once_under_the_data_folder(published, know, tmp_path):
    published.replies = {"a.jsonl": CONTENT, "b.jsonl": CONTENT}
    know("a.jsonl", "b.jsonl")
    paths = fetch("sums", tmp_path)
    assert paths == [tmp_path / "sums" / "a.jsonl", tmp_path / "sums" / "b.jsonl"]
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert published.requests[0] == "/some/one/raw/abc/data/a.jsonl"
    paths[1].unlink()
    assert fetch("sums", tmp_path) == paths
    assert [r.rpartition("/")[2] for r in published.requests] == ["a.jsonl", "b.jsonl", "b.jsonl"]


@pytest.mark.parametrize("fault", ["cut", "changed", "missing"])
def test_a_download_that_fails_leaves_nothing_behind(published, know, tmp_path, fault):
    published.cut = fault == "cut"
    published.replies = {"a.jsonl": CONTENT if fault == "cut" else CONTENT + b" "}
    name = "gone.jsonl" if fault == "missing" else "a.jsonl"
    message = "another content" if fault in ("cut", "changed") else r"cannot download http.*gone"
    know(name)
    with pytest.raises(FetchError, match=message):
        fetch("sums", tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_another_file_in_the_place_is_not_overwritten(published, know, tmp_path):
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "a.jsonl").write_text("mine")
    know("a.jsonl")
    with pytest.raises(FetchError, match=r"a\.jsonl is there with another content .* Move it away"):
        fetch("sums", tmp_path)
    assert (tmp_path / "sums" / "a.jsonl").read_text() == "mine"
    assert published.requests == []


def test_without_a_connection_the_command_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fetching, "GITHUB", "http://127.0.0.1:9")
    assert main(["gsm8k", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("metaopt-fetch: cannot download http://127.0.0.1:9/openai/grade-sch")
    assert f"save it as {tmp_path}/gsm8k/example_model_solutions.jsonl" in message
    assert "Traceback" not in message


def test_names_are_listed_and_unknown_ones_refused(capsys):
    assert main([]) == 0
    assert "bigbench_mistake" in capsys.readouterr().out
    assert main(["gsm9k"]) == 1
    assert "there is no data set 'gsm9k'; the names are gsm8k, " in capsys.readouterr().err
    assert main(["cifar10"]) == 1
    assert "uoft-cs/cifar10" in capsys.readouterr().err


def test_of_a_file_with_something_appended_its_beginning_is_kept(published, monkeypatch, tmp_path):
    published.replies["a"] = CONTENT + b"appended"
    entry = {"source": "a", "bytes": len(CONTENT)} | {
        key: hashlib.sha256(content).hexdigest()
        for key, content in (("published", CONTENT + b"appended"), ("sha256", CONTENT))
    }
    sets = {"sums": {"repository": "some/one", "commit": "abc", "files": {"sums/a": entry}}}
    monkeypatch.setattr(fetching, "data_sets", lambda: sets)
    for _ in range(2):
        (path,) = fetch("sums", tmp_path)
        assert path.read_bytes() == CONTENT
    assert len(published.requests) == 1
    assert [path.name for path in (tmp_path / "sums").iterdir()] == ["a"]


@pytest.mark.data
@pytest.mark.parametrize("name", data_sets())
def test_the_hashes_are_those_of_the_files_that_tables_used(name):
    folder = os.environ.get("METAOPT_DATA")
    if not folder or not (Path(folder) / next(iter(data_sets()[name]["files"]))).is_file():
        pytest.skip("METAOPT_DATA names no folder with this data set")
    for path, file in data_sets()[name]["files"].items():
        assert hashlib.sha256((Path(folder) / path).read_bytes()).hexdigest() == file["sha256"]
