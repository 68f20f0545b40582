from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from genius_lite.doctor.advice import problems, rebuild
from genius_lite.doctor.findings import Card, Findings, FourBit, Llama, Space, Torch, _cpu_flags
from genius_lite.doctor.show import lines
from genius_lite.doctor.versions import TESTED, least

ROOT = Path(__file__).parents[2]
SOUND = Findings(
    system="Linux x86_64",
    python="3.11.7",
    cpu="A CPU",
    cores=4,
    cpu_flags=["avx", "avx2", "fma", "f16c"],
    memory=16_000_000_000,
    free_memory=8_000_000_000,
    nvidia=False,
    amd=False,
    versions=dict(TESTED),
    required={"torch": ">=2.6"},
    llama=Llama(["AVX", "AVX2", "FMA", "F16C"], [], offloads=False),
    torch=Torch(4, None, [], mps=False, bf16=False),
    four_bit=FourBit(["cpu", "cuda"], 0.09, gradient=True),
    spaces=[Space("runs", "runs", 50_000_000_000), Space("temporary files", "/tmp", 50_000_000_000)],
    environment={},
    offline=False,
)


def with_(**changes) -> Findings:
    return msgspec.structs.replace(SOUND, **changes)


def llama(features: list[str], gpus: list[Card] | None = None, offloads: bool = False) -> Llama:
    return Llama(features, gpus or [], offloads)


