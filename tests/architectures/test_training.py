"""Training, of every family: trees of tokens where a model takes them, else rows; and going on where it stopped."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genius_lite.errors import Stop, Stopped
from genius_lite.learner.batches import Packer
from genius_lite.learner.model import load_base, logps_of, response_logps
from genius_lite.learner.packing import Response, by_query, rows
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import Score
from tests.architectures.agreement import AGREE, MATTERS, apart
from tests.architectures.zoo import ORIGINAL_CONTEXT, RECURRENT, TEXT
from tests.support.engine import drain, settings
from tests.support.training import SMALL, weights_of

WINDOWED = {"gemma2", "gemma3", "gemma3-vision", "gemma3-scaled", "gemma4", "gpt-oss", "olmo3"}
"""Beyond whose window the mask of a tree would be wrong."""

NATS = 0.01  # a response
SHORT, LONG = 16, 150  # tokens of a prompt; with the longer one a response is beyond any window and original context


def takes_trees(name: str, prompt: int) -> bool:
    return name not in RECURRENT and not (name in WINDOWED and prompt == LONG)


def pairs(prompt: int) -> list[PreferencePair]:
    """Two pairs of each of three questions; the second of each begins with a step that its two responses share."""
    made = []
    for q in range(3):
        asked, step = TEXT[q : q + prompt], TEXT[200 + q : 208 + q]
        for number in range(2):
            chosen, rejected = ([*step * number, *TEXT[at + q :][: 8 + q]] for at in (220 + 16 * number, 260))
            made.append(PreferencePair(f"q{q}", number, asked, chosen, rejected, 0.0, -0.1, -0.5, -0.6, True, True))
    return made


@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_responses_have_together_the_log_probabilities_that_they_have_alone(model, prompt):
    said: list[str] = []
    packer = Packer(model.policy, pairs(prompt), Learner(), "cpu", said.append)
    assert packer.shared == takes_trees(model.name, prompt) == (not said)
    for pack in packer.packs(by_query(pairs(prompt))):
        responses = [(p.prompt_tokens, r) for p in pack.pairs for r in (p.chosen_tokens, p.rejected_tokens)]
        with torch.no_grad():
            alone = torch.cat([response_logps(model.policy, rows([response])) for response in responses])
            for inputs in (pack.inputs(), rows(responses)):
                assert (response_logps(model.policy, inputs) - alone).abs().max() < NATS


def test_a_short_text_has_the_tables_for_long_ones_where_a_branch_has_room_for_them(imported):
    """As llama.cpp has it, which goes by the room; transformers would go by the longest text of a batch."""
    phi3 = imported("phi3")
    text, far = (TEXT[:1], TEXT[1:40]), (TEXT[:1], TEXT[1:])

    def by_room(room: int, *others: Response) -> np.ndarray:
        base = load_base(phi3.base.hf_checkpoint, "cpu", "fp32", room=room)
        with torch.no_grad():
            return logps_of(SimpleNamespace(get_base_model=lambda: base), rows([text, *others])).numpy()[:39]

    engine = Engine(str(phi3.base.gguf.path), settings(context=ORIGINAL_CONTEXT, kv_unified=True, kv_type="F32"))
    engine.submit(Score(0, *text))
    sampled = drain(engine)[0].logprobs
    assert engine.settings.room > ORIGINAL_CONTEXT
    assert apart(by_room(engine.settings.room), sampled) < AGREE
    assert apart(by_room(engine.settings.room, far), sampled) < AGREE
    assert apart(by_room(ORIGINAL_CONTEXT), sampled) > MATTERS


def test_a_training_that_was_stopped_goes_on_to_the_same_adapter(model, tmp_path):
    said: list[str] = []

    def train(out: str, work: str, stop: Stop | None = None):
        (tmp_path / work).mkdir(exist_ok=True)
        cfg, kept = Learner(**SMALL | {"schedule": "cosine"}), RunDir(tmp_path / work)
        job = Training(model.base.hf_checkpoint, None, pairs(LONG), [], cfg, "cpu", "fp32", (0, 1), kept)
        asked = stop or Stop()

        def updated(number: int, row: dict[str, float]) -> None:
            asked.asked = stop is not None and number == 0

        return train_adapter(job, tmp_path / out, say=said.append, updated=updated, stop=asked)

    whole = train("whole", "work")
    trees = takes_trees(model.name, LONG)
    assert any("each takes a padded row of its own" in line for line in said) == (not trees)
    assert (whole.shared_tokens > 0.5) if trees else (whole.shared_tokens <= 0)
    with pytest.raises(Stopped):
        train("resumed", "stopped", Stop())
    assert [p.name for p in (tmp_path / "stopped").glob("update-*")] == ["update-000001"]
    assert not (tmp_path / "resumed").exists()
    assert train("resumed", "stopped") == whole
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert all(expected[key].any() for key in expected), "every matrix learns"
