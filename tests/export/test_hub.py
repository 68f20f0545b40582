"""An export goes to a stand-in hub by the real huggingface_hub, whole or not at all, and nothing private."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from huggingface_hub import constants

from genius_lite.errors import Stopped, UserError
from genius_lite.export import hub as exporting
from genius_lite.export.private import refuse_private
from tests.support.hub import TOKEN, Hub, Repository
from tests.support.models import tiny_gguf

REPOSITORY = "anna/tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    with Hub().listening() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def folder(tmp_path, tiny_llama) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    shutil.copyfile(tiny_llama, made / "tiny.gguf")
    (made / "README.md").write_text("---\nlibrary_name: genius-lite\n---\n# tiny\n")
    (made / "SHA256SUMS").write_text("0  tiny.gguf\n")
    return made


def push(folder: Path, public: bool = False) -> tuple[str, list[int]]:
    taken = list[int]()
    address = exporting.push(folder, REPOSITORY, "gguf of round 1", public=public, advance=taken.append)
    return address, taken


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_of_it_is_one_commit_in_a_private_repository(hub, folder):
    exporting.require_token(REPOSITORY)
    address, taken = push(folder)
    (made,) = hub.repositories.values()
    assert made.private
    assert len(made.commits) == 2, "what the hub began with, and this"
    assert {name: made.files[name] for name in contents(folder)} == contents(folder)
    assert address == f"{hub.url}/{REPOSITORY}/commit/{made.sha()}"
    assert sum(taken) == sum(map(len, contents(folder).values()))
    push(folder)
    assert len(made.commits) == 2, "the same files are no new commit"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    made.files["other.gguf"] = b"another's"
    push(folder)
    assert made.files["README.md"] == b"---\nlicense: mit\n---\n"
    assert made.files["other.gguf"] == b"another's"


def test_nothing_becomes_public_unasked(hub, folder):
    hub.repositories[REPOSITORY] = Repository(private=False)
    with pytest.raises(UserError, match="is there and public; say --public"):
        push(folder)
    assert len(hub.repositories[REPOSITORY].commits) == 1
    push(folder, public=True)
    assert len(hub.repositories[REPOSITORY].commits) == 2
    hub.repositories.clear()
    push(folder, public=True)
    assert not hub.repositories[REPOSITORY].private


REFUSED = {
    "POST /api/repos/create": [(403, "403, You don't have the rights.*may not write"), (409, "409, .*another name")],
    "GET /api/models": [(403, "403, .*may not write there"), (404, "404, ")],
    "POST /api/validate-yaml": [(400, "Invalid metadata in README.md"), (401, "401, .*does not take the token")],
    f"POST /api/models/{REPOSITORY}/preupload": [(403, "403, ")],
    "PUT /lfs/": [(403, "403, ")],
    f"POST /api/models/{REPOSITORY}/commit": [(403, "403, "), (412, "changed meanwhile")],
}


@pytest.mark.parametrize(("asked", "status", "said"), [(a, *each) for a, many in REFUSED.items() for each in many])
def test_what_the_hub_refuses_is_one_line_and_leaves_nothing(hub, folder, asked, status, said):
    hub.refuses[asked] = (status, "You don't have the rights")
    with pytest.raises(UserError, match=f"hf:{REPOSITORY}: .*{said}.*nothing of this export is there") as e:
        push(folder)
    assert "\n" not in str(e.value)
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_a_commit_that_was_not_confirmed_may_be_there(hub, folder):
    hub.refuses[f"POST /api/models/{REPOSITORY}/commit"] = (507, "full")
    with pytest.raises(UserError, match=r"507, full; try again later; it did not confirm the commit: look there"):
        push(folder)


def test_tokens_that_will_not_do_are_told_before_anything_is_made(hub, monkeypatch):
    hub.role = "read"
    with pytest.raises(UserError, match="the token may only read; set HF_TOKEN, or log in"):
        exporting.require_token(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match="401; the hub does not take the token"):
        exporting.require_token(REPOSITORY)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no token for the hub; set HF_TOKEN, or log in"):
        exporting.require_token(REPOSITORY)
    assert exporting.look(REPOSITORY) is None
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        exporting.look(REPOSITORY)


def test_interrupted_while_a_file_goes_nothing_is_there(hub, folder):
    hub.before = lambda asked: os.kill(os.getpid(), signal.SIGINT) if asked.startswith("PUT ") else None
    with pytest.raises(Stopped, match=f"interrupted; hf:{REPOSITORY}: nothing of this export is there"):
        push(folder)
    assert len(hub.repositories[REPOSITORY].commits) == 1
    hub.before = lambda asked: os.kill(os.getpid(), signal.SIGINT) if "/commit/" in asked else None
    with pytest.raises(Stopped, match="it did not confirm the commit: look there"):
        push(folder)
    hub.before = lambda asked: None
    push(folder)
    assert contents(folder).items() <= hub.repositories[REPOSITORY].files.items()


def test_what_is_not_whole_afterwards_is_not_called_done(hub, folder):
    hub.ignored.add("SHA256SUMS")
    with pytest.raises(UserError, match="is not whole: SHA256SUMS is missing"):
        push(folder)


@pytest.mark.parametrize("text", ["anna/tiny", "hf:tiny", "hf:anna/tiny/x.gguf", "hf:an na/tiny", "hf:../tiny", "hf:"])
def test_a_repository_is_written_as_one(text):
    with pytest.raises(UserError, match="a repository is written hf:OWNER/REPO"):
        exporting.repository_named(text)
    assert exporting.repository_named("hf:anna/tiny") == "anna/tiny"


@pytest.fixture
def at_home(tmp_path, monkeypatch, folder) -> Path:
    """The folder, on the machine of somebody called mirabel."""
    home = tmp_path / "home" / "mirabel"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(home)
    return folder


def writer_of(key: str, value: str):
    return lambda writer: writer.add_string(key, value)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("README.md", "from {home}/questions.jsonl", "a path of this machine"),
        ("Modelfile", 'SYSTEM """{home}"""', "a path of this machine"),
        ("config.json", '{{"_name_or_path": "{other}/model"}}', "a path of this machine"),
        ("tokenizer.json", '{{"source": "{home}/tokenizer.json"}}', "a path of this machine"),
        ("README.md", "You are Mirabel's helper.", "`Mirabel`, a user's name"),
        ("README.md", "mail mirabel@example.org", "a user's name"),
        ("notes.txt", "hf_" + "x" * 34, "a key of the hub"),
        ("notes.txt", "from file://{here}/x.jsonl", "a path of this machine"),
        ("notes.txt", "gguf:{here}/x.gguf", "a path of this machine"),
    ],
)
def test_what_is_private_is_not_given_away(at_home, tmp_path, name, text, found):
    (at_home / name).write_text(text.format(home=Path.home(), other=tmp_path, here=Path(__file__).parent))
    with pytest.raises(UserError, match=f"^{name} has .*{found}.*nothing is uploaded") as e:
        refuse_private(at_home, tmp_path / "run", REPOSITORY)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("form", [str, lambda path: json.dumps(path)[1:-1], lambda path: quote(path)])
def test_a_path_is_found_where_its_first_folders_have_spaces_or_umlauts(at_home, tmp_path, monkeypatch, form):
    folders = {"/": ["homes of all", "usr"], "/homes of all": ["jürgen", "jürgen lee"]}
    monkeypatch.setattr("genius_lite.export.private._names", lambda folder: folders.get(folder, []))
    for private in ("/homes of all/jürgen lee/x.txt", "/homes of all/jürgen/x", "/homes of all/jürgen."):
        (at_home / "README.md").write_text(f"What is in {form(private)}?")
        with pytest.raises(UserError, match=r"README\.md has .*/homes of all/jürgen.*a path of this machine"):
            refuse_private(at_home, tmp_path / "run", REPOSITORY)
    for public in ("/usr/lib x/y", "/homes of all/.", "https://a.b/homes of all/jürgen/x", "5 /homes of everybody/x"):
        (at_home / "README.md").write_text(public)
        refuse_private(at_home, tmp_path / "run", REPOSITORY)


def test_metadata_is_looked_through_and_tensors_are_not(at_home, tmp_path):
    where = f"{Path.home()}/imatrix.dat"
    tiny_gguf(at_home / "tiny.gguf", "llama", more=writer_of("quantize.imatrix.file", where))
    with pytest.raises(UserError, match=r"^tiny\.gguf \(quantize\.imatrix\.file\) has .*a path of this machine"):
        refuse_private(at_home, tmp_path / "run", REPOSITORY)
    (at_home / "tiny.gguf").unlink()
    header = json.dumps({"__metadata__": {"from": where}}).encode()
    (at_home / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"mirabel")
    with pytest.raises(UserError, match=r"^model\.safetensors \(metadata\) has .*a path of this machine"):
        refuse_private(at_home, tmp_path / "run", REPOSITORY)
    header = b'{"__metadata__": {"format": "pt"}}'
    (at_home / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"mirabel")
    refuse_private(at_home, tmp_path / "run", REPOSITORY)


def test_what_is_public_anyway_is_let_pass(at_home, tmp_path):
    (at_home / "tokenizer.json").write_text('{"vocab": {"mirabel": 1, "/home": 2, "/root/": 3}}')
    said = "Look in /usr/share/dict/words and https://example.org/home/mirabelle; /nowhere/at/all"
    (at_home / "README.md").write_text(said)
    refuse_private(at_home, tmp_path / "run", REPOSITORY)
    (at_home / "README.md").write_text("genius-lite export by mirabel/tiny")
    refuse_private(at_home, tmp_path / "run", "mirabel/tiny")
