"""The text of a recipe that `genius-lite init` writes, with places for what depends on the answers."""

from __future__ import annotations

from typing import NamedTuple

RECIPE = """\
# Written by genius-lite init, for {machine}.
# About {time}, roughly; genius-lite plan {out} measures it. Every key: genius-lite reference
# genius-lite validate {out}; genius-lite run {out}

model:
  gguf: {gguf}

queries:
  source: {source}   # questions; answers in it are not looked at
  column: {column}
  limit: {limit}   # {available}time grows with it
  shuffle: true
  {answers}{switch}
  # system: Reason in a few short sentences, then answer.   # before every question, in later use too

{method}
  batch_pairs: {batch_pairs}
  max_pack_tokens: {max_pack_tokens}   # less takes less memory

quantize:
  type: {kind}   # source: as the model's own; Q8_0, Q4_K_M and others can be named

sampler: auto   # slots, KV buffers and threads are measured here, once for the model

{evaluate}
"""


class Thinking(NamedTuple):
    """What a recipe has for a model that may think: a line of `queries`, one of `foresight`, and that one's tokens."""

    switch: str = ""
    thought: str = ""
    tokens: int = 0


SWITCH = "enable_thinking"
"""The variable of chat templates that switches thoughts off."""
_OFF, _TOKENS = f"template: {{{SWITCH}: false}}", 1024
NEVER = Thinking()
SWITCHED_OFF = Thinking(switch=f"\n  {_OFF}   # thoughts take many times the tokens of an answer")
UNKNOWN = Thinking(switch=f"\n  # {_OFF}   # where it thinks; or thought_tokens: {_TOKENS} in foresight")
ALWAYS = Thinking(
    thought=f"\n  thought_tokens: {_TOKENS}   # for a thought, beside max_tokens; one that is cut off has no answer",
    tokens=_TOKENS,
)
# Without known answers: the method of the paper, with what the study changed.
SEARCH = """\
rounds: 2   # sample, learn, re-quantize; later rounds sample from what was learned

foresight:
  beams: 2          # partial responses that are kept
  candidates: 4     # next steps sampled from each
  steps: {steps}          # lines that are searched; the paper has 4
  max_tokens: {max_tokens}   # longest response; raise it if many are cut off{thought}
  temperature: 1.0  # at 0.6, the paper's, and lr 1e-4 a small model learned nothing that showed by value

pairs:
  negatives: uniform   # the paper draws them from F, where they are nearly as good as what is preferred
  min_gap: 0.05        # nats per token between the two
  truncated: chosen    # what comes to no end is never preferred

learner:
  lr: {lr}          # halve it if the collapse guard warns"""
VOTERS = 8
# Where answers are numbers they vote, with the settings of recipes/short-answers.yaml.
VOTE = """\
rounds: 3   # sample, learn, re-quantize: a model that answers better votes better; after a third round it may fall
            # (votes taught a 0.1B model to add; what a 0.5B model gained at arithmetic is not sure: see your problems)
round_queries: {round_queries}   # each round asks the next ones; with a larger limit, raise it too

foresight:
  beams: 1
  candidates: {voters}     # first lines of an answer; each is played to its end, and has a vote
  steps: 1
  max_tokens: {max_tokens}   # longest response; raise it if many are cut off{thought}
  temperature: 0.7

pairs:
  choose: agreed    # of the answer that most come to, the response with the highest value

guard:   # a vote is meant to make answers agree
  entropy: {{warn: 0.1, halt: 0.02}}
  unique: {{warn: 0.62}}

learner:
  loss: sft         # such responses are told again, and nothing is pushed away
  lr: {lr}          # halve it if the collapse guard warns
  epochs: 2"""
OPEN = "# answers: numeric   # each comes to a number; choice: a letter; recipes/short-answers.yaml lets numbers vote"
WITHOUT_TASK = """\
# Without problems whose answers are known, rounds are compared by how far answers agree. With some:
# evaluate:
#   tasks:
#     - {source: held-out.jsonl, check: numeric}   # rows with `prompt` and `answer`"""
PROBLEMS, SAMPLES = 100, 2
WITH_TASK = """\
evaluate:
  tasks:   # the base model and every round answer them; nothing learns from them
    - {source}{keys}
      {bound}: {problems}   # problems; more tell smaller differences, and take longer
  samples: {samples}    # responses to each at the temperature of later use, beside the likeliest one
  patience: 1   # stop after a round that is worse, by the interval of the difference"""
