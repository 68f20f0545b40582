"""Foreign text that would act on a terminal."""

from __future__ import annotations

ESC, OVERRIDE = "\x1b[2J\x1b]0;owned\x07\x9b31m", "\u202egnp.exe\u2066"
HOSTILE = f"[red]m[/]:smile:{ESC}{OVERRIDE}\r\x00\u2028"
ACTING = set("\x1b\x9b\x07\x00\r\u202e\u2066\u2028")
"""The characters of it that do."""
