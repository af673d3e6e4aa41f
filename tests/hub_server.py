"""A Hub on 127.0.0.1: as much of its HTTP protocol as pushing a pipeline and loading it by name needs.

Speaks to the unmodified client of `huggingface_hub` through HF_ENDPOINT. All files are sent within the commit; there is
no large-file storage here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory; `repos[name]` is {"private": bool, "files": {path: bytes}, "commits": [message]}."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub():
    """A hub that answers until the context ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def _sha(repo):
    return hashlib.sha1(repr((sorted(repo["files"]), len(repo["commits"]))).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, body, status=200, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status, code):
        self._answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def _repo(self, name):
        """The repository of that name, if the caller may see it."""
        repo = self.server.repos.get(name)
        allowed = repo is not None and (not repo["private"] or self.headers.get("Authorization") == f"Bearer {TOKEN}")
        if not allowed:
            self._refuse(404, "RepoNotFound")
        return repo if allowed else None

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlparse(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name, action = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path).groups()
        repo = self._repo(name)
        if repo is None:
            return None
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo["commits"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
        return self._answer({"commitUrl": f"{self.server.url}/{name}/commit/{_sha(repo)}", "commitOid": _sha(repo)})

    def _create(self, wanted):
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, {"private": private, "files": {}, "commits": []})
        self._answer({"url": f"{self.server.url}/{name}", "name": name}, status)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlparse(self.path)
        if url.path == "/api/whoami-v2":
            return self._answer({"name": "user", "type": "user", "orgs": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", url.path):
            return self._info(match[1])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", url.path):
            return self._tree(match[1], parse_qs(url.query))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", url.path):
            return self._file(match[1], unquote(match[2]))
        return self._refuse(404, "NotFound")

    def _info(self, name):
        if repo := self._repo(name):
            siblings = [{"rfilename": path} for path in repo["files"]]
            self._answer(
                {
                    "id": name,
                    "modelId": name,
                    "sha": _sha(repo),
                    "private": repo["private"],
                    "tags": [],
                    "siblings": siblings,
                }
            )

    def _tree(self, name, _):
        if repo := self._repo(name):
            files = repo["files"].items()
            self._answer(
                [{"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in files]
            )

    def _file(self, name, path):
        if repo := self._repo(name):
            if path not in repo["files"]:
                return self._refuse(404, "EntryNotFound")
            data = repo["files"][path]
            etag = hashlib.sha1(data).hexdigest()
            self._answer(data, headers={"ETag": f'"{etag}"', "X-Repo-Commit": _sha(repo), "Accept-Ranges": "bytes"})
        return None
