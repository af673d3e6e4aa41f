"""A Hub on 127.0.0.1 that speaks what the unmodified client of `huggingface_hub` asks for.

Repositories of models and data sets, private ones behind a token; branches, tags, commits and pull requests; small
files within the commit and large ones (binary, or over `LARGE`) through the large-file storage; downloads with ETag
and byte ranges. Everything is in memory, and nothing is forgotten: an old commit can still be loaded. The xet protocol
is not spoken, so clients set HF_HUB_DISABLE_XET.

Tests reach in: `repos`, `requests`, `lose_connection_once` and `out_of_order`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

import yaml
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

TOKEN = "hf_test"
READ_TOKEN = "hf_read_only"
USERS = {TOKEN: "user", READ_TOKEN: "reader"}
LARGE = 1 << 20
TAGS = ("unconditional-image-generation", "text-to-image", "image-to-image")  # pipeline tags that pictures have


@dataclass(frozen=True)
class File:
    """Content, and whether it lies in the large-file storage."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What names the content: sha256 of a large file, git's sha1 of a small one."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Commit:
    """A state of a repository."""

    sha: str
    files: dict[str, File]
    message: str
    parent: str | None


@dataclass
class Repo:
    """`refs` names commits: main, other branches and tags, refs/pr/N."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit")

    def commit(self, ref: str, files: dict[str, File], message: str) -> Commit:
        """Add a state, and let `ref` name it."""
        parent = self.refs.get(ref)
        content = repr((parent, message, sorted((path, file.oid) for path, file in files.items())))
        sha = hashlib.sha1((self.name + content).encode()).hexdigest()
        self.commits[sha] = Commit(sha, files, message, parent)
        self.refs[ref] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, tag, pull request or sha names."""
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def files(self) -> dict[str, bytes]:
        """Content of main by path."""
        return {path: file.data for path, file in self.at("main").files.items()}

    @property
    def messages(self) -> list[str]:
        """Messages of main's commits, newest first."""
        found, commit = [], self.at("main")
        while commit is not None:
            found.append(commit.message)
            commit = self.commits.get(commit.parent)
        return found


class Refusal(HTTPException):
    """An error with the headers by which the client tells errors apart."""

    def __init__(self, code: int, error: str, message: str):
        super().__init__(message)
        self.code, self.error, self.message = code, error, message

    def get_response(self, *_, **__) -> Response:
        headers = {"X-Error-Code": self.error, "X-Error-Message": self.message}
        return Response(json.dumps({"error": self.message}), self.code, headers, content_type="application/json")


def _rules() -> Iterator[Rule]:
    def rule(path, endpoint, *methods):
        return Rule(path, endpoint=endpoint, methods=methods)

    yield rule("/api/whoami-v2", "whoami", "GET")
    yield rule("/api/validate-yaml", "validate_yaml", "POST")
    yield rule("/api/repos/create", "create", "POST")
    yield rule("/api/repos/delete", "delete", "DELETE")
    api = "/api/<kind>/<owner>/<name>"
    for path, endpoint, method in (
        ("", "info", "GET"),
        ("/revision/<revision>", "info", "GET"),
        ("/tree/<revision>", "tree", "GET"),
        ("/tree/<revision>/<path:folder>", "tree", "GET"),
        ("/paths-info/<revision>", "paths_info", "POST"),
        ("/refs", "refs", "GET"),
        ("/commits/<revision>", "commits", "GET"),
        ("/branch/<branch>", "branch", "POST"),
        ("/tag/<revision>", "tag", "POST"),
        ("/settings", "settings", "PUT"),
        ("/preupload/<revision>", "preupload", "POST"),
        ("/commit/<revision>", "commit", "POST"),
        ("/discussions/<number>/merge", "merge", "POST"),
    ):
        yield rule(api + path, endpoint, method)
    yield rule("/lfs/<oid>", "put_large", "PUT")
    yield rule("/lfs/verify", "verify_large", "POST")
    for prefix in ("", "/datasets"):
        yield rule(f"{prefix}/<owner>/<name>.git/info/lfs/objects/batch", "batch", "POST")
        yield rule(f"{prefix}/<owner>/<name>/resolve/<revision>/<path:path>", "resolve", "GET", "HEAD")


