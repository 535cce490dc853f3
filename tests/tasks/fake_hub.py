"""A hub on loopback with one small data set, enough of one for the ordinary libraries to load it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

REPOSITORY = "nyu-mll/glue"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: cola
  data_files:
  - split: train
    path: cola/train.jsonl
  - split: validation
    path: cola/validation.jsonl
---
"""


def lines(num_rows: int, word: str) -> bytes:
    rows = ({"sentence": f"{word} {i}", "label": i % 2, "idx": i} for i in range(num_rows))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "README.md": CARD.encode(),
    "cola/train.jsonl": lines(6, "train"),
    "cola/validation.jsonl": lines(5, "validation"),
}


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: list[str]

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.requests.append(f"{self.command} /{path}")
        files = f"datasets/{REPOSITORY}/resolve/"
        info = f"api/datasets/{REPOSITORY}"
        if path.startswith(files):
            self._file(path.removeprefix(files).split("/", 1)[1])
        elif path.startswith(f"{info}/tree/"):
            self._tree(path.removeprefix(f"{info}/tree/").partition("/")[2])
        elif path == info or path.startswith(f"{info}/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            self._reply(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        if name in FILES:
            etag = hashlib.sha1(FILES[name]).hexdigest()
            self._reply(200, FILES[name], {"ETag": f'"{etag}"', "Content-Type": "application/octet-stream"})
        else:
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _tree(self, folder: str) -> None:
        inside = f"{folder}/" if folder else ""
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in FILES.items()
            if name.startswith(inside) and "/" not in name.removeprefix(inside)
        ]
        if not folder:
            entries.append({"type": "directory", "path": "cola", "size": 0, "oid": COMMIT})
        self._reply(200, json.dumps(entries).encode())

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Repo-Commit": COMMIT,
        }
        for name, value in (common | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serve() -> Iterator[tuple[str, list[str]]]:
    """Run the hub; yield its URL and the list of requests it gets."""
    requests: list[str] = []
    handler = type("Hub", (_Hub,), {"requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
