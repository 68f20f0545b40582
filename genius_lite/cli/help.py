"""The list of commands: by what they are for, each with its whole sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS = {
    "Run": ("init", "validate", "plan", "run", "questions", "reference"),
    "Look": ("status", "watch", "report", "compare"),
    "Model": ("chat", "eval", "inspect", "export"),
    "Machine": ("doctor", "bench", "sample", "merge-shards", "cluster"),
}
"""What stands in none of them is listed last."""
_WHOLE = 1000  # characters of a sentence


class Commands(TyperGroup):
    """A group whose help has panels, as Typer's has with Rich; plain text, which goes into pipes and files as it is."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; Typer's own list cuts sentences off at the end of a line."""
        known = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        shown = {name: command.get_short_help_str(_WHOLE) for name, command in known.items() if command}
        panels = {panel: [name for name in names if name in shown] for panel, names in PANELS.items()}
        panels["Commands"] = [name for name in shown if not any(name in names for names in PANELS.values())]
        for panel, names in panels.items():
            if names:
                with formatter.section(panel):
                    formatter.write_dl([(name, shown[name]) for name in names])
