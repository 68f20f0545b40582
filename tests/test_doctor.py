from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genius_lite.doctor import build, examine
from genius_lite.doctor.build import Finding, Problem, install, pins, rebuild
from genius_lite.hardware.gpus import Gpu
from tests.support.cli import genius

ROOT = Path(__file__).parents[1]
GIGABYTE = 1_000_000_000
GPU = Gpu("GPU", 8 * GIGABYTE, 8 * GIGABYTE)
ALL = ["AVX", "AVX2", "FMA", "F16C"]
FLAGS = ["avx", "avx2", "fma", "f16c"]
AMX = ["GGML_NATIVE=off", "GGML_AVX=on", "GGML_AMX_INT8=on", "GGML_AMX_TILE=on", "CMAKE_CXX_FLAGS=-fno-dse"]
NF4 = install("--force-reinstall --no-deps bitsandbytes==0.50.2")
COMMAND = [sys.executable, "-c", "from genius_lite.cli import main; main()"]
TORCH = {"torch": ">=2.6"}, {"torch": "2.13.0"}


def llama(features=ALL, flags=FLAGS, cards=(), maker="", offloads=False, amx_broken=False) -> Iterator[Finding]:
    return build.llama_cpp("0.3.36", features, flags, cards, maker, offloads, amx_broken)


