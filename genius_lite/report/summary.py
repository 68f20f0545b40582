"""What a round did, as figures taken from its own files, and the table at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from genius_lite.records import PreferencePair, Rollout

# The next round samples with the adapter at the base model's side, so that nothing is rounded.
_NOT_MERGED = {"type": "adapter", "loses": False, "tried": []}


def round_report(number: int, rollouts: list[Rollout], pairs: list[PreferencePair], folder: Path) -> dict[str, Any]:
    """The figures of a finished round; `mean_value` is f in nats per token over all candidates with a future.

    Args:
        folder: the round's folder, for its timings, the adapter's training report and the GGUF.
    """
    foreseen = [s for r in rollouts for s in r.steps if s.foreseen]
    candidates = [c for s in foreseen for c in s.candidates]
    timings = [json.loads(line) for line in _lines(folder / "timings.jsonl")]
    merged = (folder / "policy.gguf").exists()
    sampling = [t for t in timings if t["stage"] == "rollouts"]
    seconds = sum(t["seconds"] for t in sampling)
    return {
        "round": number,
        "queries": len(rollouts),
        "candidates": len(candidates),
        "repeated_candidates": sum(s.duplicates for r in rollouts for s in r.steps),
        "dropped_candidates": sum(s.dropped for s in foreseen),
        "skipped_steps": sum(len(r.steps) for r in rollouts) - len(foreseen),
        "pairs": len(pairs),
        "sampled_tokens": sum(r.sampled_tokens for r in rollouts),
        # An interrupted stage that was killed outright leaves no time; then there is no rate either.
        "tokens_per_s": sum(t["amount"] for t in sampling) / seconds if seconds else None,
        "mean_value": fmean(c.value for c in candidates),
        "ended_share": fmean(c.last.finish == "end" for c in candidates),
        "training": json.loads((folder / "adapter" / "train.json").read_text()),
        "gguf_bytes": (folder / ("policy.gguf" if merged else "adapter.gguf")).stat().st_size,
        "quantized": json.loads((folder / "quantized.json").read_text()) if merged else _NOT_MERGED,
    }


def retained_lines(quantized: dict[str, Any], keep: float) -> list[str]:
    """What each type keeps of the learned margin, a line each, and a warning if the chosen one keeps too little."""
    lines = []
    for row in quantized["tried"]:
        kept = "learned nothing"
        if row["kept"] is not None:
            kept = f"keeps {row['kept']:.0%} +- {row['error']:.0%} of the margin"
        rate = f", {row['tokens_per_s']:.0f} tokens/s" if row["tokens_per_s"] else ""
        plain = "" if row["importance"] else ", without importance matrix"
        lines.append(f"{row['type']}: {kept}, KL {row['kl']:.4f}, perplexity x {row['perplexity']:.3f}{rate}{plain}")
    if quantized["loses"]:
        lines.append(
            f"warning: {quantized['type']} keeps less than {keep:.0%} of what was learned; "
            "set quantize.type to a larger type or to auto, or export the adapter itself: --format lora-gguf"
        )
    return lines


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The closing table, the exported file and how to talk to it."""
    title = f"{summary['queries']} queries, {summary['duplicates_dropped']} repeats dropped"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("round", "pairs", "tokens", "tok/s", "value", "loss", "margin", "type", "kept", "MB"):
        table.add_column(heading, justify="right")
    for report in summary["rounds"]:
        training, rate = report["training"], report["tokens_per_s"]
        table.add_row(
            str(report["round"]),
            str(report["pairs"]),
            str(report["sampled_tokens"]),
            f"{rate:.0f}" if rate else "-",
            f"{report['mean_value']:.2f}",
            f"{training['loss']:.4f}",
            f"{training['margin']:+.2f}",
            report["quantized"]["type"],
            _kept(report["quantized"]),
            f"{report['gguf_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    console.print(
        "value: foresight value, nats per token; margin: learned, nats; both are means. kept: of it, after quantizing."
    )
    console.print(f"Tuned model: {summary['exported']}", soft_wrap=True, highlight=False)
    console.print(f"Talk to it:  genius-lite chat {summary['out']}", soft_wrap=True, highlight=False)


def _kept(quantized: dict[str, Any]) -> str:
    if quantized["type"] == "adapter":
        return "all"
    row = next(row for row in quantized["tried"] if row["type"] == quantized["type"])
    return "-" if row["kept"] is None else f"{row['kept']:.0%}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
