"""A server on this machine that speaks the hub's API to the real client, and has the hub's bad days on demand.

Repositories, branches, tags and large files live in memory. `server.play = lambda number, request: fault` decides on
each request (`request.kind`: create, tree, info, preupload, batch, upload, verify, commit, branch, tag, resolve):
None for a good answer, a status (429 with `retry_after`), DROP (nothing is done, the connection ends), LOST (it is
done, and the connection ends), HALF (it is done, and half of the answer arrives), a float for a slow answer, in
seconds.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep  # bound here: tests replace time.sleep for the client
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

DROP, LOST, HALF = "drop", "lost", "half"
LARGE = (".safetensors", ".gguf", ".bin", ".pt", ".parquet")
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kinds>models|datasets)/{NAME}"
GIT = rf"/(?P<prefix>datasets/)?{NAME}"
ROUTES = [
    ("create", "POST", r"/api/repos/create"),
    ("yaml", "POST", r"/api/validate-yaml"),
    ("whoami", "GET", r"/api/whoami-v2"),
    ("tree", "GET", API + r"/tree/(?P<revision>[^/]+)"),
    ("info", "GET", API + r"(/revision/(?P<revision>[^/]+))?"),
    ("refs", "GET", API + r"/refs"),
    ("preupload", "POST", API + r"/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", API + r"/commit/(?P<revision>[^/]+)"),
    ("branch", "POST", API + r"/branch/(?P<name>[^/]+)"),
    ("tag", "POST", API + r"/tag/(?P<revision>[^/]+)"),
    ("untag", "DELETE", API + r"/tag/(?P<name>[^/]+)"),
    ("batch", "POST", GIT + r"\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("verify", "POST", r"/verify"),
    ("resolve", "GET", GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("resolve", "HEAD", GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]


@dataclass
class Request:
    """What the client asked."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Repo:
    """Commits are whole trees: {name: bytes}; branches and tags name commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)  # branch, message, commit
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def add(self, branch: str, tree: dict[str, bytes], message: str) -> str:
        commit = hashlib.sha1(f"{len(self.log)} {branch} {message}".encode()).hexdigest()
        self.commits[commit] = tree
        self.log.append((branch, message, commit))
        self.branches[branch] = commit
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision but the one that the hub makes itself."""
        return {k: v for k, v in self.commits[self.find(revision)].items() if k != ".gitattributes"}


