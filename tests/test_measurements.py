from __future__ import annotations

import os

import msgspec
import pytest

from genius_lite import measurements
from genius_lite.plan.history import Decode


def test_measurements_are_remembered_by_key(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert measurements.recall("learner", ("a", 1), Decode) is None
    measurements.remember("learner", ("a", 1), Decode(1.0, 2.0, 3.0, 4.0))
    assert measurements.recall("learner", ("a", 1), Decode) == Decode(1.0, 2.0, 3.0, 4.0)
    assert measurements.recall("learner", ("a", 2), Decode) is None
    assert measurements.recall("other", ("a", 1), Decode) is None
    (file,) = (tmp_path / "genius-lite" / "measurements").iterdir()
    file.write_bytes(msgspec.json.encode({"load": "soon"}))
    assert measurements.recall("learner", ("a", 1), Decode) is None, "a record of another shape is measured again"


def test_another_build_of_llama_cpp_finds_out_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(measurements.llama_cpp.llama_cpp, "_base_path", tmp_path / "lib")
    library = tmp_path / "lib" / "libllama.so"
    library.parent.mkdir()
    library.write_bytes(b"one")
    measurements.remember("answers", "a", Decode(1.0, 2.0, 3.0, 4.0))
    assert measurements.recall("answers", "a", Decode)
    library.write_bytes(b"another of the same version")
    assert measurements.recall("answers", "a", Decode) is None


@pytest.mark.skipif(os.name != "posix", reason="files have no owners by number")
def test_what_somebody_else_left_is_not_believed(tmp_path, monkeypatch):
    """In a container without a home the cache is below /tmp, where anybody may make it first."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    measurements.remember("answers", "a", Decode(1.0, 2.0, 3.0, 4.0))
    own = os.geteuid()
    monkeypatch.setattr(measurements, "cache_folder", lambda: tmp_path / "genius-lite")
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert measurements.recall("answers", "a", Decode) is None


def test_what_was_not_used_for_longest_goes_where_much_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    folder, found = tmp_path / "genius-lite" / "measurements", Decode(1.0, 2.0, 3.0, 4.0)
    size = len(msgspec.json.encode(found))
    measurements.remember("other", 0, found)
    for number in (1, 2, 3):
        measurements.remember("answers", number, found, most=2 * size)
        for file in folder.iterdir():  # as if an hour had passed
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 3600 * 10**9))
        measurements.recall("answers", 1, Decode)
    assert [measurements.recall("answers", number, Decode) for number in (1, 2, 3)] == [found, None, found]
    assert measurements.recall("other", 0, Decode) == found, "of another name"
    measurements.remember("answers", 4, found, most=size - 1)
    assert measurements.recall("answers", 4, Decode) is None
    assert {file.stat().st_mode & 0o077 for file in folder.iterdir()} == {0}
