"""What wandb needs of its server, on loopback: history as lines by offset, and runs to resume.

It stands for the server where that is a file of lines: a chunk is written at its offset, over what
was there. What a run is told when it asks whether to resume is made of these lines.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "me"}


@dataclass
class ServedRun:
    """A run on the server.

    Attributes:
        files: lines of a file by number.
        exit_code: with which it was finished, or `None`.
        artifacts: types of the artifacts.
        config, group, job_type, tags: as sent.
    """

    files: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None
    artifacts: list[str] = field(default_factory=list)
    config: str = "{}"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)

    def history(self) -> list[dict[str, Any]]:
        """Return the rows in order; each line must be there."""
        lines = self.files.get("wandb-history.jsonl", {})
        assert sorted(lines) == [*range(len(lines))]
        return [json.loads(lines[number]) for number in sorted(lines)]

    def summary(self) -> dict[str, Any]:
        lines = self.files.get("wandb-summary.json", {0: "{}"})
        return dict(json.loads(lines[max(lines)]))


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, ServedRun]]]:
    """Yield the address of a server and its runs by id."""
    runs: dict[str, ServedRun] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            return gzip.decompress(content) if zipped else content

        def do_PUT(self) -> None:
            self.body()
            self.reply({})

        def do_POST(self) -> None:
            content = self.body()
            if self.path.endswith("/file_stream"):
                stream(runs[self.path.split("/")[-2]], json.loads(content))
                self.reply({})
            elif self.path == "/graphql":
                asked = json.loads(content)
                name = re.search(r"(?:query|mutation) (\w+)", asked["query"])
                variables = asked.get("variables") or {}
                place = f"http://{self.headers['Host']}"
                self.reply({"data": answer(name[1] if name else "", variables, runs, place)})
            else:
                self.reply({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", runs
    finally:
        server.shutdown()
        server.server_close()


def stream(run: ServedRun, sent: dict[str, Any]) -> None:
    for name, chunk in (sent.get("files") or {}).items():
        lines = run.files.setdefault(name, {})
        lines |= dict(enumerate(chunk["content"], chunk["offset"]))
    if sent.get("complete"):
        run.exit_code = sent["exitcode"]


def answer(name: str, asked: dict[str, Any], runs: dict[str, ServedRun], place: str) -> Any:
    if name == "Viewer":
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip
    if name == "ServerFeaturesQuery":
        return {"serverInfo": {"features": []}}
    if name == "RunResumeStatus":
        return {"model": {"id": "p", "name": asked["project"], "entity": ENTITY,
                          "bucket": status(asked["name"], runs.get(asked["name"]))}}  # fmt: skip
    if name == "UpsertBucket":
        return {"upsertBucket": upserted(asked, runs)}
    if name == "CreateRunFiles":
        files = [{"name": f, "uploadUrl": f"{place}/files/{f}"} for f in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
    if name == "CreateArtifact":
        made = asked["input"]
        runs[made["runName"]].artifacts.append(made["artifactTypeName"])
        known = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": known}}  # its files are there, then
    return {}


def upserted(asked: dict[str, Any], runs: dict[str, ServedRun]) -> dict[str, Any]:
    name, inserted = asked["name"], asked["name"] not in runs
    run = runs.setdefault(name, ServedRun())
    run.config = asked.get("config") or run.config
    run.group = asked.get("groupName") or run.group
    run.job_type = asked.get("jobType") or run.job_type
    run.tags = asked.get("tags") or run.tags
    project = {"id": "p", "name": asked.get("project") or "p", "entity": ENTITY}
    bucket = {"id": "b", "name": name, "displayName": name, "description": "", "sweepName": None,
              "config": run.config, "project": project, "historyLineCount": 0}  # fmt: skip
    return {"bucket": bucket, "inserted": inserted}


def status(name: str, run: ServedRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    history = run.files.get("wandb-history.jsonl", {})
    return {
        "id": "b", "name": name, "displayName": name, "logLineCount": 0,
        "historyLineCount": len(history), "eventsLineCount": 0, "eventsTail": "[]",
        "historyTail": json.dumps([history[n] for n in sorted(history)[-1:]]),
        "summaryMetrics": json.dumps(run.summary()), "config": run.config, "tags": run.tags,
        "notes": "", "wandbConfig": json.dumps({"t": 1}),
    }  # fmt: skip
