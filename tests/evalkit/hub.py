"""A stand-in for the Hugging Face hub on 127.0.0.1: the parts of its protocol that a dataset download uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves one dataset repository.

    Attributes:
        drop_after: path to bytes after which the connection is dropped, once.
        corrupt: paths whose content arrives with one byte changed.
        requests: (method, path, Range header) of every request for content.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.drop_after: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        if re.fullmatch(rf"/api/datasets/{self.repo}(/revision/\w+)?", path):
            self._send(request, 200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"})
        elif match := re.fullmatch(rf"/datasets/{self.repo}/resolve/{COMMIT}/(.+)", path):
            if match[1] not in self.files:
                self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            elif match[1].endswith(".bin"):  # large files live elsewhere
                self._send(request, 302, b"", {"Location": f"{self.endpoint}/storage/{match[1]}"})
            else:
                self._send_file(request, match[1])
        elif path.startswith("/storage/"):
            self._send_file(request, path.removeprefix("/storage/"))
        else:
            self._send(request, 404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {"_id": "1", "id": self.repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        self.requests.append((request.command, name, request.headers.get("Range")))
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        status, start = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        drop = self.drop_after.pop(name, None) if request.command == "GET" else None
        self._send(request, status, data[start:], headers, drop=drop)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        drop: int | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:drop])
        if drop is not None:
            request.wfile.flush()
            request.close_connection = True


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
