from __future__ import annotations

import math

import pytest

from genius_lite.results.evaluation import Interval
from genius_lite.text import (
    accuracy,
    amount,
    duration,
    figure,
    gain,
    hours,
    number,
    p_value,
    percent,
    short_duration,
    size,
    unbroken,
)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(1234567), "1,234,567"),
        (number(-0.125, 3), "−0.125"),
        (number(2.5, 1, "+", "nats"), "+2.5 nats"),
        (number(None), "–"),
        (number(math.nan), "not finite"),
        (percent(0.315), "32 %"),
        (percent(None), "–"),
        (figure(0.0001234), "0.000123"),
        (p_value(0.6034), "0.603"),
        (p_value(0.001), "0.001"),
        (p_value(0.00099), "< 0.001"),
        (p_value(0.0), "< 0.001"),
        (accuracy(Interval(0.3121, 0.28, 0.345)), "31.2 % [28.0, 34.5]"),
        (gain(Interval(0.031, -0.004, 0.059)), "+3.1 [−0.4, +5.9]"),
        (gain(None), "–"),
        (size(90_048), "90 kB"),
        (size(145_300_000), "145 MB"),
        (size(1_250_000_000), "1.2 GB"),
        (duration(4.81), "4.8 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(123.4), "2 min 03 s"),
        (duration(3900), "1 h 05 min"),
        (short_duration(0.4), "0s"),
        (short_duration(59.6), "1m00s"),
        (short_duration(200), "3m20s"),
        (short_duration(3600), "1h00m"),
        (short_duration(7500), "2h05m"),
        (hours(20), "1 minute"),
        (hours(7200), "120 minutes"),
        (hours(7 * 3600), "7 hours"),
        (amount(0, "questions"), "0 questions"),
        (amount(1, "queries"), "1 query"),
        (amount(1.2, "minutes"), "1 minute"),
        (amount(1, "branches"), "1 branch"),
        (amount(1, "passes"), "1 pass"),
        (amount(1, "matrices"), "1 matrix"),
        (amount(1, "MB"), "1 MB"),
        (amount(1319, "problems"), "1,319 problems"),
    ],
)
def test_figures_are_written_with_their_units(shown, wanted):
    assert shown == wanted


def test_a_figure_stays_on_its_line():
    assert unbroken("31.2 % right [28.0, 34.5] so").split(" ") == ["31.2\xa0%", "right\xa0[28.0,\xa034.5]", "so"]
