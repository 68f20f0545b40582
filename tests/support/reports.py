"""The report of a round, made by hand."""

from __future__ import annotations

from genius_lite.results.evaluation import Alarm, RoundMetrics, Signals
from genius_lite.results.rounds import Quantized, RolloutFigures, RoundReport, TrainReport

SIGNALS = Signals(1.0, 0.9, 0.0, 50.0, 1.0, 0.5, 0.6, 0.8, 0.1, 64)


TRAINING = TrainReport(30, 8, 0.6, 3.0, 0.2, 0.9, 30, 4, 0.5, 0.01, 10**8, "bf16", "cpu", [], 30.0)


REPORT = RoundReport(
    2,
    rollouts=RolloutFigures(10, 40, 0, 0, 1000, -0.5, 0.75),
    pairs=30,
    training=TRAINING,
    quantized=Quantized("Q4_0", 0.8, False, False, 0.01, {"blk.0.attn_q.weight": 0.8}),
    gguf_bytes=10**8,
    score=0.6,
    base_score=0.5,
    metrics=RoundMetrics(SIGNALS, -0.5, 0.1, 0.0, 0.9, 3.0, 30, 40),
    alarms=[Alarm("kl", "halt", 9.0, 1.0, "far"), Alarm("margin", "warn", 0.0, 1.0, "low")],
)
