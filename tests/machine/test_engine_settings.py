from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.hardware.gpus import Gpu, gpus
from genius_lite.hardware.system import cores, peak_memory
from genius_lite.machine import bench, engine_settings
from genius_lite.recipe import Sampler
from genius_lite.recipe.reader import parse
from genius_lite.records import Query, query_id
from genius_lite.report.terminal import TerminalProgress
from genius_lite.sampler import client
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.weights import gguf_file
from genius_lite.weights.footprint import kv_bytes, layer_bytes

SILENT = TerminalProgress(Console(quiet=True))


def _card(free: int) -> Gpu:
    return Gpu("a", free, free)


def test_what_a_model_takes_in_memory(tiny):
    source = gguf_file.read(tiny.gguf)
    # Keys and values of 2 heads of 16 numbers each.
    assert kv_bytes(source, "F16") == 2 * 2 * 16 * 2
    assert kv_bytes(source, "Q8_0") == 2 * 2 * 16 * 34 // 32
    layers, each, outside = layer_bytes(source)
    assert layers == 2
    assert 2 * each + outside == sum(t.nbytes for t in source.tensors)


def test_a_recurrent_model_has_no_kv_cache(tiny_mamba):
    assert kv_bytes(gguf_file.read(tiny_mamba.gguf), "F16") == 0


@pytest.mark.parametrize(("free", "expected"), [(1300, -1), (1299, 10), (999, 9), (50, 0), (-7, 0)])
def test_layers_that_fit(free, expected):
    assert engine_settings.layers_that_fit(10, 100, 300, free) == expected


def test_gpu_layers_go_by_free_memory(tiny, monkeypatch):
    source = gguf_file.read(tiny.gguf)
    section, context = Sampler(slots=4, draw="host"), 256
    assert engine_settings.engine_settings(section, source, context, SILENT).gpu_layers == (-1 if gpus() else 0)
    monkeypatch.setattr(engine_settings, "gpus", lambda: [_card(int(8e9))])
    assert engine_settings.engine_settings(section, source, context, SILENT).gpu_layers == -1
    monkeypatch.setattr(engine_settings, "gpus", lambda: [_card(int(1e8))])
    assert engine_settings.engine_settings(section, source, context, SILENT).gpu_layers == 0
    assert engine_settings.engine_settings(Sampler(gpu_layers=3, draw="host"), source, context, SILENT).gpu_layers == 3


