"""Does the file say what was learned? An independent check: llama.cpp scores the same pairs with and without it.

How much of the update a file keeps is known when it is written (`merge.Kept`). Here the same is seen from outside, on a
few pairs: by how much chosen and rejected response are further apart in the file than in the base, which went through
the same rounding, beside what the adapter does to that base at run time, where nothing is rounded.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from genius_lite.records import PreferencePair
from genius_lite.results.rounds import ScoredMargin
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.interface import run_until_complete
from genius_lite.sampler.messages import EngineSettings, Sampling

CHECKED = 4  # questions, of each of which one pair is scored
SCORED = 48  # tokens of each response, at most, from where the two of a pair part: a check must not take minutes
SCORING_SLOTS = 4  # branches that a file's scores are asked on


def one_of_each(pairs: Sequence[PreferencePair], count: int = CHECKED) -> list[PreferencePair]:
    """Choose the first pair of each question, of so many questions, spread evenly: pairs of one are not independent."""
    firsts = dict[str, int]()
    for place, pair in enumerate(pairs):
        firsts.setdefault(pair.query_id, place)
    places = [*firsts.values()]
    spread = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))
    return [pairs[places[i]] for i in spread]


def check(
    policy: Path,
    base: Path,
    adapter: Path,
    pairs: Sequence[PreferencePair],
    settings: EngineSettings,
    log: Path,
    say: Callable[[str], None] = lambda line: None,
) -> ScoredMargin | None:
    """Score the pairs with a policy's file, its base, and that base with the adapter (a LoRA GGUF) applied.

    Pairs that llama.cpp does not survive are left out; None where it survives none.

    Args:
        settings: of the sampler that scores them, as it samples.
        log: llama.cpp's messages go there.
        say: told of failures, a line each.
    """
    plain = msgspec.structs.replace(settings.with_slots(SCORING_SLOTS), lora="")
    applied = msgspec.structs.replace(plain, lora=str(adapter))
    found_3P = np.array([gaps(*way, pairs, log, say) for way in ((policy, plain), (base, plain), (base, applied))])
    survived_P = np.isfinite(found_3P).all(axis=0)
    return compare(*found_3P[:, survived_P]) if survived_P.any() else None


def gaps(
    file: Path,
    settings: EngineSettings,
    pairs: Sequence[PreferencePair],
    log: Path,
    say: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Return the chosen response's log-probability less the rejected one's, nats, (pairs,); of `SCORED` tokens.

    NaN stands for a pair that llama.cpp does not survive, which `say` is told.
    """

    async def gap(sampler: LocalSampler, pair: PreferencePair) -> float:
        scored = await asyncio.gather(*(sampler.score(*part) for part in parting(pair)), return_exceptions=True)
        summed = []
        for logprobs in scored:
            if isinstance(logprobs, QueryFailedError):
                say(f"warning: query {pair.query_id} is not scored with {file.name}: {logprobs}")
                return math.nan
            if isinstance(logprobs, BaseException):
                raise logprobs
            summed.append(sum(logprobs))
        return summed[0] - summed[1]

    async def ask() -> list[float]:
        async with open_sampler(file, settings, Sampling(1.0), log, say=say) as sampler:
            return await asyncio.gather(*(gap(sampler, pair) for pair in pairs))

    return np.array(run_until_complete(ask()))


def parting(pair: PreferencePair) -> list[tuple[list[int], list[int]]]:
    """Split a pair into what both responses share, prompt included, which has no margin, and what each goes on with."""
    responses = (pair.chosen_tokens, pair.rejected_tokens)
    shorter = min(map(len, responses))  # of two of which one goes on after the other, its last token is scored
    same = next((n for n, (a, b) in enumerate(zip(*responses, strict=False)) if a != b), max(0, shorter - 1))
    return [([*pair.prompt_tokens, *r[:same]], r[same : same + SCORED]) for r in responses]


def compare(policy_P: np.ndarray, base_P: np.ndarray, applied_P: np.ndarray) -> ScoredMargin:
    """Compare the margins of some pairs, each of another question: by file, base, and the adapter on that base."""
    margin_P, learned_P = policy_P - base_P, applied_P - base_P
    learned, margin = float(learned_P.mean()), float(margin_P.mean())
    kept = margin / learned if learned > 0 else None
    error = None
    if kept is not None and len(margin_P) > 1:  # of a ratio of means, by its linearization
        error = float((margin_P - kept * learned_P).std(ddof=1)) / len(margin_P) ** 0.5 / learned
    return ScoredMargin(len(margin_P), learned, margin, kept, error)
