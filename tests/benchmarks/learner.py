"""The learner against TRL's DPOTrainer: same real pairs, checkpoint, LoRA and dtype, reference precomputed in both.

    python -m tests.benchmarks.learner --hf-checkpoint RUN/hf-checkpoint --pairs RUN/round-1/pairs.jsonl

RUN is a run folder; its pairs are in `round-1/pairs.jsonl`. Each measurement is a process of its own, interleaved. It
gives pairs/s of the updates alone, and the process's peak memory. `trl checkpointing` is TRL with its default, which
computes activations twice; `trl` keeps them. `ours nf4` shows the precision that a run would choose where memory is
short. Then the DPO loss of one trained adapter (alpha infinite) on the same pairs is computed by both in fp32. TRL
comes with `pip install 'trl>=1.16'`.

`share` is how much of the machine's own matrix product our updates reach: products with the frozen matrices, forward
and backward, and with the head at the tokens that count, by the time of the updates; over that of a product of 512
tokens with the largest matrix of a layer, in the same type and process. At the end are the rows of RESULTS.md's table,
in which brackets are TRL with its default, and one JSON object in the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genius_lite.hardware.system import peak_memory
from genius_lite.learner.batches import Packer
from genius_lite.learner.loss import dpo, pair_logps, pair_loss
from genius_lite.learner.model import load_policy
from genius_lite.learner.packing import by_query, packs, unshared_tokens
from genius_lite.learner.scores import score
from genius_lite.learner.train import PASSES_OF_AN_UPDATE, Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir
from genius_lite.rundir.lines import read_records
from genius_lite.weights.importing import Base
from tests.benchmarks.machine import in_words, measured_on
from tests.benchmarks.table import markdown

BATCH = 4  # pairs of an update


def learner(a: argparse.Namespace, **options: Any) -> Learner:
    return Learner(batch_pairs=BATCH, lr=1e-4, alpha=math.inf, rank=16, lora_alpha=32, **options)


def ours(a: argparse.Namespace, pairs: list[PreferencePair], precision: str) -> dict[str, Any]:
    """`train_adapter`, the updates timed between the reference's last pair and the last update's."""
    seen, marks = 0, {}

    def advance(n: int) -> None:
        nonlocal seen
        seen += n
        marks[seen] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        (work := Path(folder) / "work").mkdir()
        cfg = learner(a, gradient_checkpointing=a.checkpointing)
        job = Training(a.hf_checkpoint, None, pairs, [], cfg, a.device, precision, (0, 1), RunDir(work))  # pyright: ignore
        report = train_adapter(job, Path(folder) / "adapter", advance)
        if a.keep:
            (Path(folder) / "adapter").rename(a.keep)
    seconds = marks[len(pairs) * (1 + PASSES_OF_AN_UPDATE)] - marks[len(pairs)]
    return {
        "pairs_per_s": len(pairs) / seconds,
        "peak_mb": peak_memory() / 1e6,
        "weights_mb": report.weight_bytes / 1e6,
        "shared_tokens": report.shared_tokens,
        **_share(a, pairs, (1 - report.shared_tokens) * unshared_tokens(pairs), seconds),
    }


def _share(a: argparse.Namespace, pairs: list[PreferencePair], tokens: float, seconds: float) -> dict[str, float]:
    """What updates on so many packed tokens computed, and this machine's own matrix product, GFLOPS; their ratio."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(a.hf_checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    inside = [m.weight for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    head = model.get_output_embeddings().weight
    counted = sum(len(pack.inputs().targets_S) for pack in packs(by_query(pairs), 10**6, 1))
    reached = 2 * 2 * (sum(w.numel() for w in inside) * tokens + head.numel() * counted) / seconds
    largest = max(inside, key=torch.Tensor.numel)
    dtype = torch.float32 if a.dtype == "fp32" else torch.bfloat16
    x, weight = (
        torch.randn(*shape, dtype=dtype, device=a.device) for shape in ((512, largest.shape[1]), largest.shape)
    )
    rates = []
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(16):
            result = x @ weight.T
        float(result[0, 0])  # which waits for a GPU
        rates.append(16 * 2 * len(x) * weight.numel() / (time.perf_counter() - began))
    best = statistics.median(rates)
    return {"gflops": reached / 1e9, "matmul_gflops": best / 1e9, "share": reached / best}


def trl(a: argparse.Namespace, pairs: list[PreferencePair], checkpointing: bool) -> dict[str, Any]:
    """`DPOTrainer.train`, which begins after the reference was precomputed."""
    trainer = trl_trainer(a, pairs, checkpointing)
    start = time.perf_counter()
    trainer.train()
    return {"pairs_per_s": len(pairs) / (time.perf_counter() - start), "peak_mb": peak_memory() / 1e6}


