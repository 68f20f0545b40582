"""A Modelfile for Ollama, whose TEMPLATE writes the same prompts as the GGUF's own chat template.

The GGUF holds a Jinja template; Ollama fills one of Go's text/template. There is no table of model families here: the
Jinja template is rendered with marks for contents, what stands between the marks becomes a `Layout`, and the layout is
compared with the Jinja template over probe conversations before anything is written.

The promise: at most one system message, which comes first, then user and assistant in turn, the last one a user's,
become the same token ids as `Vocabulary.render` and `encode_rendered` give. Outside of it are tools; text that looks
like a special token, which Ollama reads as that token; and what a comment in the Modelfile says: system messages that
the template refuses, white space that it trims (Go's text/template cannot), `<think>` reasoning that it drops from
earlier answers, its own words for an empty system message, and the date, which is a run's own.

BOS is Ollama's to add where the vocabulary says so, and is then not in TEMPLATE. A model without a template, or with
one that cannot be written so, gets a Modelfile without TEMPLATE and a comment with the reason: Ollama then guesses one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from genius_lite.data import thoughts
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.export.go_template import Layout, Messages, Nodes, Show, When

_MAX_CONTEXT = 8192  # Ollama's memory grows with num_ctx; long-context models would not load on a laptop
_NO_STOP = "No PARAMETER stop for {!a}: a Modelfile cannot hold it; Ollama ends at the token by itself."
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_CLOSED = re.compile(r'"""\s*[\r\n]')  # ends a string of a Modelfile
_SHAPES = ("u", "uau", "uauau", "uauauau")
_TEXTS = (
    "Grüße, 你好, שלום 👩‍🔬",
    "one\n\n\ttwo\r\n  three",
    '{{ .System }} {% if x %} {# y #} """quoted""" \\n $first }}',
    "7",
    "word " * 300 + "end",
)


