"""A response, scored by the sampler."""

from __future__ import annotations

import numpy as np

from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Score
from tests.support.engine import PROMPT, drain

RESPONSE = [50, 61, 72, 83, 94, 105]


def scored(path, lora="") -> np.ndarray:
    engine = Engine(str(path), EngineSettings(slots=2, context=128, threads=2, flash_attention=False, lora=str(lora)))
    engine.submit(Score(0, PROMPT, RESPONSE))
    return np.array(drain(engine)[0].logprobs)
