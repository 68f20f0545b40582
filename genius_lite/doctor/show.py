"""Findings and problems as plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from genius_lite.doctor.advice import Problem
from genius_lite.doctor.findings import Card, Findings
from genius_lite.doctor.versions import TESTED

_HEADS = {"stops": "prevents a run", "slows": "costs speed or room", "note": "good to know"}


def lines(found: Findings, wrong: list[Problem]) -> Iterator[str]:
    """For a terminal."""
    yield f"system       {found.system}, Python {found.python}"
    yield f"CPU          {found.cpu}, {found.cores} cores"
    yield f"memory       {found.free_memory / 1e9:.1f} of {found.memory / 1e9:.1f} GB free"
    for space in found.spaces:
        yield f"disk         {space.free / 1e9:.1f} GB free for {space.use} ({space.path})"
    if llama := found.llama:
        yield f"llama.cpp    {found.versions['llama-cpp-python']}, built with {' '.join(llama.features)}"
        yield f"             {_cards(llama.gpus) or 'no GPU'}"
    if torch := found.torch:
        cuda = f"CUDA {torch.cuda}" if torch.cuda else "no CUDA"
        devices = _cards(torch.cards) or ("Metal" if torch.mps else "no GPU")
        native = "native" if torch.bf16 else "emulated, so that fp32 is computed in"
        yield f"torch        {found.versions['torch']}, {cuda}, {torch.threads} threads; {devices}; bf16 is {native}"
    if four_bit := found.four_bit:
        works = four_bit.fault or f"NF4 works (a product is off by {four_bit.error or 0:.0%}, a gradient passes)"
        yield f"bitsandbytes {found.versions['bitsandbytes']}, for {' '.join(four_bit.devices)}; {works}"
    yield f"libraries    {_compared(found)}"
    yield f"threads      {_environment(found)}"
    yield (
        "hub          offline (HF_HUB_OFFLINE)"
        if found.offline
        else "hub          no token is needed for public models"
    )
    yield ""
    if not wrong:
        yield "Nothing is wrong."
    for problem in wrong:
        yield f"{_HEADS[problem.level]}: {problem.what}"
        yield f"    {problem.mend}"


def _cards(cards: list[Card]) -> str:
    return ", ".join(f"{card.name} ({card.free / 1e9:.1f} GB free)" for card in cards)


def _compared(found: Findings) -> str:
    same = [name for name, tested in TESTED.items() if _release(found.versions.get(name)) == tested]
    others = [f"{name} {found.versions.get(name)}" for name in TESTED if name not in same and found.versions.get(name)]
    return f"{len(same)} of {len(TESTED)} are the tested versions" + (
        f"; others: {', '.join(others)}" if others else ""
    )


def _release(version: str | None) -> str:
    """Without what a build adds, such as `+cpu`."""
    return (version or "").partition("+")[0]


def _environment(found: Findings) -> str:
    return " ".join(f"{name}={value}" for name, value in found.environment.items()) or "nothing set"