ALL = ["AVX", "AVX2", "FMA", "F16C"]
WITH_AMX = ("GGML_AVX=on", "GGML_AMX_INT8=on", "GGML_AMX_TILE=on", "CMAKE_CXX_FLAGS=-fno-dse")
GIGABYTE = 1_000_000_000
CASES = {
    "nothing": (SOUND, []),
    "a missing library": (
        with_(versions={**TESTED, "peft": None}), [("stops", "peft is not installed", "pip install 'peft==0.21.0'")]
    ),
    "too old a library": (
        with_(versions={**TESTED, "torch": "2.5.1"}),
        [("stops", "torch 2.5.1 is too old: >=2.6 is needed", "pip install 'torch==2.13.0'")],
    ),
    "an older library": (
        with_(versions={**TESTED, "torch": "2.8.0+cpu"}),
        [("note", "torch 2.8.0+cpu is older than 2.13.0, which is what was tested", "pip install 'torch==2.13.0'")],
    ),
    "a newer library": (with_(versions={**TESTED, "torch": "3.0"}), []),
    "a build of the tested version": (with_(versions={**TESTED, "torch": "2.13.0+cpu"}), []),
    "a build without AVX2": (
        with_(llama=llama(["AVX", "FMA", "F16C"])),
        [("slows", "llama.cpp was built without AVX2, which this CPU has", rebuild("GGML_NATIVE=on"))],
    ),
    "a CPU without AVX2": (with_(cpu_flags=["avx"], llama=llama(["AVX"])), []),
    "a build without AMX": (
        with_(cpu_flags=["avx", "amx_int8"], llama=llama(["AVX"])),
        [("slows", "llama.cpp was built without AMX_INT8, which this CPU has",
          rebuild("GGML_NATIVE=off", *WITH_AMX))],
    ),
    "a build with AMX": (with_(cpu_flags=["avx", "amx_int8"], llama=llama(["AVX", "AMX_INT8"])), []),
    "a build with AMX that does not work": (
        with_(cpu_flags=["avx", "amx_int8"], llama=Llama(["AVX", "AMX_INT8"], [], offloads=False, amx_broken=True)),
        [("slows", "llama.cpp's AMX kernels were broken by the compiler: they are not used, and weights are not "
          "repacked", rebuild("GGML_NATIVE=off", *WITH_AMX))],
    ),
    "an NVIDIA GPU that neither uses": (
        with_(nvidia=True),
        [
            ("slows", "llama.cpp was built without CUDA; this machine has an NVIDIA GPU", rebuild("GGML_CUDA=on")),
            ("slows", "torch was built without CUDA; this machine has an NVIDIA GPU",
             "pip install --force-reinstall 'torch==2.13.0' --index-url https://download.pytorch.org/whl/cu128"),
        ],
    ),
    "an NVIDIA GPU that both use": (
        with_(nvidia=True, llama=llama(ALL, [Card("GPU", 8 * GIGABYTE)], offloads=True),
              torch=Torch(4, "12.8", [Card("GPU", 8 * GIGABYTE)], mps=False, bf16=True)),
        [],
    ),
    "a driver that shows no GPU": (
        with_(nvidia=True, llama=llama(ALL, offloads=True), torch=Torch(4, "12.8", [], mps=False, bf16=True)),
        [("slows", "llama.cpp was built for a GPU and sees none", "nvidia-smi"),
         ("slows", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "torch for CUDA where there is none": (
        with_(torch=Torch(4, "12.8", [], mps=False, bf16=False)),
        [("note", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "an AMD GPU": (
        with_(amd=True),
        [("slows", "llama.cpp was built without HIP; this machine has an AMD GPU", rebuild("GGML_HIP=on"))],
    ),
    "a Mac without Metal": (
        with_(system="Darwin arm64"), [("slows", "llama.cpp was built without Metal", rebuild("GGML_METAL=on"))]
    ),
    "bitsandbytes that does not load": (
        with_(four_bit=FourBit([], None, gradient=False, fault="no library")),
        [("slows", "NF4 does not work (no library); until then: learner.precision: bf16",
          "pip install --force-reinstall --no-deps 'bitsandbytes==0.50.2'")],
    ),
    "a wrong product": (
        with_(four_bit=FourBit(["cpu"], 0.9, gradient=True)),
        [("stops", "an NF4 matrix multiplies wrongly, by 90%",
          "pip install --force-reinstall --no-deps 'bitsandbytes==0.50.2'")],
    ),
    "no gradient": (
        with_(four_bit=FourBit(["cpu"], 0.09, gradient=False)),
        [("stops", "no gradient passes through an NF4 matrix, so that nothing would be learned",
          "pip install --force-reinstall --no-deps 'bitsandbytes==0.50.2'")],
    ),
    "little memory": (
        with_(free_memory=1_200_000_000),
        [("stops", "1.2 GB of memory are free; the smallest run takes 2",
          "close other programs; genius-lite plan RECIPE says what a run takes")],
    ),
    "a full disk": (
        with_(spaces=[Space("runs", "runs", GIGABYTE), Space("temporary files", "/tmp", GIGABYTE)]),
        [("stops", "1.0 GB are free for runs in runs", "genius-lite run RECIPE --out /another/disk/run"),
         ("slows", "1.0 GB are free for temporary files in /tmp", "export TMPDIR=/another/disk/tmp")],
    ),
    "few threads": (
        with_(environment={"OMP_NUM_THREADS": "1"}),
        [("slows", "OMP_NUM_THREADS=1 keeps the learner from 4 cores", "unset OMP_NUM_THREADS")],
    ),
    "as many threads as cores": (with_(environment={"OMP_NUM_THREADS": "4"}), []),
    "threads that spin": (
        with_(environment={"OMP_WAIT_POLICY": "ACTIVE"}),
        [("slows", "OMP_WAIT_POLICY=active lets threads spin, which starves them as soon as another program runs",
          "unset OMP_WAIT_POLICY")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_problem_has_what_mends_it(case):
    found, expected = CASES[case]
    assert [(p.level, p.what, p.mend) for p in problems(found)] == expected


def test_the_worst_comes_first():
    found = with_(versions={**TESTED, "torch": "2.8.0", "peft": None}, environment={"OMP_NUM_THREADS": "1"})
    assert [p.level for p in problems(found)] == ["stops", "slows", "note"]


def test_rebuilding_names_the_tested_version():
    assert rebuild("GGML_CUDA=on") == (
        'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-deps --no-cache-dir '
        "--no-binary llama-cpp-python 'llama-cpp-python==0.3.36'"
    )


def test_everything_is_shown():
    found = with_(nvidia=True, environment={"OMP_NUM_THREADS": "2"}, versions={**TESTED, "numpy": "1.26.4"})
    shown = "\n".join(lines(found, problems(found)))
    for said in ("8.0 of 16.0 GB free", "AVX AVX2", "OMP_NUM_THREADS=2", "numpy 1.26.4", "20 of 21", "costs speed"):
        assert said in shown
    assert "Nothing is wrong." in "\n".join(lines(SOUND, []))


def test_tested_versions_are_those_that_are_pinned_and_asked_for():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in pins)}
    assert {name.replace("_", "-"): version for name, version in TESTED.items()}.items() <= pinned.items()
    project = (ROOT / "pyproject.toml").read_text()
    asked = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert asked
    names = [Requirement(line.strip().strip('",')).name for line in asked[1].strip().splitlines()]
    assert set(names) == set(TESTED)
    assert set(least()) <= set(TESTED)


def test_instruction_sets_are_read(tmp_path):
    (tmp_path / "x86").write_text("processor: 0\nflags\t\t: fpu avx avx2\nprocessor: 1\nflags : other\n")
    (tmp_path / "arm").write_text("processor: 0\nFeatures\t: fp asimd\n")
    assert _cpu_flags(tmp_path / "x86") == ["fpu", "avx", "avx2"]
    assert _cpu_flags(tmp_path / "arm") == ["fp", "asimd"]
    assert _cpu_flags(tmp_path / "none") == []


def test_the_real_command(tmp_path):
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", "doctor"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    told = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = json.loads(told.stdout)
    worst = any(problem["level"] == "stops" for problem in found["problems"])
    assert shown.returncode == told.returncode == int(worst), shown.stderr + told.stderr
    looked = msgspec.convert(found["findings"], Findings)
    assert looked.cores >= 1
    assert looked.memory >= looked.free_memory > 0
    assert looked.llama
    assert looked.torch
    assert looked.versions["torch"] in shown.stdout
    # Where bitsandbytes works at all, a product is near and a gradient passes, whatever this CPU's layout is.
    assert looked.four_bit
    assert looked.four_bit.fault or (looked.four_bit.gradient and (looked.four_bit.error or 1) < 0.2)
    for problem in found["problems"]:
        assert problem["mend"] in shown.stdout
    assert list(tmp_path.iterdir()) == []