def test_auto_measures_once_and_remembers(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(engine_settings, "SLOTS", (2, 4))
    recipe = parse("model: {gguf: x.gguf}\nqueries: {source: q.txt}\nsampler: auto")
    assert recipe.sampler.measured
    source = gguf_file.read(tiny_llama)
    first = engine_settings.engine_settings(recipe.sampler, source, 512, SILENT)
    assert first.slots in (2, 4)
    assert (first.context, first.parked) == (512, first.slots)
    (kept,) = (tmp_path / "genius-lite" / "measurements").iterdir()
    record = json.loads(kept.read_text())
    assert {key: record[key] for key in ("slots", "kv_unified", "threads")} == {
        "slots": first.slots, "kv_unified": first.kv_unified, "threads": first.threads,
    }  # fmt: skip
    monkeypatch.setattr(engine_settings, "sweep", lambda *a, **k: pytest.fail("measured again"))
    assert engine_settings.engine_settings(recipe.sampler, source, 512, SILENT) == first
    # What the recipe fixes is not measured.
    monkeypatch.setattr(engine_settings, "sweep", _only)
    fixed = engine_settings.engine_settings(Sampler(slots="auto", threads=1), source, 512, SILENT)
    assert (fixed.threads, fixed.kv_unified) == (1, False)


def test_with_a_gpu_it_is_measured_where_to_draw(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(engine_settings, "gpus", lambda: [_card(int(8e9))])
    source, asked = gguf_file.read(tiny_llama), []

    def measured(model, base, slots, kv_modes, threads, draws, *, brief):
        from genius_lite.machine.bench import Speed

        for draw in draws:
            asked.append(draw)
            yield Speed(msgspec.structs.replace(base, draw=draw), 9.0 if draw == "device" else 5.0, 1.0, 0.0, 0)

    monkeypatch.setattr(engine_settings, "sweep", measured)
    assert engine_settings.engine_settings(Sampler(slots=4), source, 256, SILENT).draw == "device"
    assert asked == ["host", "device"]
    assert engine_settings.engine_settings(Sampler(slots=4), source, 256, SILENT).draw == "device"
    assert engine_settings.engine_settings(Sampler(slots=4, draw="host"), source, 256, SILENT).draw == "host"
    assert engine_settings.engine_settings(Sampler(slots=4, gpu_layers=0), source, 256, SILENT).draw == "host"
    assert asked == ["host", "device"]  # remembered, or said


def _only(model, base, slots, kv_modes, threads, draws, *, brief):
    from genius_lite.machine.bench import Speed

    assert (kv_modes, threads, draws) == ([False], [1], ["host"])
    yield Speed(base, 1.0, 1.0, 0.0, 0)


def test_measured_slots_leave_memory_to_others(tiny_llama, monkeypatch):
    source = gguf_file.read(tiny_llama)
    each = 2 * 512 * 2 * kv_bytes(source, "F16")
    monkeypatch.setattr(engine_settings, "gpus", lambda: [])
    settings = engine_settings.engine_settings(Sampler(slots=1), source, 512, SILENT)
    for free, expected in ((2 * 64 * each, [8, 16, 32, 64]), (2 * 20 * each, [8, 16]), (each, [1])):
        monkeypatch.setattr(engine_settings, "free_memory", lambda free=free: free)
        assert engine_settings._slots_that_fit(source, settings) == expected
    monkeypatch.setattr(engine_settings, "free_memory", lambda: 10**12)
    for parked, expected in ((240, [8, 16]), (250, [1]), (0, [*engine_settings.SLOTS])):
        assert engine_settings._slots_that_fit(source, settings, parked) == expected, "llama.cpp holds 256"


@pytest.mark.parametrize(("most", "found"), [(16, [8, 16]), (4, None)])
def test_slots_that_do_not_fit_end_the_measurement_of_slots(most, found, tiny_llama, monkeypatch):
    def speed(model, settings, prompts, generated):
        if settings.slots > most:
            raise UserError("llama.cpp cannot hold them")
        return bench.Speed(settings, float(settings.slots), 1.0, 0.0, 0)

    monkeypatch.setattr(bench, "decode_speed", speed)
    base = EngineSettings(slots=1, context=256, threads=1)
    measured = bench.sweep(tiny_llama, base, bench.SLOTS, [False], [1], ["host"])
    if found:
        assert [speed.settings.slots for speed in measured] == found
    else:
        with pytest.raises(UserError, match="cannot hold them"):
            next(measured)


def test_speed_is_measured_with_what_the_gpu_holds(tiny_llama, monkeypatch):
    source = gguf_file.read(tiny_llama)
    for free, layers in ((int(8e9), -1), (0, 0)):
        monkeypatch.setattr(engine_settings, "gpus", lambda free=free: [_card(free)])
        assert engine_settings.settings_to_measure(source)[0].gpu_layers == layers


def test_the_recipes_defaults_measure_nothing():
    section = parse("model: {gguf: x.gguf}\nqueries: {source: q.txt}").sampler
    assert not section.measured
    assert section.slots == 32


def test_peak_memory_never_falls():
    before = peak_memory()
    block = np.ones(30_000_000)
    after = peak_memory()
    assert after >= before
    assert after >= block.nbytes
    assert cores() >= 1


def test_a_query_that_leaves_no_room_is_named_in_one_short_line(tiny):
    source = gguf_file.read(tiny.gguf)  # 512 tokens of context
    short, long = (Query(query_id(text), text, [1] * len(text)) for text in ("x", "\x1b[31m\nWhy? " * 60))
    assert engine_settings.context_for("auto", source, [("max_tokens", 200, [short])]) == 256
    with pytest.raises(
        UserError, match=r"query `\\x1b\[31m Why\? .*\.\.\.` takes 660 tokens and max_tokens is 5: "
    ) as e:
        engine_settings.context_for("auto", source, [("max_tokens", 5, [short, long])])
    assert len(str(e.value)) < 200


def test_a_file_fits_by_the_memory_that_is_free(tiny_llama, monkeypatch):
    source = gguf_file.read(tiny_llama)
    monkeypatch.setattr(engine_settings, "gpus", lambda: [])
    engine = engine_settings.engine_settings(Sampler(slots=2), source, 512, SILENT)
    cache = 4 * 512 * 2 * kv_bytes(source, "F16")  # two slots, two parked paths, two layers
    monkeypatch.setattr(engine_settings, "free_memory", lambda: 1000 + 1.25 * cache)
    assert engine_settings.fits(source, 800, engine)
    assert not engine_settings.fits(source, 801, engine)
    on_gpu = msgspec.structs.replace(engine, gpu_layers=-1)
    assert not engine_settings.fits(source, 801, on_gpu), "llama.cpp has no GPU here"
    monkeypatch.setattr(engine_settings, "gpus", lambda: [_card(int((800 + cache + 256e6) / 0.9) + 1)])
    assert engine_settings.fits(source, 800, on_gpu)
    assert not engine_settings.fits(source, 802, on_gpu)
    assert not engine_settings.fits(source, 1, msgspec.structs.replace(engine, gpu_layers=1)), "half of its layers"
    assert engine_settings.fits(source, 800, engine), "none of them"


@pytest.mark.parametrize("prompts", [1, 8])
def test_branches_that_are_measured_differ(tiny_llama, monkeypatch, prompts):
    """Those whose first drawn tokens were equal began one after another: 17 decodes for 10 tokens."""
    monkeypatch.setattr(bench, "Sampling", lambda temperature: Sampling(temperature, top_k=1))
    settings, paths, real = EngineSettings(slots=8, context=256, threads=1), [], client.LocalSampler.extend

    def noted(self, node, n, *, until, limit):
        if limit == 10:
            paths.append(tuple(node.path))
        return real(self, node, n, until=until, limit=limit)

    monkeypatch.setattr(client.LocalSampler, "extend", noted)
    bench.decode_speed(tiny_llama, settings, [[20, 21, 22, 23]] * prompts, 10)
    assert len({*paths}) == len(paths) == 8
