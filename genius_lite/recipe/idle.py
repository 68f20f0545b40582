"""What a recipe sets without effect: keys that nothing reads beside the rest of it. They are told, and not refused.

`evaluate.rollback: false` and `greedy: false` are not told of, which recipes say for others that extend them by rounds
and tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

from genius_lite.recipe import READ_BY_LOSS, Learner, Recipe

_DEEP = 64  # steps; no recipe keeps as many beams as they have branches


def without_effect(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each setting beside which keys that were set to another value than the default do nothing."""
    for keys, beside in _unread(recipe):
        if idle := [key for key in keys if _is_set(recipe, key)]:
            yield f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {beside}"
    if recipe.learner.loss == "sft" and recipe.learner.sft_weight:
        yield "learner.sft_weight adds the loss to itself with loss: sft, and AdamW divides such a factor out"


def _unread(recipe: Recipe) -> Iterator[tuple[list[str], str]]:
    """Yield the keys that are not read, and the setting that has it so."""
    search, pairs, cfg, loss = recipe.foresight, recipe.pairs, recipe.evaluate, recipe.learner.loss
    by_some = {key for read in READ_BY_LOSS.values() for key in read}
    others = [key for key in Learner.model_fields if key in by_some and key not in READ_BY_LOSS[loss]]
    yield [f"learner.{key}" for key in others], f"with loss: {loss}"
    if pairs.choose == "random":
        yield ["pairs.negatives"], "with choose: random"
    # Rejected responses are drawn from F, too.
    tau = [] if pairs.negatives == "foresight" and pairs.choose != "random" else ["foresight.tau"]
    if search.steps < 2:
        yield [*tau, "foresight.select"], f"with steps: {search.steps}"
    elif search.beams >= search.candidates ** min(search.steps - 1, _DEEP):
        yield [*tau, "foresight.select"], f"with beams: {search.beams}, which keep every candidate"
    elif search.select == "greedy":
        yield tau, "with select: greedy"
    if recipe.rounds == 1:
        policy = ["policy"] if recipe.policy == "adapter" else []  # `auto` is about the first round, too
        yield [*policy, "pairs.at_least"], "with rounds: 1"
    if not cfg.tasks:
        yield ["evaluate.samples", "evaluate.sweep"], "without tasks"
    elif not cfg.samples:
        yield ["evaluate.sweep"], "with samples: 0"


def _is_set(recipe: Recipe, key: str) -> bool:
    """Say whether a key, dotted from the top, was set, and to another value than its default."""
    section, _, name = key.rpartition(".")
    holder = getattr(recipe, section) if section else recipe
    return name in holder.model_fields_set and getattr(holder, name) != type(holder).model_fields[name].default
