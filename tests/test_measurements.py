from __future__ import annotations

import msgspec

from genius_lite import measurements
from genius_lite.plan.rates import Decode


def test_measurements_are_remembered_by_key(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert measurements.recall("learner", ("a", 1), Decode) is None
    measurements.remember("learner", ("a", 1), Decode(1.0, 2.0, 3.0))
    assert measurements.recall("learner", ("a", 1), Decode) == Decode(1.0, 2.0, 3.0)
    assert measurements.recall("learner", ("a", 2), Decode) is None
    assert measurements.recall("other", ("a", 1), Decode) is None
    (file,) = (tmp_path / "genius-lite" / "measurements").iterdir()
    file.write_bytes(msgspec.json.encode({"load": "soon"}))
    assert measurements.recall("learner", ("a", 1), Decode) is None, "a record of another shape is measured again"
