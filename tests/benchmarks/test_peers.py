"""Other programs that rollouts are measured beside, which are not among the tests' requirements: scripts that take what
is asked, and say what those say (llama.cpp as llama-cpp-python 0.3.36 has it)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

from genius_lite.records import Query
from tests.benchmarks.peers import GENERATED, Missing, batched_bench, server

QUERIES = [Query(f"{n:016x}", "?", [n] * length) for n, length in enumerate((20, 30))]

BENCH = """#!/bin/sh
echo "$@" > {folder}/asked
cat <<'END'
{{"n_kv_max": 1024, "n_batch": 512, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 25, "tg": 96, "pl": {branches}, "n_kv": 484, "t_pp": 0.002187, \
"speed_pp": 45724.738281, "t_tg": 0.362872, "speed_tg": 1058.224365, "t": 0.365059, "speed": 1325.812988}}
{{"n_kv_max": 1024, "n_batch": 512, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 25, "tg": 96, "pl": 1, "n_kv": 121, "t_pp": 0.000554, \
"speed_pp": 45126.351562, "t_tg": 0.025163, "speed_tg": 3815.125244, "t": 0.025717, "speed": 4705.058594}}

END
{end}
"""

SERVER = """#!{python} -I
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({{"status": "ok"}} if self.path == "/health" else None)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("{folder}/asked", "a") as file:
            file.write(json.dumps([sys.argv[1:], self.path, asked]) + "\\n")
        said = {{"index": 0, "content": "?", "tokens": [], "id_slot": 3, "stop": True, "tokens_evaluated": 2}}
        self.answer(said | {{"tokens_predicted": asked["n_predict"], "stop_type": "limit", "truncated": False}})

    def answer(self, said):
        self.send_response(200 if said else 404)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers).serve_forever()
"""


@pytest.fixture
def asked(tmp_path, monkeypatch) -> argparse.Namespace:
    """What the benchmark is asked for; programs are looked for in the test's folder first."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    model, none = tmp_path / "tiny.gguf", {"batched_bench": None, "server": None}
    return argparse.Namespace(model=model, slots=4, context=256, threads=2, kv_unified=True, **none)


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def options(words: list[str]) -> dict[str, str]:
    return {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}


def test_batched_bench_is_asked_for_the_same_and_its_generation_is_read(asked, tmp_path):
    program(tmp_path / "llama-batched-bench", BENCH.format(folder=tmp_path, branches=4, end=""))
    assert batched_bench(asked, QUERIES) == {"tokens_per_s": 1058.224365, "prefill_tokens_per_s": 45724.738281}
    words = (tmp_path / "asked").read_text().split()
    wanted = {"-m": str(asked.model), "-c": "1024", "-t": "2", "-npp": "25", "-ntg": f"{GENERATED}", "-npl": "4,1"}
    assert wanted.items() <= options(words).items()
    assert "-kvu" in words


@pytest.mark.parametrize(
    ("branches", "end", "said"),
    [
        (4, "echo it does not fit >&2; exit 3", "ended with 3: it does not fit"),
        (1, "", "ended with 0: "),  # without a line of so many branches, for which the context has no room
    ],
)
def test_batched_bench_that_fails_is_left_out(asked, tmp_path, branches, end, said):
    program(tmp_path / "llama-batched-bench", BENCH.format(folder=tmp_path, branches=branches, end=end))
    with pytest.raises(Missing, match=said):
        batched_bench(asked, QUERIES)


def test_a_server_is_asked_by_as_many_clients_and_its_tokens_are_counted(asked, tmp_path):
    program(tmp_path / "llama-server", SERVER.format(python=sys.executable, folder=tmp_path))
    began = time.perf_counter()
    measured = server(asked, QUERIES)
    assert measured["tokens_per_s"] > 8 * GENERATED / (time.perf_counter() - began)  # which has its start, too
    assert measured["peak_mb"] > 1
    seen = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {path for _, path, _ in seen} == {"/completion"}
    assert {"-m": str(asked.model), "-c": "1024", "-np": "4", "-t": "2"}.items() <= options(seen[0][0]).items()
    bodies = sorted((body for *_, body in seen), key=lambda body: body["seed"])
    assert [body["seed"] for body in bodies] == [*range(8)]
    assert [body["prompt"] for body in bodies] == 4 * [query.tokens for query in QUERIES]
    assert {(body["n_predict"], body["ignore_eos"], body["n_probs"]) for body in bodies} == {(GENERATED, True, 1)}


def test_programs_that_are_not_there_are_left_out(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for measure in (batched_bench, server):
        with pytest.raises(Missing, match="is not on PATH"):
            measure(asked, QUERIES)
