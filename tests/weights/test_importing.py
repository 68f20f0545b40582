"""The base model after its import: where its GGUF lies, and whether it is still the one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.rundir.folder import SOURCE
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import FULL_PRECISION, Base, import_checkpoint
from genius_lite.weights.merge import merge, round_base
from tests.support.models import tiny_gguf


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with a model and its hf_checkpoint in `run`, to be copied."""
    folder = tmp_path_factory.mktemp("imported")
    tiny_gguf(folder / "m.gguf", "llama")
    (folder / "run").mkdir()
    import_checkpoint(gguf_file.read(folder / "m.gguf"), folder / "run" / "hf-checkpoint", lambda n: None)
    return folder


@pytest.fixture
def place(template, tmp_path) -> Path:
    """Such a folder of a test's own, imported where it lies."""
    shutil.copytree(template, tmp_path / "here")
    record(tmp_path / "here", path=str(tmp_path / "here" / "m.gguf"))
    Base.of(tmp_path / "here" / "run" / "hf-checkpoint")  # which notes the time of the copy
    return tmp_path / "here"


def recorded(place: Path) -> dict:
    return json.loads((place / "run" / "hf-checkpoint" / SOURCE).read_text())


def record(place: Path, **changed) -> None:
    (place / "run" / "hf-checkpoint" / SOURCE).write_text(json.dumps({**recorded(place), **changed}))


def overwrite(path: Path) -> None:
    """Put another model of the same shape in its place."""
    size, before = path.stat().st_size, path.read_bytes()
    tiny_gguf(path, "llama", seed=8)
    assert path.stat().st_size == size and path.read_bytes() != before


def test_what_is_recorded_is_the_file_as_it_is(place):
    base, file = Base.of(place / "run" / "hf-checkpoint"), place / "m.gguf"
    assert base.gguf.path == file
    found = recorded(place)
    assert found["path"] == str(file)
    assert found["sha256"] == base.sha256 == sha256([file]) == base.gguf.sha256
    assert (found["sizes"], found["times"]) == ([file.stat().st_size], [file.stat().st_mtime_ns])
    assert base.origin == "m.gguf"
    record(place, origin="hf:owner/repo/m.gguf")
    assert base.origin == "hf:owner/repo/m.gguf"


def test_where_nothing_is_imported_it_is_said(tmp_path):
    with pytest.raises(UserError, match="no model is imported here yet"):
        Base.of(tmp_path / "hf-checkpoint")


def test_a_file_that_has_gone_is_one_line(place):
    (place / "m.gguf").rename(place / "elsewhere.gguf")
    with pytest.raises(UserError, match=r"m\.gguf, which is not there any more; put it back") as e:
        Base.of(place / "run" / "hf-checkpoint")
    assert "\n" not in str(e.value)
    (place / "elsewhere.gguf").rename(place / "m.gguf")
    assert Base.of(place / "run" / "hf-checkpoint").gguf.path == place / "m.gguf"


def test_a_file_of_a_package_is_found_where_the_package_is_now(place, tmp_path, monkeypatch):
    package = tmp_path / "site" / "a_package_of_models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (place / "m.gguf").rename(package / "m.gguf")
    record(place, origin="python:a_package_of_models/m.gguf")
    with pytest.raises(UserError, match="install `a_package_of_models`"):
        Base.of(place / "run" / "hf-checkpoint")
    monkeypatch.syspath_prepend(tmp_path / "site")
    base = Base.of(place / "run" / "hf-checkpoint")
    assert base.gguf.path == package / "m.gguf"
    assert recorded(place)["path"] == str(package / "m.gguf")
    merge(base, None, "source", tmp_path / "p.gguf")
    assert (tmp_path / "p.gguf").read_bytes() == (package / "m.gguf").read_bytes()