class Hub:
    """The application. `repos["user/name"]` is a model's repository, `repos["datasets/user/name"]` a data set's."""

    def __init__(self):
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # (method, path, Range)
        self.lose_connection_once: dict[str, int] = {}  # repository -> bytes sent of its weights before that happens
        self.out_of_order = 0  # requests that write are answered 503 this many times
        self._rules = Map(list(_rules()), strict_slashes=False)
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        request = Request(environ)
        path = environ.get("RAW_URI", request.path).partition("?")[0]
        self.requests.append((request.method, path, request.headers.get("Range")))
        try:
            # The undecoded path: a revision such as refs%2Fpr%2F1 is one segment.
            endpoint, values = self._rules.bind("hub").match(path, method=request.method)
            values = {name: unquote(value) for name, value in values.items()}
            self._check_token(request)
            with self._lock:
                response = getattr(self, endpoint)(request, **values)
        except HTTPException as error:
            response = error.get_response(environ)
        return response(environ, start_response)

    # who may do what

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("Authorization")
        if given is not None and given.removeprefix("Bearer ") not in USERS:
            raise Refusal(401, "", "Invalid credentials in Authorization header")

    def _user(self, request: Request) -> str | None:
        return USERS.get(request.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repo(self, request: Request, kind: str, owner: str, name: str, writes: bool = False) -> Repo:
        if kind not in ("models", "datasets"):
            raise NotFound
        repo = self.repos.get(_key(kind, f"{owner}/{name}"))
        user = self._user(request)
        if repo is None or (repo.private and user != owner):
            raise Refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if writes:
            self._require(user, owner)
        return repo

    def _require(self, user: str | None, owner: str) -> None:
        if self.out_of_order > 0:
            self.out_of_order -= 1
            raise Refusal(503, "", "Out of order")
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        if user != owner:
            raise Refusal(403, "", f"You don't have the rights to write below '{owner}'")

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # accounts and repositories

    def whoami(self, request):
        user = self._user(request)
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        role = "write" if user == "user" else "read"
        return _json({"name": user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": role}}})

    def validate_yaml(self, request):
        errors = []
        try:
            header = yaml.safe_load(request.json["content"].split("---")[1])
            if not isinstance(header.get("license"), str):
                errors.append("license is missing")
            if header.get("pipeline_tag") not in (None, *TAGS):
                errors.append(f"pipeline_tag {header['pipeline_tag']} is not known")
            if not all(isinstance(tag, str) for tag in header.get("tags", [])):
                errors.append("tags must be strings")
        except (yaml.YAMLError, IndexError, AttributeError) as error:
            errors.append(str(error))
        return _json({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def create(self, request):
        wanted = request.json
        owner = wanted.get("organization") or self._user(request)
        self._require(self._user(request), owner)
        kind = f"{wanted.get('type') or 'model'}s"
        key = _key(kind, f"{owner}/{wanted['name']}")
        known = key in self.repos
        if not known:
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.repos[key] = Repo(kind, f"{owner}/{wanted['name']}", private)
        error = {"error": "You already created this repo"} if known else {}
        return _json({"url": f"{self.url}/{key}", "name": f"{owner}/{wanted['name']}", **error}, 409 if known else 200)

    def delete(self, request):
        wanted = request.json
        owner = wanted.get("organization") or self._user(request)
        self._repo(request, f"{wanted.get('type') or 'model'}s", owner, wanted["name"], writes=True)
        del self.repos[_key(f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}")]
        return _json({})

    def settings(self, request, **names):
        repo = self._repo(request, **names, writes=True)
        wanted = request.json
        repo.private = wanted.get("private", wanted.get("visibility") == "private")
        return _json({"private": repo.private})

    # looking

    def info(self, request, revision="main", **names):
        repo = self._repo(request, **names)
        commit = self._at(repo, revision)
        siblings = [{"rfilename": path, "size": len(f.data), "blobId": f.oid} for path, f in commit.files.items()]
        return _json(
            {
                "_id": "1",
                "id": repo.name,
                "sha": commit.sha,
                "private": repo.private,
                "tags": [],
                "siblings": siblings,
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
            }
        )

    def tree(self, request, revision, folder="", **names):
        commit = self._at(self._repo(request, **names), revision)
        prefix = f"{folder}/" if folder else ""
        below = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
        if folder and not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        folders = {"/".join(p.split("/")[:n]) for p in below for n in range(1, p.count("/") + 1)} - {folder}
        recursive = request.args.get("recursive", "").lower() in ("1", "true")
        entries = [*map(_folder_entry, sorted(folders)), *(_file_entry(p, f) for p, f in below.items())]
        return _json([e for e in entries if e["path"].startswith(prefix) and (recursive or _directly(e, prefix))])

    def paths_info(self, request, revision, **names):
        commit = self._at(self._repo(request, **names), revision)
        paths = request.form.getlist("paths") or (request.get_json(silent=True) or {}).get("paths", [])
        found = [_file_entry(path, commit.files[path]) for path in paths if path in commit.files]
        found += [_folder_entry(p) for p in paths if any(path.startswith(f"{p}/") for path in commit.files)]
        return _json(found)

    def refs(self, request, **names):
        repo = self._repo(request, **names)
        entries = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.refs.items()]
        pulls = [{**e, "ref": e["name"]} for e in entries if e["name"].startswith("refs/pr/")]
        branches = [e for e in entries if not e["name"].startswith("refs/pr/")]
        return _json({"branches": branches, "tags": [], "converts": [], "pullRequests": pulls})

    def commits(self, request, revision, **names):
        repo = self._repo(request, **names)
        found, commit = [], self._at(repo, revision)
        while commit is not None:
            found.append(
                {
                    "id": commit.sha,
                    "title": commit.message,
                    "message": "",
                    "authors": [],
                    "date": "2026-01-01T00:00:00Z",
                }
            )
            commit = repo.commits.get(commit.parent)
        return _json(found)

    def resolve(self, request, owner, name, revision, path):
        kind = "datasets" if request.path.startswith("/datasets/") else "models"
        commit = self._at(self._repo(request, kind, owner, name), revision)
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        response = Response(file.data, mimetype="application/octet-stream")
        response.headers.update({"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"})
        if file.large:
            response.headers.update({"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.data))})
        response.set_etag(file.oid)
        response.make_conditional(request.environ, accept_ranges=True, complete_length=len(file.data))
        return self._lose_connection(request, path, response)

    def _lose_connection(self, request: Request, path: str, response: Response) -> Response:
        for name in list(self.lose_connection_once):
            if request.method == "GET" and f"/{name}/" in request.path and path.endswith(".safetensors"):
                length = response.content_length
                response.set_data(response.get_data()[: self.lose_connection_once.pop(name)])
                response.content_length = length  # promised, not kept
        return response

    # writing

    def branch(self, request, branch, **names):
        repo = self._repo(request, **names, writes=True)
        repo.refs[branch] = self._at(repo, (request.get_json(silent=True) or {}).get("startingPoint", "main")).sha
        return _json({})

    def tag(self, request, revision, **names):
        repo = self._repo(request, **names, writes=True)
        repo.refs[request.json["tag"]] = self._at(repo, revision).sha
        return _json({})

    def preupload(self, request, revision, **names):
        repo = self._repo(request, **names, writes=True)
        files = self._at(repo, revision).files
        answers = []
        for wanted in request.json["files"]:
            path, binary = wanted["path"], b"\0" in base64.b64decode(wanted["sample"])
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if binary or wanted["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": files[path].oid if path in files else None,
                }
            )
        return _json({"files": answers})

    def batch(self, request, owner, name):
        kind = "datasets" if request.path.startswith("/datasets/") else "models"
        self._repo(request, kind, owner, name, writes=True)
        answers = []
        for wanted in request.json["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.large:
                answer["actions"] = {
                    "upload": {"href": f"{self.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.url}/lfs/verify"},
                }
            answers.append(answer)
        return _json({"transfer": "basic", "objects": answers})

    def put_large(self, request, oid):
        data = request.get_data()
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "", "The content does not have this sha256")
        self.large[oid] = data
        return _json({})

    def verify_large(self, request):
        wanted = request.json
        if len(self.large.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(400, "", "The upload is not whole")
        return _json({})

    def commit(self, request, revision, **names):
        repo = self._repo(request, **names, writes=True)
        base = self._at(repo, revision)
        files, message = dict(base.files), ""
        for line in map(json.loads, request.get_data().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    raise Refusal(400, "", f"{value['path']} was never uploaded")
                files[value["path"]] = File(self.large[value["oid"]], True)
            elif line["key"] in ("deletedFile", "deletedFolder"):
                gone = [p for p in files if p == value["path"] or p.startswith(value["path"].rstrip("/") + "/")]
                if not gone:
                    raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
                for path in gone:
                    del files[path]
            else:
                raise Refusal(400, "", f"Unknown operation {line['key']}")
        answer = {}
        if request.args.get("create_pr"):
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            revision = f"refs/pr/{number}"
            repo.refs[revision] = base.sha
            answer["pullRequestUrl"] = f"{self.url}/{repo.name}/discussions/{number}"
        made = repo.commit(revision, files, message)
        return _json({"commitUrl": f"{self.url}/{repo.name}/commit/{made.sha}", "commitOid": made.sha, **answer})

    def merge(self, request, number, **names):
        repo = self._repo(request, **names, writes=True)
        merged = self._at(repo, f"refs/pr/{number}")
        repo.commit("main", merged.files, merged.message)
        return _json({})


def _key(kind: str, name: str) -> str:
    return name if kind == "models" else f"{kind}/{name}"


def _json(value, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


def _file_entry(path: str, file: File) -> dict:
    entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.oid}
    return {**entry, "lfs": {"oid": file.oid, "size": len(file.data), "pointerSize": 130}} if file.large else entry


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _directly(entry: dict, prefix: str) -> bool:
    return "/" not in entry["path"].removeprefix(prefix)


class _Quiet(WSGIRequestHandler):
    def log(self, *_, **__):
        pass


@contextmanager
def running_hub():
    """A hub that answers until the context ends."""
    hub = Hub()
    server = make_server("127.0.0.1", 0, hub, threaded=True, request_handler=_Quiet)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
