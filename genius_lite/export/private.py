"""What is nobody else's business in an export: paths of this machine, its user's name, keys of the hub."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import psutil

from genius_lite.errors import UserError
from genius_lite.text import brief
from genius_lite.weights import gguf_file

_ABSOLUTE = re.compile(  # `file:///x/y` and `model:/x/y` are paths, `https://x/y` is none
    r"(?:(?<![\w/.:])[A-Za-z]:[\\/]+|(?:(?<![\w/.:])|(?<=\bfile://)|(?<=\w:)(?!//))/)(?=[\w.+@-])"
)
_NAME, _ENDS = re.compile(r"\.*[\w+@-][\w.+@-]*"), re.compile(r"[\\/]+|(?!\.?[\w+@-])")
_SYSTEM = {"usr", "bin", "sbin", "etc", "dev", "proc", "sys", "lib", "lib64", "boot", "Windows"}
"""Folders that are on every machine."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")  # letters in JSON
_KEY = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
_VOCABULARY = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"}
"""Files that list the words of a language, so that a user's name may well be among them."""
_ANYBODY = {
    *("root", "user", "users", "admin", "administrator", "ubuntu", "debian", "fedora", "centos", "vagrant", "docker"),
    *("runner", "jovyan", "nobody", "guest", "build", "builder", "python", "node", "model", "models", "data", "home"),
    *("work", "worker", "test", "tester", "coder", "developer", "student", "teacher", "default", "genius", "system"),
}
"""Accounts that are nobody's name, and words that a card may well have in it."""
_SHORTEST = 4  # letters of a name that is looked for as a word; shorter ones are syllables and units


class _Wanted:
    """What to look for: patterns that are private anywhere, and those that are so outside of vocabularies."""

    def __init__(self, run: Path, repository: str) -> None:
        account, home = psutil.Process().username().rpartition("\\")[2], Path.home()
        # Of a home such as /root, or a folder such as /data, the name alone says nothing.
        places = [place for place in (home, Path.cwd(), run.absolute().parent) if len(place.parts) > 2]
        places += [place.resolve() for place in places]
        written = {form for place in places for form in (str(place), place.as_posix(), json.dumps(str(place))[1:-1])}
        anywhere = "|".join(re.escape(form) for form in sorted(written, key=len, reverse=True))
        # Whoever is called as the repository's owner has said so already.
        said = {word.casefold() for word in re.split(r"[/_.-]", repository)} | {repository.partition("/")[0].casefold()}
        names = {n for n in (account, home.name) if n and not n.isdecimal() and n.casefold() not in said}
        words = {n for n in names if len(n) >= _SHORTEST and n.casefold() not in _ANYBODY}
        in_context = [rf"[/\\]{n}[/\\]|~{n}\b|\b{n}@\w" for n in map(re.escape, sorted(names))]
        alone = [rf"(?i:(?<!\w){n}(?!\w))" for n in map(re.escape, sorted(words))]
        self.path = re.compile(rf"(?<!\w)(?:{anywhere})(?![\w-])" if anywhere else r"(?!)")
        self.name = re.compile("|".join([*in_context, *alone]) or r"(?!)")

    def in_text(self, text: str, *, words: bool) -> str | None:
        """Say what of it is in a text; None if nothing is.

        Args:
            words: whether the text lists a language's words.
        """
        plain = unquote(_ESCAPED.sub(lambda letter: chr(int(letter[1], 16)), text))
        for form in dict.fromkeys((text, plain)):
            if _KEY.search(form):
                return "a key of the hub"  # which no message repeats
            if found := self.path.search(form):
                return f"`{brief(found[0])}`, a path of this machine"
            if words:
                continue
            if here := next(filter(None, (_here(form, at) for at in _ABSOLUTE.finditer(form))), None):
                return f"`{brief(here)}`, a path of this machine"
            if found := self.name.search(form):
                return f"`{brief(found[0])}`, a user's name"
        return None


def _here(text: str, root: re.Match[str]) -> str | None:
    """Return the path that begins in a text, as far as this machine has it; None of what every machine has.

    It is read by what is in the folders, as names may have spaces in them.
    """
    path, at = "/" if root[0] == "/" else f"{root[0][:2]}/", root.end()
    for depth in range(2):
        word = _NAME.match(text, at)  # of a folder that may not be listed, or in other capitals
        known = [*_names(path), *([word[0]] if word and os.path.lexists(Path(path, word[0])) else [])]
        names = sorted((n for n in known if text.startswith(n, at)), key=len, reverse=True)
        ended = next(((n, end) for n in names if (end := _ENDS.match(text, at + len(n)))), None)
        if ended is None or (depth == 0 and (ended[0] in _SYSTEM or not ended[1][0])):
            return None
        path, at = str(Path(path, ended[0])), ended[1].end()
    return path


@cache
def _names(folder: str) -> list[str]:
    """List what is in a folder; nothing of one that may not be read."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - the names alone
    except OSError:
        return []


def refuse_private(folder: Path, run: Path, repository: str) -> None:
    """Look through an export before it is given away: all text, and the metadata of GGUFs and safetensors.

    Args:
        run: the run's folder.
        repository: whose owner's name the user has chosen to give.

    Raises:
        UserError: something in it is private; the message names the file.
    """
    wanted = _Wanted(run, repository)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for where, text in _texts(file):
            if found := wanted.in_text(text, words=file.name in _VOCABULARY or where.startswith("tokenizer.ggml.")):
                at = f" ({where})" if where else ""
                raise UserError(
                    f"{file.name}{at} has {found} in it; nothing is uploaded: change it where it comes from (the "
                    "recipe, or the base model's metadata), or write a folder with --to, change that and upload it"
                )


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """Yield what a person can read in a file, and where it stands: a key of its metadata, or nothing."""
    if file.suffix == ".gguf":
        header = gguf_file.read(file)
        for key, value in header.values.items():
            yield key, key + "\n" + value[4:].decode("utf-8", "replace")  # behind its type
        yield "tensors", "\n".join(tensor.name for tensor in header.tensors)
    elif file.suffix == ".safetensors":
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            yield "metadata", opened.read(min(length, file.stat().st_size)).decode("utf-8", "replace")
    else:
        yield "", file.read_bytes().decode("utf-8", "replace")