def modelfile(
    vocabulary: Vocabulary, gguf_name: str, *, context: int | None = None, system: str | None = None
) -> tuple[str, list[str]]:
    """Write the text of a Modelfile that lies beside the GGUF, to be saved as UTF-8 with plain line feeds.

    Its comments, which stand at its top, are returned beside it.

    Args:
        context: tokens that the model was trained to read; num_ctx is this, 8192 at most.
        system: the message that opens every conversation which brings none of its own.

    Raises:
        UserError: a Modelfile cannot hold `gguf_name`.
    """
    if not gguf_name.isprintable() or gguf_name != gguf_name.strip():
        raise UserError(f"{gguf_name!r}: a Modelfile cannot name this file; rename it")
    layout, found = chat_template(vocabulary)
    template = layout.go() if layout else None
    stops = _stops(vocabulary, template or vocabulary.template or "")
    held = [stop for stop in stops if stop.isprintable() and '"' not in stop]  # between quotes, on one line
    notes = [*found, *(_NO_STOP.format(stop) for stop in stops if stop not in held)]
    lines = [f"FROM ./{gguf_name}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    if system is not None and _holds_message(system):
        lines.append(f'SYSTEM """{system}"""')
    elif system is not None:
        notes.append("No SYSTEM: a Modelfile cannot hold the message that the model was trained with; see README.md.")
    lines += [f'PARAMETER stop "{stop}"' for stop in held]
    lines += [f"PARAMETER num_ctx {min(context, _MAX_CONTEXT)}"] if context else []
    return "\n".join([*(f"# {note}" for note in notes), *lines]) + "\n", notes


def chat_template(vocabulary: Vocabulary) -> tuple[Layout | None, tuple[str, ...]]:
    """Find what TEMPLATE will write, None where it cannot be proven, and what its reader should know, a line each."""
    if not vocabulary.template:
        return None, ("No TEMPLATE: the model has no chat template; it continues the text it is given.",)
    try:
        layout, system = _layout(vocabulary)
        _prove(vocabulary, layout, system)
        dated = ("The date in TEMPLATE is fixed: the day that the model was trained with.",) * vocabulary.asks_for_date
        notes = (*_differences(vocabulary, layout, system), *dated, *_thinking(vocabulary, layout))
        return layout, notes
    except UserError as e:
        reason = " ".join(str(e).split()).removesuffix(".")
        guess = "Ollama guesses one from it; read `ollama show --template` before you rely on it."
        return None, (f"No TEMPLATE: Go cannot say what the GGUF's chat template does: {reason}.", guess)


def _holds_message(message: str) -> bool:
    """Say whether SYSTEM can be this: strings have no escapes there, and Ollama takes an empty one for none."""
    lost = any(not (character.isprintable() or character in "\n\r\t") for character in message)
    return bool(message) and not lost and not _CLOSED.search(message)


def _stops(vocabulary: Vocabulary, template: str) -> list[str]:
    """List the tokens that end a response and are in the template, and EOS; Ollama ends at others by itself."""
    ends = [vocabulary.special_text(int(token)) for token in vocabulary.ends.nonzero()[0]]
    return [text for text in dict.fromkeys(ends) if text and (text in template or text == vocabulary.eos_text)]


@dataclass(frozen=True)
class _System:
    """What stands around a system message before the first question, or in the last one."""

    place: Literal["first", "last", "ignored", "refused"]
    before: str = ""
    after: str = ""
    test: str = ""  # when it is there, a name of `_GO`: with no text in it too, or not


def _after_last(vocabulary: Vocabulary, shape: str, *gaps: str) -> str:
    """Find what ends the last message of a conversation, if every gap after such a message begins with it."""
    after = _render(vocabulary, _marked(shape), generation=False).rpartition(_marks(shape)[-1])[2]
    endings = (after, after.removesuffix(vocabulary.eos_text))  # some templates end a whole conversation with EOS
    return next((e for e in endings if all(gap.startswith(e) for gap in gaps)), "")


def _system(vocabulary: Vocabulary) -> _System:
    try:
        text = _render(vocabulary, _marked("suauau"))
    except UserError:
        return _System("refused")
    system, *turns = _marks("suauau")
    if system not in text:
        return _System("ignored")
    alone = _render(vocabulary, _marked("su"))
    empty = _render(vocabulary, _filled("su", ["", _mark("u1")]))
    test = "system" if empty != alone.replace(system, "") else "has_system"
    if text.index(system) < text.find(turns[0]):
        before, after, *_ = _between(text, [system, *turns])
        return _System("first", before, after, test)
    before, after, _ = _between(text, [*turns[:-1], system, turns[-1]])[-3:]
    return _System("last", before, after, test)


def _layout(vocabulary: Vocabulary) -> tuple[Layout, _System]:
    """Make a layout that writes what probes show; whether it writes the rest, `_prove` says."""
    # Before the first question is what opens the conversation, and the question.
    start, to_assistant, to_user, _, _, ending = _between(_render(vocabulary, _marked("uauau")), _marks("uauau"))
    # A conversation that waits for nothing shows what ends a message; the rest of a gap opens the next.
    after_user = _after_last(vocabulary, "u", to_assistant, ending)
    after_assistant = _after_last(vocabulary, "ua", to_user)
    opens_user, system = to_user.removeprefix(after_assistant), _system(vocabulary)
    before_user: Nodes = (opens_user,)
    opening: Nodes = ()
    of_system: Nodes = ()
    shown: Nodes = (system.before, Show("system"), system.after)
    plain_start = start.endswith(opens_user)
    default = start.removesuffix(opens_user)  # before the first question as before any
    if system.place == "first" and plain_start and system.after.endswith(opens_user):
        opening = (When((system.test,), (), (default,)),) if default else ()
        of_system = (system.before, Show("content"), system.after.removesuffix(opens_user))
        of_system = of_system if system.test == "has_system" else (When(("content",), of_system),)
    elif system.place == "first" and start == opens_user:
        before_user = (When(("first", system.test), shown, before_user),)
    elif system.place == "first":
        before_user = (When(("first",), (When((system.test,), shown, (start,)),), before_user),)
    else:
        if plain_start:
            opening = (default,)
        else:
            before_user = (When(("first",), (start,), before_user),)
        if system.place == "last":
            shown = (system.before.removeprefix(after_assistant), *shown[1:])
            before_user = (When(("last", system.test), shown, before_user),)
    layout = Layout(
        opening=opening,
        system=of_system,
        user=(*before_user, Show("content"), after_user),
        assistant=(to_assistant.removeprefix(after_user), Show("content"), after_assistant),
        generation=ending.removeprefix(after_user),
    )
    return layout, system


def _prove(vocabulary: Vocabulary, layout: Layout, system: _System) -> None:
    """Raise UserError if the layout and the chat template write a probe conversation differently."""
    shapes = _SHAPES if system.place == "refused" else [*_SHAPES, *(f"s{shape}" for shape in _SHAPES)]
    probes = [_filled(shape, (_TEXTS * 3)[k:]) for shape in shapes for k in range(len(_TEXTS))]
    if any(layout.text(probe) != _render(vocabulary, probe) for probe in probes):
        raise UserError("it does more than put text before and after each message")


def _differences(vocabulary: Vocabulary, layout: Layout, system: _System) -> Iterator[str]:
    """Say what the chat template does beside the promise; raise UserError if that is more than trimming."""
    if system.place == "refused":
        yield "The GGUF's chat template refuses system messages, so TEMPLATE leaves them out."
    if system.place == "ignored":
        yield "The GGUF's chat template leaves system messages out, and so does TEMPLATE."
    shape = "uauau" if system.place == "refused" else "suauau"
    trimmed = []
    for role in dict.fromkeys(shape):
        padded = _filled(shape, [f" \n {m} \n " if m[1] == role else m for m in _marks(shape)])
        expected, found = _render(vocabulary, padded), layout.text(padded)
        if "".join(expected.split()) != "".join(found.split()):
            raise UserError(f"it rewrites {_ROLES[role]} messages")
        trimmed += [_ROLES[role]] if expected != found else []
    if trimmed:
        yield f"The GGUF's chat template trims white space around {', '.join(trimmed)} messages; TEMPLATE cannot."
    empty = _filled("suau", ["", *_TEXTS])
    if system.place != "refused" and layout.text(empty) != _render(vocabulary, empty):
        yield "The GGUF's chat template has words of its own for an empty system message; TEMPLATE takes it for none."
    reasoned = _filled("uau", ["7", "<think>\nSeven.\n</think>\n\n7", "8"])
    if layout.text(reasoned) != _render(vocabulary, reasoned):
        yield "The GGUF's chat template changes <think> reasoning in earlier answers; TEMPLATE keeps it."


def _thinking(vocabulary: Vocabulary, layout: Layout) -> Iterator[str]:
    """Say whether the model thinks before it answers, and where the answer is."""
    begun = thoughts.opens(layout.generation)
    if thoughts.closes(layout.generation):
        yield "Thoughts are off, as the model was trained: TEMPLATE ends them before the answer begins."
    elif end := thoughts.end_in(layout.generation if begun else vocabulary.template or ""):
        yield f"The model {'thinks' if begun else 'may think'} before it answers: the answer is what follows {end}."


def _render(vocabulary: Vocabulary, messages: Messages, *, generation: bool = True) -> str:
    """Render the chat template's prompt, without a BOS that Ollama will add."""
    text = vocabulary.render(messages, generation=generation)
    return text.removeprefix(vocabulary.bos_text) if vocabulary.adds_bos else text


def _between(text: str, marks: list[str]) -> list[str]:
    """Cut out what stands before, between and after the marks, each of which is there once, in this order."""
    pattern = "|".join(map(re.escape, marks))
    if re.findall(pattern, text) != marks:
        raise UserError("it changes, repeats or reorders messages")
    return re.split(pattern, text)


def _mark(name: str) -> str:
    return f"\N{OBJECT REPLACEMENT CHARACTER}{name}\N{OBJECT REPLACEMENT CHARACTER}"


def _marks(shape: str) -> list[str]:
    return [_mark(f"{role}{i}") for i, role in enumerate(shape)]


def _marked(shape: str) -> Messages:
    return _filled(shape, _marks(shape))


def _filled(shape: str, texts: Sequence[str]) -> Messages:
    """Fill messages of the roles in `shape`, such as "suau", with the first of `texts`."""
    return [{"role": _ROLES[role], "content": text} for role, text in zip(shape, texts, strict=False)]
