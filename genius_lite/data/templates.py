"""Chat templates, which are programs out of somebody's file: each is rendered in a process of its own, with limits.

Jinja's sandbox keeps a template from the interpreter, but not from time and memory: a string times a number, nested
loops, a filter that pads, constants that are folded while the template is compiled. In another process all of them meet
the same limits. `python -m genius_lite.data.templates` is that process, told first the template, then conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

from genius_lite.data.sandbox import LimitedProcess, serve
from genius_lite.errors import UserError
from genius_lite.text import brief

_SECONDS = 2  # of computing, for one conversation; real templates take a millisecond
_MEMORY = 256_000_000  # bytes; a process that only holds Jinja has 30 MB
_LONGEST = 4_000_000  # characters of a rendered conversation

DATE = "strftime_now"
"""The function by which templates ask for today's date."""
_GENERATION = "add_generation_prompt"
_SET = {"messages", "tools", "bos_token", "eos_token", _GENERATION}

Message = dict[str, Any]
"""`role`, and `content`: a text, or a list of parts, `{"type": "text", "text": ...}` each."""


def opening(system: str | None) -> list[Message]:
    """Begin a conversation with a system message, if there is one."""
    return [{"role": "system", "content": system}] if system is not None else []


def in_parts(messages: list[Message]) -> list[Message]:
    """Give each message a content in parts, as models that see have it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


class Renderer:
    """Renders the conversations of one chat template (Jinja), as transformers does.

    Args:
        variables: what the template finds beside the conversation, such as `bos_token`; `today` (YYYY-MM-DD) is the
            date that `strftime_now` writes, the real one if it is not given.
    """

    def __init__(self, template: str, variables: dict[str, Any]):
        opening = {"template": template, "variables": variables}
        self._process = LimitedProcess("genius_lite.data.templates", opening, seconds=_SECONDS, memory=_MEMORY)
        self.close = self._process.close

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Return a conversation as the template writes it; `generation` opens the assistant's answer.

        Raises:
            UserError: the template is broken, refuses these messages, or goes beyond a limit.
        """
        return self._ask({"messages": list(messages), "generation": generation})["text"]

    def reads(self) -> list[str]:
        """List the variables that the template reads and nobody sets but the user; a UserError as of `render`."""
        return self._ask({"names": True})["names"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._process.ask(message)
        except UserError as e:
            raise UserError(f"the model's chat template cannot render this conversation: {e}") from None


def _start(opening: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what renders a conversation with the opening's template."""
    import jinja2
    import jinja2.meta
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks what an assistant said; here it is what stands between."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)  # Jinja's own is for HTML

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    env.globals["raise_exception"] = refuse
    env.filters["tojson"] = tojson
    variables = dict(opening["variables"])
    today = variables.pop("today", None)
    env.globals[DATE] = lambda form: (date.fromisoformat(today) if today else datetime.now()).strftime(form)

    @cache
    def compiled() -> jinja2.Template:  # with the first conversation, and thus within its limits
        return env.from_string(opening["template"])

    def render(conversation: dict[str, Any]) -> dict[str, Any]:
        """Reply with the text. What a template raises beside the exceptions here ends this process: an answer too."""
        try:
            if "names" in conversation:
                names = jinja2.meta.find_undeclared_variables(env.parse(opening["template"]))
                return {"names": sorted(names - _SET - {*env.globals})}
            messages, generation = conversation["messages"], conversation["generation"]
            text = compiled().render({"tools": None, **variables, "messages": messages, _GENERATION: generation})
            text.encode()  # half a character is no text
        except RecursionError:
            raise UserError("it calls itself without end") from None
        except (
            *(jinja2.TemplateError, SyntaxError, TypeError, ValueError, ArithmeticError),
            *(LookupError, AttributeError, AssertionError, RuntimeError, NameError),
        ) as e:
            raise UserError(brief(str(e) or type(e).__name__, 200)) from None
        if len(text) > _LONGEST:
            raise UserError(f"it writes more than {_LONGEST} characters")
        return {"text": text}

    return render


if __name__ == "__main__":
    serve(_start)
