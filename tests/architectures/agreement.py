"""What learner and sampler say of a text, and how far they may be apart."""

from __future__ import annotations

import numpy as np
import torch

from genius_lite.learner.model import logps_of
from genius_lite.learner.packing import rows
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Score
from tests.architectures.zoo import TEXT
from tests.support.engine import drain

AGREE, MERGED, MATTERS = 0.02, 0.01, 0.03  # nats a token


def by_sampler(path) -> np.ndarray:
    settings = EngineSettings(slots=1, context=512, threads=1, flash_attention=False, kv_type="F32")
    engine = Engine(str(path), settings)
    engine.submit(Score(0, TEXT[:1], TEXT[1:]))
    return np.array(drain(engine)[0].logprobs)


def by_learner(policy) -> np.ndarray:
    with torch.no_grad():
        return logps_of(policy, rows([(TEXT[:1], TEXT[1:])])).numpy()


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).mean())