CASES = {
    "a missing library": (
        examine.libraries(*TORCH, {"torch": None}),
        [("stops", "torch is not installed", install("torch==2.13.0"))],
    ),
    "too old a library": (
        examine.libraries(*TORCH, {"torch": "2.5.1"}),
        [("stops", "torch 2.5.1 is too old: >=2.6 is needed", install("torch==2.13.0"))],
    ),
    "an older library": (
        examine.libraries(*TORCH, {"torch": "2.8.0+cpu"}),
        [("note", "torch 2.8.0+cpu is older than 2.13.0, which is what was tested", install("torch==2.13.0"))],
    ),
    "nothing that says what is asked for": (
        examine.libraries({}, {}, {}),
        [
            (
                "note",
                "genius-lite-gguf is not installed: llama.cpp, torch and libraries are not looked at",
                f"in a clone of its repository: {install('.')}",
            )
        ],
    ),
    "a newer library": (examine.libraries(*TORCH, {"torch": "3.0"}), []),
    "a build of the tested version": (examine.libraries(*TORCH, {"torch": "2.13.0+cpu"}), []),
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
        [("slows", "llama.cpp was built without CUDA; this machine has an NVIDIA GPU",
          rebuild("GGML_NATIVE=on", "GGML_CUDA=on"))],
    ),
    "llama.cpp without HIP": (
        llama(maker="AMD"),
        [("slows", "llama.cpp was built without HIP; this machine has an AMD GPU",
          rebuild("GGML_NATIVE=on", "GGML_HIP=on"))],
    ),
    "llama.cpp without Metal": (
        llama(maker="Apple"),
        [("slows", "llama.cpp was built without Metal; this machine has an Apple GPU",
          rebuild("GGML_NATIVE=on", "GGML_METAL=on"))],
    ),
    "a portable build for a GPU": (
        llama(["AVX", "FMA", "F16C"], cards=[GPU], maker="NVIDIA", offloads=True),
        [("slows", "llama.cpp was built without AVX2, which this CPU has", rebuild("GGML_NATIVE=on", "GGML_CUDA=on"))],
    ),
    "a build for another CPU": (
        llama([*ALL, "AVX512"]),
        [("stops", "llama.cpp was built with AVX512, which this CPU does not have: it may die of it",
          rebuild("GGML_NATIVE=on"))],
    ),
    "a build for a CPU that nothing is known of": (llama([*ALL, "AVX512"], []), []),
    "a llama.cpp that does not load": (
        build.broken("0.3.36", "libc.so.6: version `GLIBC_2.99' not found", "", Path("none")),
        [("stops", "llama.cpp does not load: libc.so.6: version `GLIBC_2.99' not found", rebuild("GGML_NATIVE=on"))],
    ),
    "llama.cpp with CUDA": (llama(cards=[GPU], maker="NVIDIA", offloads=True), []),
    "llama.cpp with CUDA and a driver that shows no GPU": (
        llama(maker="NVIDIA", offloads=True),
        [("slows", "llama.cpp was built for a GPU and sees none", "nvidia-smi")],
    ),
    "llama.cpp for a GPU where there is none": (
        llama(offloads=True),
        [("slows", "llama.cpp was built for a GPU and sees none", "see whether this machine has one, and its driver")],
    ),
    "torch on a CPU": (examine.torch("2.13.0", None, [], ""), []),
    "torch without CUDA": (
        examine.torch("2.13.0", None, [], "NVIDIA"),
        [("slows", "torch was built without CUDA; this machine has an NVIDIA GPU",
          install("--force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"))],
    ),
    "torch with CUDA": (examine.torch("2.13.0", "12.8", [GPU], "NVIDIA"), []),
    "torch with CUDA and a driver that shows no GPU": (
        examine.torch("2.13.0", "12.8", [], "NVIDIA"),
        [("slows", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "torch for CUDA where there is none": (
        examine.torch("2.13.0", "12.8", [], ""),
        [("note", "torch was built for CUDA 12.8 and sees no GPU", "nvidia-smi")],
    ),
    "NF4 that works": (examine.four_bit("0.50.2", "", 0.09, gradient=True), []),
    "bitsandbytes that does not load": (
        examine.four_bit("0.50.2", "no library", 0, gradient=False),
        [("slows", "NF4 does not work (no library); until then: learner.precision: bf16", NF4)],
    ),
    "a wrong product": (
        examine.four_bit("0.50.2", "", 0.9, gradient=True),
        [("stops", "an NF4 matrix multiplies wrongly, by 90%", NF4)],
    ),
    "no gradient": (
        examine.four_bit("0.50.2", "", 0.09, gradient=False),
        [("stops", "no gradient passes through an NF4 matrix, so that nothing would be learned", NF4)],
    ),
    "enough memory": (examine.memory(8 * GIGABYTE, 16 * GIGABYTE), []),
    "little memory": (
        examine.memory(1_200_000_000, 16 * GIGABYTE),
        [("stops", "1.2 GB of memory are free; the smallest run takes 2",
          "close other programs; genius-lite plan RECIPE says what a run takes")],
    ),
    "room on a disk": (examine.disk("runs", Path("runs"), 50 * GIGABYTE), []),
    "a full disk": (
        examine.disk("runs", Path("runs"), GIGABYTE),
        [("stops", "1.0 GB are free for runs in runs", "genius-lite run RECIPE --out /another/disk/run")],
    ),
    "a full disk for temporary files": (
        examine.disk("temporary files", Path("/tmp"), GIGABYTE),
        [("slows", "1.0 GB are free for temporary files in /tmp", "export TMPDIR=/another/disk/tmp")],
    ),
    "few threads": (
        examine.threads({"OMP_NUM_THREADS": "1"}, 4),
        [("slows", "OMP_NUM_THREADS=1 keeps the learner from 4 cores", "unset OMP_NUM_THREADS")],
    ),
    "as many threads as cores": (examine.threads({"OMP_NUM_THREADS": "4"}, 4), []),
    "threads that spin": (
        examine.threads({"OMP_WAIT_POLICY": "ACTIVE"}, 4),
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
        *examine.memory(8 * GIGABYTE, 16 * GIGABYTE),
        *llama(["AVX"]),
        *examine.libraries(*TORCH, {"torch": "2.5.1"}),
        *examine.threads({"OMP_NUM_THREADS": "2", "PATH": "/bin"}, 2),
    ]
    *shown, empty, first, mend, second, _ = examine.report(found)
    assert shown == [
        "memory       8.0 of 16.0 GB free",
        "llama.cpp    0.3.36, built with AVX; no GPU",
        "libraries    0 of 1 are the tested versions; others: torch 2.5.1",
        "threads      OMP_NUM_THREADS=2",
    ]
    assert (empty, first[:15], mend, second[:11]) == (
        "",
        "prevents a run:",
        f"    {install('torch==2.13.0')}",
        "costs speed",
    )
    assert list(examine.report([Finding("CPU", "one")])) == ["CPU          one", "", "Nothing is wrong."]


def test_rebuilding_names_the_tested_version_and_this_environment():
    assert rebuild("GGML_NATIVE=on", "GGML_CUDA=on") == (
        f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "
        '-C cmake.args="-DGGML_NATIVE=on;-DGGML_CUDA=on" llama-cpp-python==0.3.36'
    )


def test_cudas_libraries_are_found_where_torch_put_them(tmp_path):
    for library in ("cublas/lib/libcublas.so.13", "cu13/lib/libcudart.so.13"):
        (tmp_path / "nvidia" / library).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / library).touch()
    fault = "libcudart.so.13: cannot open shared object file: No such file or directory"
    (found,) = build.broken("0.3.36", fault, "NVIDIA", tmp_path)
    assert found.problem
    assert found.problem.mend == f"export LD_LIBRARY_PATH={tmp_path}/nvidia/cu13/lib:{tmp_path}/nvidia/cublas/lib"
    (elsewhere,) = build.broken("0.3.36", fault.replace(".13", ".12"), "NVIDIA", tmp_path)
    assert elsewhere.problem and elsewhere.problem.mend == rebuild("GGML_NATIVE=on", "GGML_CUDA=on")


def test_a_llama_that_takes_its_process_along_is_told_of():
    assert build.unloadable() == ""
    said = build.unloadable((sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGILL:d})"))
    assert said.startswith("it was compiled for another processor")
    assert build.unloadable((sys.executable, "-c", "raise SystemExit(3)")) == "exit code 3"


def test_a_foreign_llama_is_one_line_too(tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("def llama_print_system_info(): return b'AVX2 = 1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = build.look_at_llama("0.1.0", "")
    assert found.problem and found.problem.what.endswith("has no attribute 'llama_supports_gpu_offload'")


def test_what_is_built_anew_works_on_a_processor_with_amx_and_nothing_is_where_it_would_not_be_read(tmp_path):
    (anew,) = build.broken("0.3.36", "ImportError", "", tmp_path, ["avx2", "amx_int8"])
    assert anew.problem and "-DGGML_AMX_TILE=on;-DCMAKE_CXX_FLAGS=-fno-dse" in anew.problem.mend
    (elsewhere,) = build.broken("0.3.36", "FileNotFoundError", "", tmp_path, elsewhere=True)
    assert elsewhere.problem and elsewhere.problem.mend == "unset LLAMA_CPP_LIB_PATH"


def test_a_llama_that_does_not_load_is_one_line(tiny_llama, tmp_path):
    """Of `doctor`, which knows what mends it, and of every other command."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)}
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )

    shown = run("doctor")
    assert shown.returncode == 1, shown.stderr
    assert "llama.cpp    0.3.36, does not load" in shown.stdout
    assert "prevents a run: llama.cpp does not load: FileNotFoundError: Shared library with" in shown.stdout
    refused = run("bench", tiny_llama)
    assert refused.stderr.startswith("error: llama.cpp does not load (Shared library with"), refused.stderr
    assert refused.returncode == 2


def test_what_is_asked_for_is_pinned_and_the_pins_are_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {canonicalize_name(Requirement(line).name) for line in project["project"]["dependencies"]}
    assert asked <= set(pins())
    assert set(examine.requirements()) <= asked
    assert "constraints.txt" in project["tool"]["setuptools"]["package-data"]["genius_lite"]


def test_the_files_of_wheels_take_the_pinned_versions_and_one_cuda():
    files = {file.stem: file.read_text().split() for file in (ROOT / "wheels").glob("*.txt")}
    assert set(files) == {"cpu", "cuda"}
    for words in files.values():
        assert (ROOT / "wheels" / words[words.index("-c") + 1]).samefile(ROOT / "genius_lite" / "constraints.txt")
    (wheels,) = [word for word in files["cuda"] if "/whl/" in word]
    (torch,) = [finding.problem for finding in examine.torch("2.13.0", None, [], "NVIDIA") if finding.problem]
    assert re.findall(r"/whl/(cu\d+)", wheels) == re.findall(r"/whl/(cu\d+)", torch.mend) == ["cu130"]


def test_instruction_sets_are_read(tmp_path):
    (tmp_path / "x86").write_text("processor: 0\nflags\t\t: fpu avx avx2\nprocessor: 1\nflags : other\n")
    (tmp_path / "arm").write_text("processor: 0\nFeatures\t: fp asimd\n")
    assert build.cpu_flags(tmp_path / "x86") == ["fpu", "avx", "avx2"]
    assert build.cpu_flags(tmp_path / "arm") == ["fp", "asimd"]
    assert build.cpu_flags(tmp_path / "none") == []


def test_the_hubs_cache_is_looked_at_where_it_is(tmp_path):
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "ON"}
    code = "from genius_lite.doctor import examine as e; from pathlib import Path\n"
    code += "e.requirements = dict\nprint(*(f.line for f in e.examine(Path('runs'))), sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert f"free for hub downloads ({tmp_path / 'hub'})" in told
    assert "offline (HF_HUB_OFFLINE)" in told


def test_the_real_command(tmp_path):
    told = subprocess.run([*COMMAND, "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
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


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("accelerate", "1.14.0"),  # knows nothing of Metal's words for no memory; trackio gets no step below that
        ("bitsandbytes", "0.49.2"),  # has no 8-bit optimizer for a CPU
        ("datasets", "4.1.1"),  # looks for the errors of a huggingface_hub below 1.0
        ("gguf", "0.18.0"),  # lacks the names of some families
        ("huggingface_hub", "1.33.0"),  # speaks httpx, not httpx2
        ("jinja2", "3.1.5"),  # a stranger's chat template gets out of its sandbox
        ("pydantic", "2.11.3"),  # makes no schema of a recipe, which every message about one needs
        ("safetensors", "0.7.0"),
        ("typer", "0.25.1"),  # shows no help of arguments
    ],
)
def test_what_is_known_not_to_do_is_not_asked_for(name, version):
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [one.specifier for one in map(Requirement, asked) if one.name == name]
    assert not found.contains(version)
