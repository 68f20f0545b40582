from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genius_lite import doctor
from genius_lite.doctor import Finding, Problem, rebuild
from genius_lite.hardware import Gpu
from tests.support.cli import genius

ROOT = Path(__file__).parents[1]
GIGABYTE = 1_000_000_000
GPU = Gpu("GPU", 8 * GIGABYTE)
ALL = ["AVX", "AVX2", "FMA", "F16C"]
FLAGS = ["avx", "avx2", "fma", "f16c"]
AMX = ["GGML_NATIVE=off", "GGML_AVX=on", "GGML_AMX_INT8=on", "GGML_AMX_TILE=on", "CMAKE_CXX_FLAGS=-fno-dse"]
NF4 = "pip install --force-reinstall --no-deps 'bitsandbytes==0.50.2'"
TORCH = {"torch": ">=2.6"}, {"torch": "2.13.0"}


def llama(features=ALL, flags=FLAGS, cards=(), maker="", offloads=False, amx_broken=False) -> Iterator[Finding]:
    return doctor.llama_cpp("0.3.36", features, flags, cards, maker, offloads, amx_broken)


CASES = {
    "a missing library": (
        doctor.libraries(*TORCH, {"torch": None}),
        [("stops", "torch is not installed", "pip install 'torch==2.13.0'")],
    ),
    "too old a library": (
        doctor.libraries(*TORCH, {"torch": "2.5.1"}),
        [("stops", "torch 2.5.1 is too old: >=2.6 is needed", "pip install 'torch==2.13.0'")],
    ),
    "an older library": (
        doctor.libraries(*TORCH, {"torch": "2.8.0+cpu"}),
        [("note", "torch 2.8.0+cpu is older than 2.13.0, which is what was tested", "pip install 'torch==2.13.0'")],
    ),
    "a newer library": (doctor.libraries(*TORCH, {"torch": "3.0"}), []),
    "a build of the tested version": (doctor.libraries(*TORCH, {"torch": "2.13.0+cpu"}), []),
    "a sound build": (llama(), []),
    "a build without AVX2": (
        llama(["AVX", "FMA", "F16C"]),
        [("slows", "llama.cpp was built without AVX2, which this CPU has", rebuild("GGML_NATIVE=on"))],
    ),
    "a CPU without AVX2": (llama(["AVX"], ["avx"]), []),
    "a build without AMX": (
        llama(["AVX"], ["avx", "amx_int8"]),
        [("slows", "llama.cpp was built without AMX_INT8, which this CPU has", rebuild(*AMX))],
    ),
    "a build with AMX": (llama(["AVX", "AMX_INT8"], ["avx", "amx_int8"]), []),
    "a build with AMX that does not work": (
        llama(["AVX", "AMX_INT8"], ["avx", "amx_int8"], amx_broken=True),
        [("slows", "llama.cpp's AMX kernels were broken by the compiler: they are not used, and weights are not "
          "repacked", rebuild(*AMX))],
    ),
    "llama.cpp without CUDA": (
        llama(maker="NVIDIA"),
        [("slows", "llama.cpp was built without CUDA; this machine has an NVIDIA GPU", rebuild("GGML_CUDA=on"))],
    ),
    "llama.cpp without HIP": (
        llama(maker="AMD"),
        [("slows", "llama.cpp was built without HIP; this machine has an AMD GPU", rebuild("GGML_HIP=on"))],
    ),
    "llama.cpp without Metal": (
        llama(maker="Apple"),
        [("slows", "llama.cpp was built without Metal; this machine has an Apple GPU", rebuild("GGML_METAL=on"))],
    ),
    "llama.cpp with CUDA": (llama(cards=[GPU], maker="NVIDIA", offloads=True), []),
    "llama.cpp with CUDA and a driver that shows no GPU": (
        llama(maker="NVIDIA", offloads=True),
        [("slows", "llama.cpp was built for a GPU and sees none", "nvidia-smi")],
    ),
    "torch on a CPU": (doctor.torch("2.13.0", None, [], ""), []),
    "torch without CUDA": (
        doctor.torch("2.13.0", None, [], "NVIDIA"),
        [("slows", "torch was built without CUDA; this machine has an NVIDIA GPU",
          "pip install --force-reinstall 'torch==2.13.0' --index-url https://download.pytorch.org/whl/cu128")],
    ),
    "torch with CUDA": (doctor.torch("2.13.0", "12.8", [GPU], "NVIDIA"), []),
    "torch with CUDA and a driver that shows no GPU": (
        doctor.torch("2.13.0", "12.8", [], "NVIDIA"),
        [("slows", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "torch for CUDA where there is none": (
        doctor.torch("2.13.0", "12.8", [], ""),
        [("note", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "NF4 that works": (doctor.four_bit("0.50.2", "", 0.09, gradient=True), []),
    "bitsandbytes that does not load": (
        doctor.four_bit("0.50.2", "no library", 0, gradient=False),
        [("slows", "NF4 does not work (no library); until then: learner.precision: bf16", NF4)],
    ),
    "a wrong product": (
        doctor.four_bit("0.50.2", "", 0.9, gradient=True),
        [("stops", "an NF4 matrix multiplies wrongly, by 90%", NF4)],
    ),
    "no gradient": (
        doctor.four_bit("0.50.2", "", 0.09, gradient=False),
        [("stops", "no gradient passes through an NF4 matrix, so that nothing would be learned", NF4)],
    ),
    "enough memory": (doctor.memory(8 * GIGABYTE, 16 * GIGABYTE), []),
    "little memory": (
        doctor.memory(1_200_000_000, 16 * GIGABYTE),
        [("stops", "1.2 GB of memory are free; the smallest run takes 2",
          "close other programs; genius-lite plan RECIPE says what a run takes")],
    ),
    "room on a disk": (doctor.disk("runs", Path("runs"), 50 * GIGABYTE), []),
    "a full disk": (
        doctor.disk("runs", Path("runs"), GIGABYTE),
        [("stops", "1.0 GB are free for runs in runs", "genius-lite run RECIPE --out /another/disk/run")],
    ),
    "a full disk for temporary files": (
        doctor.disk("temporary files", Path("/tmp"), GIGABYTE),
        [("slows", "1.0 GB are free for temporary files in /tmp", "export TMPDIR=/another/disk/tmp")],
    ),
    "few threads": (
        doctor.threads({"OMP_NUM_THREADS": "1"}, 4),
        [("slows", "OMP_NUM_THREADS=1 keeps the learner from 4 cores", "unset OMP_NUM_THREADS")],
    ),
    "as many threads as cores": (doctor.threads({"OMP_NUM_THREADS": "4"}, 4), []),
    "threads that spin": (
        doctor.threads({"OMP_WAIT_POLICY": "ACTIVE"}, 4),
        [("slows", "OMP_WAIT_POLICY=active lets threads spin, which starves them as soon as another program runs",
          "unset OMP_WAIT_POLICY")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_problem_has_what_mends_it(case):
    findings, expected = CASES[case]
    problems = [finding.problem for finding in findings if finding.problem]
    assert [(p.level, p.what, p.mend) for p in problems] == expected


def test_everything_is_shown_and_the_worst_problem_first():
    found = [
        *doctor.memory(8 * GIGABYTE, 16 * GIGABYTE),
        *llama(["AVX"]),
        *doctor.libraries(*TORCH, {"torch": "2.5.1"}),
        *doctor.threads({"OMP_NUM_THREADS": "2", "PATH": "/bin"}, 2),
    ]
    *shown, empty, first, mend, second, _ = doctor.report(found)
    assert shown == [
        "memory       8.0 of 16.0 GB free",
        "llama.cpp    0.3.36, built with AVX; no GPU",
        "libraries    0 of 1 are the tested versions; others: torch 2.5.1",
        "threads      OMP_NUM_THREADS=2",
    ]
    assert (empty, first[:15], mend, second[:11]) == (
        "",
        "prevents a run:",
        "    pip install 'torch==2.13.0'",
        "costs speed",
    )
    assert list(doctor.report([Finding("CPU", "one")])) == ["CPU          one", "", "Nothing is wrong."]


def test_rebuilding_names_the_tested_version():
    assert rebuild("GGML_CUDA=on") == (
        'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-deps --no-cache-dir '
        "--no-binary llama-cpp-python 'llama-cpp-python==0.3.36'"
    )


def test_what_is_asked_for_is_pinned_and_the_pins_are_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {canonicalize_name(Requirement(line).name) for line in project["project"]["dependencies"]}
    assert asked <= set(doctor.pins())
    assert set(doctor.requirements()) <= asked
    assert "constraints.txt" in project["tool"]["setuptools"]["package-data"]["genius_lite"]


def test_instruction_sets_are_read(tmp_path):
    (tmp_path / "x86").write_text("processor: 0\nflags\t\t: fpu avx avx2\nprocessor: 1\nflags : other\n")
    (tmp_path / "arm").write_text("processor: 0\nFeatures\t: fp asimd\n")
    assert doctor.cpu_flags(tmp_path / "x86") == ["fpu", "avx", "avx2"]
    assert doctor.cpu_flags(tmp_path / "arm") == ["fp", "asimd"]
    assert doctor.cpu_flags(tmp_path / "none") == []


def test_the_real_command(tmp_path):
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", "doctor", "--json"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    shown = genius("doctor", cwd=tmp_path)
    found = msgspec.convert(json.loads(told.stdout), list[Finding])
    problems: list[Problem] = [finding.problem for finding in found if finding.problem]
    worst = any(problem.level == "stops" for problem in problems)
    assert shown.returncode == told.returncode == int(worst), shown.stderr + told.stderr
    labels = {"system", "CPU", "memory", "disk", "llama.cpp", "torch", "bitsandbytes", "libraries", "threads", "hub"}
    assert {finding.label for finding in found} == labels
    # Where bitsandbytes works at all, a product is near and a gradient passes, whatever this CPU's layout is.
    assert not [p for p in problems if "NF4 matrix" in p.what]
    for problem in problems:
        assert problem.mend in shown.stdout
    assert list(tmp_path.iterdir()) == []