def trl_trainer(a: argparse.Namespace, pairs: list[PreferencePair], checkpointing: bool) -> Any:
    import tokenizers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class OnTokenIds(DPOTrainer):
        """The pairs are token ids already, as they are for our learner."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    model: Any = AutoModelForCausalLM.from_pretrained(a.hf_checkpoint, dtype=dtype)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    processing = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    columns = {
        "prompt_ids": [p.prompt_tokens for p in pairs],
        "chosen_ids": [p.chosen_tokens for p in pairs],
        "rejected_ids": [p.rejected_tokens for p in pairs],
    }
    cfg = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-4,
        beta=0.1,
        bf16=a.dtype == "bf16",
        precompute_ref_log_probs=True,
        gradient_checkpointing=checkpointing,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=a.device == "cpu",
    )
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=linear, task_type="CAUSAL_LM")
    return OnTokenIds(
        model, args=cfg, train_dataset=Dataset.from_dict(columns), processing_class=processing, peft_config=lora
    )


def losses(a: argparse.Namespace, pairs: list[PreferencePair]) -> dict[str, Any]:
    """The mean DPO loss of the adapter in `a.keep` on the first pairs, by TRL and by us, fp32."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    pairs, a.dtype = pairs[:8], "fp32"
    trainer = trl_trainer(a, pairs, checkpointing=False)
    set_peft_model_state_dict(trainer.model, load_file(a.keep / "adapter_model.safetensors"))
    trainer.model.eval()
    rows = [trainer.train_dataset[i] for i in range(len(pairs))]
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))
    policy = load_policy(a.hf_checkpoint, a.keep, learner(a), "cpu", "fp32", 0)
    (pack,) = packs(by_query(pairs), 10**6, 10**6)
    packer = Packer(policy, pairs, learner(a), "cpu", print)
    with policy.disable_adapter():
        reference = score(packer, by_query(pairs), lambda n: None)
    learned = score(packer, by_query(pairs), lambda n: None)
    order = by_query(pairs).places_P
    logps = pair_logps(pack, torch.from_numpy(learned[order]), reference[order].tolist(), learner(a))
    assert torch.allclose(pair_loss(logps, learner(a)), dpo(logps, learner(a)))
    return {"trl": theirs, "ours": pair_loss(logps, learner(a)).mean().item()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hf-checkpoint", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=32, help="pairs")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of both; bf16 where it is native")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--checkpointing", action="store_true", help="ours computes activations twice too")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", default="", help="measurements to leave out, comma-separated")
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


MEASURES = {
    "ours": lambda a, pairs: ours(a, pairs, a.dtype),
    "trl": lambda a, pairs: trl(a, pairs, checkpointing=False),
    "trl checkpointing": lambda a, pairs: trl(a, pairs, checkpointing=True),
    "ours nf4": lambda a, pairs: ours(a, pairs, "nf4"),
    "losses": losses,
}


def rows(a: argparse.Namespace, model: str, median: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """A row for what learned, of ours with what it is in terms of TRL."""
    found, peers = [], [median[name] for name in ("trl", "trl checkpointing") if name in median]
    titles = {"ours": f"ours {a.dtype}", "ours nf4": "ours NF4"}
    for name, title in titles.items():
        if row := median.get(name):
            found.append({"model": model, "pairs": f"{a.limit}", "": title, **_speeds([row])})
            found[-1]["weights MB"] = f"{row['weights_mb']:,.0f}"
            for key, column in (("pairs_per_s", "/ TRL, pairs/s"), ("peak_mb", "/ TRL, memory")):
                found[-1] |= {column: _bracketed(f"{row[key] / peer[key]:.3g}" for peer in peers)} if peers else {}
            found[-1][f"of the machine's {a.dtype} products"] = (
                f"{row['gflops']:,.0f} of {row['matmul_gflops']:,.0f} GFLOPS"
            )
    theirs = "TRL" if "trl" in median else "TRL checkpointing"
    found += [{"model": model, "pairs": f"{a.limit}", "": theirs, **_speeds(peers)}] if peers else []
    return found


def _speeds(of: list[dict[str, float]]) -> dict[str, str]:
    speeds = (f"{row['pairs_per_s']:.3g}" for row in of)
    return {"pairs/s": _bracketed(speeds), "peak MB": _bracketed(f"{row['peak_mb']:,.0f}" for row in of)}


def _bracketed(cells: Iterable[str]) -> str:
    """The first cell, and others in brackets."""
    first, *others = cells
    return first + "".join(f" ({other})" for other in others)


def main() -> None:
    a = arguments()
    if a.only:
        print(json.dumps(MEASURES[a.only](a, read_records(a.pairs, PreferencePair)[: a.limit])))
        return
    model, machine = Base.of(a.hf_checkpoint).name, measured_on() | _versions(a)
    print(f"{in_words(machine)}; {', '.join(f'{name} {value}' for name, value in _versions(a).items())}", flush=True)
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(a.repeats):
            for name in (name for name in MEASURES if name not in a.without.split(",")):
                keep = Path(folder) / f"adapter-{repeat}"
                command = [sys.executable, "-m", "tests.benchmarks.learner", *sys.argv[1:], "--only", name]
                command += ["--keep", str(keep)] if name in ("ours", "losses") else []
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{repeat} {name}: {json.dumps(results[name][-1])}", flush=True)
    median = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in results.items()}
    ratios = {}
    for peer in ("trl", "trl checkpointing"):
        for mine in ("ours", "ours nf4"):
            if peer in median and mine in median:
                ratios[f"{mine} / {peer}, pairs/s"] = median[mine]["pairs_per_s"] / median[peer]["pairs_per_s"]
                ratios[f"{mine} / {peer}, memory"] = median[mine]["peak_mb"] / median[peer]["peak_mb"]
    if "losses" in median:
        ratios["loss difference"] = abs(median["losses"]["trl"] - median["losses"]["ours"])
    print(markdown(rows(a, model, median)))
    settings = {
        "model": model,
        "pairs": a.limit,
        "dtype": a.dtype,
        "checkpointing": a.checkpointing,
    }
    rounded = {k: round(v, 5) for k, v in ratios.items()}
    print(json.dumps({"machine": machine, "settings": settings, "median": median, "ratios": rounded}))


def _versions(a: argparse.Namespace) -> dict[str, Any]:
    """Describe what trains."""
    libraries = [name for name in ("torch", "transformers", "peft", "trl") if find_spec(name)]
    versions = {name: metadata.version(name) for name in libraries}
    return {"device": a.device, "threads": torch.get_num_threads(), **versions}


if __name__ == "__main__":
    main()
