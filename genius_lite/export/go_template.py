"""What a chat template writes, as data that becomes a template of Go's text/template or, for a proof, text.

Go's side is for Ollama (github.com/ollama/ollama, `template/template.go`, `parser/parser.go`): it executes the template
with `.Messages`, in which neighbours of one role are merged, and `.System`, all system messages joined by a blank line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

Messages = list[dict[str, str]]

# What a node may show or ask for, and how Go says it. $first and $system are declared by `Layout.go`.
_GO = {
    "content": ".Content",
    "system": "$.System",
    "has_system": "$system",
    "first": "$first",
    "last": "(eq (len (slice $.Messages $i)) 1)",
}


@dataclass(frozen=True)
class Show:
    """The place of a text: `content` of this message, or `system`, all system messages."""

    name: str


@dataclass(frozen=True)
class When:
    """`then` if all `tests` hold (a text holds if it is not empty), else `otherwise`."""

    tests: tuple[str, ...]
    then: Nodes
    otherwise: Nodes = ()


Nodes = tuple[str | Show | When, ...]


@dataclass(frozen=True)
class Layout:
    """What a chat template writes: at the start, for a message of each role, and to open the answer."""

    opening: Nodes
    system: Nodes
    user: Nodes
    assistant: Nodes
    generation: str

    def text(self, messages: Messages) -> str:
        """Write the prompt of messages that Ollama has collated: no two neighbours have one role."""
        systems = [m["content"] for m in messages if m["role"] == "system"]
        state: dict[str, str | bool] = {"system": "\n\n".join(systems), "has_system": bool(systems), "first": True}
        parts = [_text(self.opening, state)]
        for i, message in enumerate(messages):
            state |= {"content": message["content"], "last": i == len(messages) - 1}
            parts.append(_text(getattr(self, message["role"]), state))
            state["first"] = state["first"] and message["role"] != "user"
        return "".join(parts) + self.generation

    def go(self) -> str:
        """Write the same as a template of Go's text/template, for Ollama's `.Messages` and `.System`."""
        opening, user = _go(self.opening), _go(self.user)
        if "$first" in user:
            opening = f"{{{{ $first := true }}}}{opening}"
            user += "{{ $first = false }}"
        bodies = {"system": _go(self.system), "user": user, "assistant": _go(self.assistant)}
        if "$system" in opening + user:
            look = '{{ if eq .Role "system" }}{{ $system = true }}{{ end }}'
            opening = f"{{{{ $system := false }}}}{{{{ range .Messages }}}}{look}{{{{ end }}}}{opening}"
        branches = [f'if eq .Role "{role}" }}}}{body}' for role, body in bodies.items() if body]
        each = "range $i, $_ := .Messages" if "$i" in user else "range .Messages"
        inner = "{{ else ".join(branches)
        return f"{opening}{{{{ {each} }}}}{{{{ {inner}{{{{ end }}}}{{{{ end }}}}{_literal(self.generation)}"


def _text(nodes: Nodes, state: Mapping[str, str | bool]) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, When):
            parts.append(_text(node.then if all(state[test] for test in node.tests) else node.otherwise, state))
        else:
            parts.append(str(state[node.name]) if isinstance(node, Show) else node)
    return "".join(parts)


def _go(nodes: Nodes) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, When):
            parts.append(_go_when(node))
        else:
            parts.append(f"{{{{ {_GO[node.name]} }}}}" if isinstance(node, Show) else _literal(node))
    return "".join(parts)


def _go_when(node: When) -> str:
    tests = " ".join(_GO[test] for test in node.tests)
    condition = f"(and {tests})" if len(node.tests) > 1 else tests
    if not node.then:
        return f"{{{{ if not {condition} }}}}{_go(node.otherwise)}{{{{ end }}}}"
    otherwise = f"{{{{ else }}}}{_go(node.otherwise)}" if node.otherwise else ""
    return f"{{{{ if {condition} }}}}{_go(node.then)}{otherwise}{{{{ end }}}}"


def _literal(text: str) -> str:
    """Write text as a Go template in a Modelfile holds it.

    Braces could begin an action and three quotes could end the value; characters that are not printable the
    Modelfile's parser drops, but for line feeds and tabs. They become Go strings in actions.
    """
    units = re.findall(r'"""|.', text, flags=re.DOTALL)
    parts = ["".join(run) if plain else f'{{{{ "{_quoted("".join(run))}" }}}}' for plain, run in groupby(units, _plain)]
    return "".join(parts)


def _plain(unit: str) -> bool:
    return unit in "\n\t" or (unit.isprintable() and unit not in ("{", '"""'))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