def test_another_version_of_the_package_is_refused(place, tmp_path, monkeypatch):
    package = tmp_path / "site" / "another_package_of_models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (place / "m.gguf").rename(package / "m.gguf")
    overwrite(package / "m.gguf")
    record(place, origin="python:another_package_of_models/m.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(UserError, match=r"is not the model that .* was imported from any more"):
        Base.of(place / "run" / "hf-checkpoint")


def test_full_precision_weights_move_with_their_run(place, tmp_path):
    inside = place / "run" / FULL_PRECISION
    inside.mkdir()
    (place / "m.gguf").rename(inside / "m.gguf")
    record(place, path=str(inside / "m.gguf"))
    moved = (place / "run").rename(tmp_path / "moved")
    base = Base.of(moved / "hf-checkpoint")
    assert base.gguf.path == moved / FULL_PRECISION / "m.gguf"
    assert json.loads((moved / "hf-checkpoint" / SOURCE).read_text())["path"] == str(base.gguf.path)
    merge(base, None, "source", tmp_path / "p.gguf")


def test_a_touched_file_is_still_the_one_and_its_time_is_noted(place, tmp_path):
    base = Base.of(place / "run" / "hf-checkpoint")
    before = recorded(place)
    os.utime(place / "m.gguf", ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
    merge(base, None, "source", tmp_path / "p.gguf")
    assert recorded(place) == {**before, "times": [1_700_000_000_000_000_000]}
    os.utime(place / "m.gguf", ns=(1_800_000_000_000_000_000, 1_800_000_000_000_000_000))
    assert Base.of(place / "run" / "hf-checkpoint").sha256 == before["sha256"]
    assert recorded(place) == {**before, "times": [1_800_000_000_000_000_000]}
    assert sorted(p.name for p in (place / "run" / "hf-checkpoint").glob("source*")) == [SOURCE]


def test_what_an_older_version_recorded_is_enough(place):
    before = recorded(place)
    old = {key: before[key] for key in ("path", "sha256", "origin")}
    (place / "run" / "hf-checkpoint" / SOURCE).write_text(json.dumps(old))
    Base.of(place / "run" / "hf-checkpoint")
    assert recorded(place) == before


def test_another_model_of_the_same_shape_in_its_place_is_refused_by_one_line(place, tmp_path):
    base = Base.of(place / "run" / "hf-checkpoint")
    before = recorded(place)
    overwrite(place / "m.gguf")
    adapter = Adapter({}, 1, 1)
    for use in (
        lambda: Base.of(place / "run" / "hf-checkpoint"),
        base.check,
        lambda: merge(base, None, "source", tmp_path / "p.gguf"),
        lambda: merge(base, adapter, "F16", tmp_path / "p.gguf"),
        lambda: round_base(base, adapter, "Q8_0", tmp_path / "p.gguf"),
    ):
        with pytest.raises(UserError, match=r"is not the model that .* was imported from any more") as e:
            use()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "p.gguf").exists()
    assert recorded(place) == before, "what was imported is not forgotten"


def test_a_file_cut_short_is_refused(place):
    base = Base.of(place / "run" / "hf-checkpoint")
    (place / "m.gguf").write_bytes((place / "m.gguf").read_bytes()[:-32])
    with pytest.raises(UserError, match="is not the model that"):
        base.check()
    with pytest.raises(UserError, match="cut short"):
        Base.of(place / "run" / "hf-checkpoint")


def test_names_of_models_become_part_of_others(tiny_llama, tmp_path):
    for name, expected in (
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("model-Q4_K_M", "model"),
        ("model-iq2_xs", "model"),
        ("model.BF16-00001-of-00002", "model"),
        ("it's a model; rm -rf $HOME `x`", "it_s_a_model__rm_-rf__HOME__x_"),
        ("\N{GREEK SMALL LETTER ALPHA}model", "_model"),
        ("x" * 250, "x" * 160),
        ("x" * 243 + "-Q4_K_M", "x" * 160),
    ):
        path = tmp_path / f"{name}.gguf"
        shutil.copyfile(tiny_llama, path)
        assert Base(gguf_file.read(path), tmp_path).name == expected
