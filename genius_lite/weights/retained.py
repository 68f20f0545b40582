"""How much of what was learned a quantized file keeps: the same pairs, scored by llama.cpp with each file.

Re-quantizing can erase a small update. The learned margin of a pair is how much further chosen and rejected response
are apart than in the base model; a base model quantized the same way stands beside each file, so that what
quantizing does to any model is not taken for learning.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genius_lite.records import PreferencePair
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node

_SAMPLED = 64  # tokens of each response on which the divergence is measured
_AT_FIRST = 8  # pairs, at least, that are scored before the others: enough for their spread to say something


@dataclass(frozen=True)
class Probe:
    """What is scored: pairs, and responses that the unquantized policy samples to their prompts."""

    pairs: list[PreferencePair]
    responses: list[tuple[list[int], list[int]]]  # prompt, tokens

    def parts(self) -> list[Probe]:
        """A few of the pairs, with all responses; and the other pairs, which are scored only if those leave it open."""
        every = max(1, len(self.pairs) // _AT_FIRST)
        others = [pair for number, pair in enumerate(self.pairs) if number % every]
        first = Probe(self.pairs[::every], self.responses)
        return [first, Probe(others, [])] if others else [first]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities by one file, nats.

    Of each pair the chosen response less the rejected one, summed; of each token of the chosen ones; of each token that
    the unquantized policy sampled.
    """

    gaps_P: np.ndarray
    chosen_C: np.ndarray
    sampled_S: np.ndarray

    def __add__(self, more: Scores) -> Scores:
        """Those of two probes."""
        return Scores(
            np.concatenate([self.gaps_P, more.gaps_P]),
            np.concatenate([self.chosen_C, more.chosen_C]),
            np.concatenate([self.sampled_S, more.sampled_S]),
        )


@dataclass(frozen=True)
class Retained:
    """What a file keeps of the F16 merge.

    `margin` is the mean learned margin in nats, `kept` its share of the F16 merge's (None where that learned nothing),
    `error` the standard error of that share over the pairs: rounding moves every response by chance, so that few pairs
    and a small margin tell little. `kl` is this file's divergence from the F16 merge in nats a token, estimated on what
    that sampled, `perplexity` the factor by which that of the chosen responses changed.
    """

    type: str
    margin: float
    kept: float | None
    error: float
    kl: float
    perplexity: float
    importance: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe(merged: Path, settings: EngineSettings, pairs: list[PreferencePair], log: Path) -> Probe:
    """Let the unquantized policy answer the pairs' prompts, at temperature 1 from the raw distribution."""
    prompts = list({pair.query_id: pair.prompt_tokens for pair in pairs}.values())

    async def sample() -> list[tuple[list[int], list[int]]]:
        async with open_sampler(merged, settings, Sampling(1.0), log) as sampler:
            roots = [Node(None, prompt, ("retained", number)) for number, prompt in enumerate(prompts)]
            futures = [sampler.extend(root, 1, until="end", limit=_SAMPLED)[0] for root in roots]
            completions = [node.completion for node in await asyncio.gather(*futures)]
        found = [c for c in completions if c]
        return [(prompt, c.tokens) for prompt, c in zip(prompts, found, strict=True)]

    return Probe(pairs, asyncio.run(sample()))


def scores(file: Path, settings: EngineSettings, wanted: Probe, log: Path) -> Scores:
    """What a file says of the probe."""

    async def ask() -> tuple[list[list[float]], list[list[float]]]:
        async with open_sampler(file, settings, Sampling(1.0), log) as sampler:
            of_pairs = [
                sampler.score(pair.prompt_tokens, tokens)
                for pair in wanted.pairs
                for tokens in (pair.chosen_tokens, pair.rejected_tokens)
            ]
            of_samples = [sampler.score(prompt, tokens) for prompt, tokens in wanted.responses]
            return await asyncio.gather(*of_pairs), await asyncio.gather(*of_samples)

    pairs, samples = asyncio.run(ask())
    summed_P2 = np.array([sum(logprobs) for logprobs in pairs]).reshape(-1, 2)
    return Scores(
        gaps_P=summed_P2[:, 0] - summed_P2[:, 1],
        chosen_C=np.array([logprob for chosen in pairs[::2] for logprob in chosen]),
        sampled_S=np.array([logprob for sample in samples for logprob in sample]),
    )


def compare(kind: str, policy: Scores, base: Scores, exact: Scores, exact_base: Scores, importance: bool) -> Retained:
    """Put a file (and the base at the same type) beside the F16 merge (and the F16 base)."""
    learned_P, margin_P = exact.gaps_P - exact_base.gaps_P, policy.gaps_P - base.gaps_P
    learned, margin = float(learned_P.mean()), float(margin_P.mean())
    spread = float((margin_P - learned_P).std(ddof=1)) if len(margin_P) > 1 else math.inf
    return Retained(
        type=kind,
        margin=margin,
        kept=margin / learned if learned > 0 else None,
        error=spread / len(margin_P) ** 0.5 / learned if learned > 0 else 0.0,
        kl=_divergence(exact.sampled_S, policy.sampled_S),
        perplexity=float(np.exp((exact.chosen_C - policy.chosen_C).mean())),
        importance=importance,
    )


def _divergence(exact_S: np.ndarray, other_S: np.ndarray) -> float:
    """KL(exact || other), nats a token, from tokens that `exact` sampled.

    The estimator r - 1 - log r with r = other / exact (J. Schulman, "Approximating KL divergence", 2020) has no bias
    and is never negative, so that a few hundred tokens do.
    """
    log_ratio_S = other_S - exact_S
    return float((np.expm1(log_ratio_S) - log_ratio_S).mean())
