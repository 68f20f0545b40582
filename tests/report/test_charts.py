from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from genius_lite.report.charts import Point, Scale, Series, bars, gauge, lines, nice_ticks

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ET.Element:
    """Inside HTML an svg element needs no namespace; a parser of XML does."""
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0.62, 0.74, [0.6, 0.65, 0.7, 0.75]),
        (-13.4, 11.5, [-20, -10, 0, 10, 20]),
        (5, 5, [2, 4, 6, 8]),
        (0, 0, [-0.5, -0.25, 0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low, high, wanted):
    assert nice_ticks(low, high) == pytest.approx(wanted)


def test_figures_that_are_a_rounding_apart_are_drawn():
    """As the means of the same agreements in another order: it ended a run in a traceback."""
    low = 77.77777777777777
    high = math.nextafter(low, 100)
    assert len({*nice_ticks(low, high)}) > 1
    parse(lines([Series("x", [Point(0, low), Point(1, high)])], unit="%", ticks=[], described="d"))


def test_a_scale_is_linear_and_turned_where_its_ends_are():
    assert [Scale(0, 10, 100, 0)(v) for v in (0, 2.5, 10)] == [100, 75, 0]


def test_a_line_runs_through_its_points_and_breaks_where_a_figure_is_not_finite():
    series = Series("a", [Point(0, 0), Point(1, 50), Point(2, math.nan), Point(3, 100)])
    drawn = parse(lines([series], unit="%", ticks=[(0, "base")], described="d", within=(0, 100)))
    pieces = [line.attrib["points"] for line in drawn.iter(f"{SVG}polyline")]
    # 340 wide less 54 and 12, and 14 more on either side; 170 high less 26 and 22.
    assert pieces == ["68,144 150,83", "314,22"]
    assert len(list(drawn.iter(f"{SVG}circle"))) == 3
    labels = [text.text for text in drawn.iter(f"{SVG}text")]
    assert labels == ["0", "25", "50", "75", "100", "%", "base"]
    assert (drawn.attrib["role"], drawn.attrib["aria-label"]) == ("img", "d")


def test_whiskers_end_where_the_interval_does():
    drawn = parse(lines([Series("a", [Point(0, 50, 0, 100)])], unit="%", ticks=[], described="d"))
    (whisker,) = [path for path in drawn.iter(f"{SVG}path") if "whisker" in path.attrib["class"]]
    assert whisker.attrib["d"].startswith("M191 144V22")


def test_bars_are_as_long_as_their_amounts():
    rows = [("one", [("a", 30.0), ("b", 10.0)]), ("two", [("b", 20.0)])]
    drawn = parse(bars(rows, kinds=["a", "b"], described="d", form=lambda n: f"{n:.0f} s"))
    widths = [float(rect.attrib["width"]) + 1 for rect in drawn.iter(f"{SVG}rect")]
    assert widths == pytest.approx([324 * 0.75, 324 * 0.25, 324 * 0.5])
    assert [rect.attrib["class"] for rect in drawn.iter(f"{SVG}rect")] == ["bar k0", "bar k1", "bar k1"]
    assert "40 s" in [text.text for text in drawn.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "order"), [(True, ["halt", "warn", "ok"]), (False, ["ok", "warn", "halt"])]
)  # fmt: skip
def test_a_gauge_has_its_zones_in_order_and_the_value_in_the_right_one(low, order):
    limits = (0.5, 0.2) if low else (0.2, 0.5)
    drawn = parse(gauge([0.9, 0.3], *limits, low=low, described="d"))
    zones = {rect.attrib["class"].split()[1]: rect.attrib for rect in drawn.iter(f"{SVG}rect")}
    assert sorted(zones, key=lambda kind: float(zones[kind]["x"])) == order
    (now,) = [circle for circle in drawn.iter(f"{SVG}circle") if circle.attrib["class"] == "now"]
    start = float(zones["warn"]["x"])
    assert start < float(now.attrib["cx"]) < start + float(zones["warn"]["width"])


def test_a_gauge_of_what_is_not_finite_has_no_point():
    drawn = parse(gauge([math.inf], None, None, low=False, described="d"))
    assert list(drawn.iter(f"{SVG}circle")) == []


def test_names_are_escaped():
    evil = '"><script>alert(1)</script>'
    drawn = [
        lines([Series(evil, [Point(0, 1)])], unit=evil, ticks=[(0, evil)], described=evil, dividers=[(0, evil)]),
        bars([(evil, [(evil, 1.0)])], kinds=[evil], described=evil, form=lambda n: evil),
        gauge([1.0], None, None, low=True, described=evil),
    ]
    for svg in drawn:
        assert "<script" not in svg
        assert parse(svg).attrib["aria-label"] == evil
