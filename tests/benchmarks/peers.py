"""Other programs that sample from the same file, as `rollouts.py` measures them beside ours."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import shutil
import socket
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from genius_lite.hardware.gpus import gpus
from genius_lite.records import Query
from genius_lite.sampler.llama import amx_broken
from tests.support.llama import without_broken_amx

GENERATED = 96  # tokens a branch of the plain measurements, as long as the search's responses


class Missing(Exception):
    """What was to be measured is not installed, or does not work."""


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process, MB, from the kernel's own account."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    return psutil.Process(pid).memory_info().rss / 1e6


def _repacking() -> list[str]:
    """Options with which llama.cpp's programs do without repacked weights where our engine does."""
    return ["--no-repack"] if amx_broken() else []


def batched_bench(a: argparse.Namespace, queries: list[Query]) -> dict[str, Any]:
    """llama-batched-bench: text generation at the same batch, context and KV mode.

    Its last line is lost half of the time: it does not wait for its own log. So one branch alone is the last.
    """
    program = a.batched_bench or shutil.which("llama-batched-bench")
    if not program:
        raise Missing("llama-batched-bench is not on PATH; name it with --batched-bench")
    prompt = round(statistics.fmean(len(q.tokens) for q in queries))
    command = [program, "-m", a.model, "-c", a.context * a.slots, "-b", 512, "-ub", 512, "-t", a.threads]
    command += ["-npp", prompt, "-ntg", GENERATED, "-npl", f"{a.slots},1", "--output-format", "jsonl"]
    command += ["-kvu"] if a.kv_unified else ["-no-kvu"]
    command += ["-ngl", 999] if gpus() else []
    command += _repacking()
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    first = next((line for line in result.stdout.splitlines() if line.startswith("{")), "{}")
    row = json.loads(first)
    if result.returncode or row.get("pl") != a.slots:
        raise Missing(f"llama-batched-bench ended with {result.returncode}: {result.stderr[-200:]}")
    return {"tokens_per_s": row["speed_tg"], "prefill_tokens_per_s": row["speed_pp"]}


def high_level(a: argparse.Namespace, queries: list[Query]) -> dict[str, Any]:
    """`llama_cpp.Llama.create_completion` with log-probabilities, one at a time."""
    import llama_cpp

    with without_broken_amx():
        llama = llama_cpp.Llama(str(a.model), n_ctx=a.context, n_threads=a.threads, logits_all=True, verbose=False)
    tokens, start = 0, time.perf_counter()
    for query in queries[:2]:
        out: Any = llama.create_completion(query.tokens, max_tokens=GENERATED // 2, temperature=0.6, logprobs=1)
        tokens += out["usage"]["completion_tokens"]
    return {"tokens_per_s": tokens / (time.perf_counter() - start)}


def server(a: argparse.Namespace, queries: list[Query]) -> dict[str, Any]:
    """llama-server with as many slots and one client each, log-probabilities on."""
    program = a.server or shutil.which("llama-server")
    if not program:
        raise Missing("llama-server is not on PATH; name it with --server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", a.model, "-c", a.context * a.slots, "-np", a.slots, "-t", a.threads, "--port", port]
    command += _repacking()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process)
        tokens, lock = 0, threading.Lock()

        def client(i: int) -> None:
            nonlocal tokens
            body = {"prompt": queries[i % len(queries)].tokens, "n_predict": GENERATED, "temperature": 0.6}
            body |= {"n_probs": 1, "seed": i, "ignore_eos": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
            request = urllib.request.Request(
                f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=600) as answer, lock:
                tokens += json.load(answer)["tokens_predicted"]

        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(a.slots) as pool:
            list(pool.map(client, range(2 * a.slots)))
        return {"tokens_per_s": tokens / (time.perf_counter() - start), "peak_mb": peak_mb(process.pid)}
    finally:
        process.kill()
        process.wait()


def transformers_generate(a: argparse.Namespace, queries: list[Query]) -> dict[str, Any]:
    """transformers `generate` in bf16 with scores, a batch of 8."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig
    except ImportError as e:
        raise Missing(f"transformers: {e}") from None
    path = Path(a.model)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    batch, new = 8, 16
    width = min(len(q.tokens) for q in queries)
    prompt = torch.tensor([queries[i % len(queries)].tokens[-width:] for i in range(batch)])
    options = {"do_sample": True, "temperature": 0.6, "return_dict_in_generate": True, "output_scores": True}
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **options)
    return {"tokens_per_s": batch * new / (time.perf_counter() - start)}


def _wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None:
                raise Missing("llama-server ended before it was ready") from None
            time.sleep(0.1)
    raise Missing("llama-server was not ready within a minute")


PEERS = {"bench": batched_bench, "high-level": high_level, "server": server, "transformers": transformers_generate}
TITLES = {
    "bench": "llama-batched-bench", "high-level": "`Llama` with logprobs", "server": "llama-server",
    "transformers": "transformers bf16",
}  # fmt: skip
