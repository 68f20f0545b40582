"""A small hub: the endpoints that huggingface_hub asks when a folder is uploaded, and what it was given."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils.sha import git_hash

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    """Files at each of its commits, the last one last."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.gguf lfs\n"}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, number: int = -1) -> str:
        return f"{number % len(self.commits) + 1:040x}"


@dataclass
class Hub:
    """What is there, what it is to refuse, and what was asked of it, as `POST /api/repos/create`.

    `refuses` is the status and the words for what begins so; `before` is called with what is asked, before the answer.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    role: str = "write"
    before: Callable[[str], None] = lambda asked: None
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    @contextmanager
    def listening(self) -> Iterator[Hub]:
        handler = type("Handler", (_Handler,), {"hub": self})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.handle_error = lambda request, client_address: None  # who asked has gone
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_PUT(self) -> None:
        self._serve(self._chunks() if self.headers.get("Transfer-Encoding") else self._whole())

    def _whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _serve(self, body: bytes) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        asked = f"{self.command} {path}"
        hub.asked.append(asked)
        hub.before(asked)
        for beginning, (status, words) in hub.refuses.items():
            if asked.startswith(beginning):
                return self._answer({"error": words}, status)
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            hub.stored[path.removeprefix("/lfs/")] = body
            return self._answer({})
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            return self._answer({}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            return self._answer({"name": "anna", "auth": {"accessToken": {"role": hub.role}}})
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self._answer({"errors": [], "warnings": []})
        given = json.loads(body) if body and path.endswith(("create", "main", "batch")) and "commit" not in path else {}
        if path == "/api/repos/create":
            name = f"{given['organization']}/{given['name']}"
            if name in hub.repositories:
                return self._answer({"error": "You already created this model repo"}, 409)
            hub.repositories[name] = Repository(given["visibility"] == "private")
            return self._answer({"url": f"{hub.url}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer({"objects": [self._stored_or_wanted(one) for one in given["objects"]]})
        name = "/".join(path.split("/")[3:5])
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            return self._answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        if "/preupload/" in path:
            return self._answer({"files": [self._mode(repository, one["path"]) for one in given["files"]]})
        if "/commit/" in path:
            return self._commit(name, repository, body)
        return self._answer(self._described(name, repository, path))

    def _stored_or_wanted(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.stored:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}

    def _mode(self, repository: Repository, name: str) -> dict[str, Any]:
        large, there = name.endswith((".gguf", ".safetensors")), repository.files.get(name)
        digest = None if there is None else hashlib.sha256(there).hexdigest() if large else git_hash(there)
        mode = "lfs" if large else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": name in self.hub.ignored, "oid": digest}

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", repository.sha()) != repository.sha():
                    return self._answer({"error": "A commit has happened since"}, 412)
            else:
                large = line["key"] == "lfsFile"
                files[value["path"]] = self.hub.stored[value["oid"]] if large else base64.b64decode(value["content"])
        repository.commits.append(files)
        oid = repository.sha()
        return self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _described(self, name: str, repository: Repository, path: str) -> dict[str, Any]:
        revision = path.partition("/revision/")[2]
        number = -1 if revision in ("", "main") else int(revision, 16) - 1
        siblings = []
        for file, content in repository.commits[number].items():
            found: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git_hash(content)}
            if file.endswith((".gguf", ".safetensors")):
                digest = hashlib.sha256(content).hexdigest()
                found |= {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(content), "pointerSize": 130}}
            siblings.append(found)
        private, sha = repository.private, repository.sha(number)
        return {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": []}

    def _answer(self, found: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