class Hub:
    """`tokens`: who may write; `repos`: what it holds, by (model|dataset, name); `requests`: all that was asked."""

    def __init__(self) -> None:
        self.tokens = {"hf_" + "letmein" * 4: "write"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.play: Callable[[int, Request], object] = lambda number, request: None
        self.retry_after = 1
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def token(self) -> str:
        """One that may write."""
        return next(token for token, right in self.tokens.items() if right == "write")

    def environment(self, token: str | None = None) -> dict[str, str]:
        """For a process that is to talk to this hub."""
        here = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**os.environ, **here, "HF_TOKEN": self.token if token is None else token}

    def known_to(self, monkeypatch) -> None:
        """This process and those that it starts talk to this hub."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        read = {"ENDPOINT": self.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}  # once, by the client
        read["HUGGINGFACE_CO_URL_TEMPLATE"] = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in read.items():
            monkeypatch.setattr(constants, name, value)

    def kinds(self) -> list[str]:
        """What was asked, in order, without the client's question who it is."""
        return [request.kind for request in self.requests if request.kind != "unknown"]

    def leaked(self, secrets: list[str]) -> list[str]:
        """Requests that hold a secret elsewhere than in the header that is for it."""
        found = []
        for request in self.requests:
            headers = {name: value for name, value in request.headers.items() if name != "authorization"}
            text = f"{request.path} {headers}".encode() + request.body
            found += [request.path for secret in secrets if secret.encode() in text]
        return found

    def answer(self, request: Request, found: re.Match) -> tuple[int, object, dict[str, str]]:
        """(status, body, headers) of a good day."""
        kind, part = request.kind, found.groupdict()
        right = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if kind not in ("upload", "resolve"):  # addresses of the storage are signed in place of it
            if not right:
                return 401, {"error": "Invalid username or password."}, {}
            if right == "read" and request.method != "GET":
                return 403, {"error": "You don't have the rights"}, {}
        if kind == "create":
            asked = json.loads(request.body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            url = {"url": f"{self.url}/{'datasets/' * (asked.get('type') == 'dataset')}{name}"}
            key = (asked.get("type") or "model", name)
            if key in self.repos:
                return 409, {"error": "You already created this model repo", **url}, {}
            self.repos[key] = Repo(private=asked.get("visibility") == "private")
            self.repos[key].add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            return 200, url, {}
        if kind == "whoami":
            return 200, {"name": "somebody", "type": "user", "orgs": []}, {}
        if kind == "yaml":
            bad = "base_model: output/" in json.loads(request.body)["content"]
            said = [{"message": '"base_model" must be the id of a model on the hub'}] * bad
            return 400 if bad else 200, {"errors": said, "warnings": []}, {}
        if kind == "upload":
            if hashlib.sha256(request.body).hexdigest() != part["oid"]:
                return 400, {"error": "not these bytes"}, {}
            self.stored[part["oid"]] = request.body
            return 200, {}, {}
        if kind == "verify":
            asked = json.loads(request.body)
            fits = len(self.stored.get(asked["oid"], b"")) == asked["size"]
            return 200 if fits else 404, {}, {}
        if "kinds" in part:
            key = (part["kinds"].removesuffix("s"), part["repo"])
        else:
            key = ("dataset" if part["prefix"] else "model", part["repo"])
        repo = self.repos.get(key)
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if kind == "batch":
            offers = [self._offer(asked) for asked in json.loads(request.body)["objects"]]
            return 200, {"transfer": "basic", "objects": offers}, {}
        if kind == "refs":
            both = [("branches", repo.branches, "heads"), ("tags", repo.tags, "tags")]
            listed = {
                part: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c} for n, c in refs.items()]
                for part, refs, where in both
            }
            return 200, {**listed, "converts": []}, {}
        if kind == "branch":
            if part["name"] in repo.branches:
                return 409, {"error": "exists"}, {}
            repo.branches[part["name"]] = repo.find(json.loads(request.body or b"{}").get("startingPoint", "main"))
            return 200, {}, {}
        if kind == "untag":
            return (200 if repo.tags.pop(part["name"], None) else 404), {}, {}
        commit = repo.find(unquote(part.get("revision") or "main"))
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        tree = repo.commits[commit]
        if kind == "tag":
            name = json.loads(request.body)["tag"]
            if name in repo.tags:
                return 409, {"error": "exists"}, {}
            repo.tags[name] = commit
            return 200, {}, {}
        if kind == "info":
            files = [{"rfilename": name} for name in tree]
            return 200, {"id": part["repo"], "sha": commit, "private": repo.private, "siblings": files, "tags": []}, {}
        if kind == "tree":
            return 200, [entry(name, data) for name, data in sorted(tree.items())], {}
        if kind == "preupload":
            files = json.loads(request.body)["files"]
            return 200, {"files": [self._mode(file, tree) for file in files]}, {}
        if kind == "commit":
            lines = [json.loads(line) for line in request.body.splitlines()]
            changed, message = dict(tree), lines[0]["value"]["summary"]
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.stored:
                        return 400, {"error": f"{value['path']}: no such object was uploaded"}, {}
                    changed[value["path"]] = self.stored[value["oid"]]
                else:
                    changed.pop(value["path"])
            made = repo.add(unquote(part["revision"]), changed, message)
            return 200, {"commitUrl": f"{self.url}/{part['repo']}/commit/{made}", "commitOid": made}, {}
        name = unquote(part["path"])
        if name not in tree:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        listed = entry(name, tree[name])
        etag = listed["lfs"]["oid"] if "lfs" in listed else listed["oid"]
        return 200, tree[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}

    def _offer(self, asked: dict) -> dict:
        if asked["oid"] in self.stored:
            return asked
        upload = {"href": f"{self.url}/lfs/{asked['oid']}?X-Amz-Signature=signed", "header": {}}
        return {**asked, "actions": {"upload": upload, "verify": {"href": f"{self.url}/verify", "header": {}}}}

    def _mode(self, file: dict, tree: dict[str, bytes]) -> dict:
        large = file["path"].endswith(LARGE)
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if file["path"] in tree:
            listed = entry(file["path"], tree[file["path"]])
            mode["oid"] = listed["lfs"]["oid"] if large else listed["oid"]
        return mode


def entry(name: str, data: bytes) -> dict:
    """A file in the hub's listing."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    listed = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(LARGE):
        listed["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return listed


def _handler(hub: Hub) -> type:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = urlsplit(self.path).path
            kind, found = next(
                ((k, m) for k, method, p in ROUTES if method == self.command and (m := re.fullmatch(p, path))),
                ("unknown", None),
            )
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(kind, self.command, self.path, headers, body)
            with hub.lock:
                number = len(hub.requests)
                hub.requests.append(request)
            fault = hub.play(number, request)
            if isinstance(fault, float):
                sleep(fault)
            if fault == DROP:
                return self.end()
            if isinstance(fault, int):
                again = {"Retry-After": str(hub.retry_after)} if fault == 429 else {}
                return self.reply(fault, {"error": "a bad day"}, again)
            with hub.lock:
                status, made, extra = hub.answer(request, found) if found else (404, {"error": "no such route"}, {})
            if fault == LOST:
                return self.end()
            self.reply(status, made, extra, half=fault == HALF)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

        def reply(self, status: int, body: object, headers: dict[str, str], half: bool = False) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if half else data)
            if half:
                self.end()

        def end(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

        def log_message(self, *args) -> None:
            pass

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub at `.url` for the length of the block."""
    hub = Hub()
    threading.Thread(target=hub.http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.http.shutdown()
        hub.http.server_close()
