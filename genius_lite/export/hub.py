"""An export goes to a repository of the hub: in one commit, all of it or nothing, and looked at afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OIDCError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from genius_lite.errors import Stopped, UserError
from genius_lite.progress import Advance
from genius_lite.recipe import Prefix
from genius_lite.weights.gguf_file import sha256

_PATIENCE = 15.0  # seconds that the hub may take to say what it has
_GIT = 40  # hexadecimal digits of git's digests
_NOTHING = "nothing of this export is there"
_LOG_IN = "set HF_TOKEN, or log in with `hf auth login`; tokens that may write: https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Remote:
    """What the hub has of a repository: whether only its members see it, its commit, and name -> digest of its files.

    A digest is the SHA-256 of a large file, and git's own of any other.
    """

    private: bool
    commit: str | None
    digests: dict[str, str | None]

    def holds(self, file: Path) -> bool:
        """Say whether it has this very file."""
        there = self.digests.get(file.name)
        if there is None:
            return False
        return there == (git_hash(file.read_bytes()) if len(there) == _GIT else sha256([file]))


def repository_named(text: str) -> str:
    """Read `hf:OWNER/REPO`.

    Raises:
        UserError: it is written otherwise, or the hub has no such names.
    """
    name = text.removeprefix(Prefix.HUB)
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not text.startswith(Prefix.HUB) or name.count("/") != 1:
        raise UserError(f"--push {text}: a repository is written hf:OWNER/REPO, in letters, digits and -_.")
    return name


def require_token(repository: str) -> None:
    """See that there is a token which the hub knows and that may write, before anything is made for it.

    Raises:
        UserError: there is none, or it is not known, or may only read; or the hub cannot be reached.
    """
    with _in_one_line(repository, _NOTHING):
        if get_token() is None:
            raise UserError(f"--push hf:{repository}: there is no token for the hub; {_LOG_IN}")
        token = HfApi().whoami().get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(f"--push hf:{repository}: the token may only read; {_LOG_IN}")


def look(repository: str, commit: str | None = None, outcome: str = _NOTHING) -> Remote | None:
    """Ask the hub what it has of a repository; None if it has none that the token may see.

    Args:
        outcome: what is known of the export, for messages.

    Raises:
        UserError: the hub refuses to say, or cannot be reached.
    """
    with _in_one_line(repository, outcome):
        try:
            info = HfApi().model_info(repository, revision=commit, files_metadata=True, timeout=_PATIENCE)
        except RepositoryNotFoundError:
            return None
    files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
    return Remote(bool(info.private), info.sha, files)


def require_privacy(remote: Remote | None, repository: str, public: bool) -> None:
    """Refuse, by a UserError, to show everybody what goes to a public repository without `--public`."""
    if remote and not remote.private and not public:
        raise UserError(f"hf:{repository} is there and public; say --public if all may see it, or name another")


def push(folder: Path, repository: str, message: str, *, public: bool, advance: Advance) -> str:
    """Upload a folder's files in one commit, and see that the hub has them; return the commit's address.

    A repository that is not there is made, for its members alone unless `public`. Files of the same names are replaced;
    others stay.

    Args:
        advance: called with the bytes of each file that the hub has taken, large files first stored and then committed.

    Raises:
        UserError: the hub refuses, or is not reached any more; the message says what is there.
        Stopped: Ctrl-C was pressed; likewise.
    """
    api, files = HfApi(), sorted(path for path in folder.iterdir() if path.is_file())
    with _in_one_line(repository, _NOTHING):
        if look(repository) is None:
            api.create_repo(repository, private=not public)
        before = look(repository)  # an organisation may have a default of its own
        if before is None:
            raise UserError(f"hf:{repository} was made and cannot be seen; {_NOTHING}: look at the token's rights")
        require_privacy(before, repository, public)
        additions = [CommitOperationAdd(file.name, file) for file in files]
        for file, addition in zip(files, additions, strict=True):
            api.preupload_lfs_files(repository, [addition], free_memory=False)
            advance(file.stat().st_size)
    unsure = "it did not confirm the commit: look there, or give the same command again"
    with _in_one_line(repository, unsure, refused=_NOTHING):
        commit = api.create_commit(repository, additions, commit_message=message, parent_commit=before.commit)
    after = look(repository, commit.oid, f"committed as {commit.oid}, but not looked at")
    missing = [file.name for file in files if not (after and after.holds(file))]
    if missing:
        raise UserError(
            f"{commit.commit_url} is not whole: {', '.join(missing)} is missing or another file there (its .gitignore?)"
        )
    return str(commit.commit_url)


@contextmanager
def _in_one_line(repository: str, outcome: str, refused: str | None = None) -> Iterator[None]:
    """Say what the hub, or the way to it, refuses, and what that leaves there.

    Args:
        refused: what it leaves where the hub has said no, if that is more certain than `outcome`.

    Raises:
        UserError: the hub refuses, or cannot be reached.
        Stopped: Ctrl-C was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; hf:{repository}: {outcome}") from None
    except (httpx2.HTTPError, OSError, OIDCError, ValueError, RuntimeError) as e:
        error = e.__cause__ if type(e) is RuntimeError and e.__cause__ else e  # "Error while uploading", says what not
        words, left = " ".join(str(error).split()) or type(error).__name__, outcome
        if isinstance(error, HfHubHTTPError):
            words, left = _said(error), (refused or outcome) if error.response.is_client_error else outcome
        elif isinstance(error, httpx2.HTTPError | ConnectionError):
            words = f"the hub cannot be reached ({words})"
        elif isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
            left = refused or outcome  # huggingface_hub's own checks, before it sends anything
        raise UserError(f"hf:{repository}: {words}; {left}") from None


def _said(error: HfHubHTTPError) -> str:
    """Say what the hub answered, and what to do about it."""
    code, told = error.response.status_code, " ".join((error.server_message or "").split())
    mend = {
        401: f"the hub does not take the token: {_LOG_IN}",
        403: f"the token may not write there: {_LOG_IN}",
        404: "there is no such repository that the token may see",
        409: "there is such a repository that the token may not see, or it is just changed: try again, or another name",
        412: "it was changed meanwhile: give the command again",
    }
    return f"{code}{f', {told}' if told else ''}; {mend.get(code, 'try again later')}"
