"""One staged push to the hub by the real client: sent once, and compared byte for byte with what the hub then lists.

`deliver` may be called again after any failure: it looks first at what the hub has already, so a commit that took
effect although its answer was lost is not made twice, and files that arrived are not sent again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path, PurePosixPath

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_token
from huggingface_hub.utils._http import default_client_factory

TIMEOUT = 60.0  # seconds without a byte; the client itself would wait for ever
BUSY = {408, 429, 500, 502, 503, 504}  # the hub's own trouble: the same request may go through later
REFUSALS = {400, 401, 402, 403, 413, 422}  # the same request will not go through
# files of an older model or data set that would be loaded beside the new ones; the hub's history keeps them
STALE = {
    "model": ("*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
    "dataset": ("*.parquet", "*.jsonl"),
}


class Refused(Exception):
    """The hub will not take it: a token without the right, or content that it does not accept."""


class Away(Exception):
    """The hub cannot be reached or has trouble of its own; `after` is the wait it asks for, in seconds."""

    def __init__(self, why: str, after: float = 0.0, hopeless: bool = False):
        super().__init__(why)
        self.after, self.hopeless = after, hopeless


@dataclass
class Content:
    """One file as it must arrive: where it lies here, its bytes, and its two names by content."""

    path: Path
    bytes: int
    sha256: str
    blob: str  # git's sha1, by which the hub names files outside large-file storage


def _raise_busy(response) -> None:
    """All retrying is the outbox's: the client retries some calls, others not, and sleeps as long as it is told."""
    if response.status_code in BUSY:
        asked, why = response.headers.get("retry-after", ""), f"it answered {response.status_code}"
        if asked.isdigit():
            raise Away(f"{why} and asks to wait {asked} s", float(asked))
        raise Away(why)


@contextmanager
def client(token: str | None, timeout: float = TIMEOUT) -> Iterator[HfApi]:
    """The hub's client with time limits; whatever goes wrong inside comes out as Refused or Away, in one line."""

    def limited():
        made = default_client_factory()
        made.timeout = timeout
        made.event_hooks = {**made.event_hooks, "response": [_raise_busy]}
        return made

    logger = logging.getLogger("huggingface_hub")  # it prints signed addresses of uploads that failed
    level = logger.level
    logger.setLevel(logging.ERROR)
    set_client_factory(limited)
    try:
        yield HfApi(token=token)
    except (Refused, Away):
        raise
    except Exception as error:  # the client raises its own, httpx's, the system's and what a broken body brings
        raise _meaning(error, token) from None
    finally:
        set_client_factory(default_client_factory)
        logger.setLevel(level)


def _meaning(error: BaseException, token: str | None) -> Refused | Away:
    """What an error of the client says about the hub: the first of its causes that is known."""
    said, link = " ".join(str(error).split()), error
    while link is not None:
        response = getattr(link, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(link, Away | Refused):
            return link
        if isinstance(link, HFValidationError):
            return Refused("this is no name of a repository; write owner/name")
        if isinstance(link, OfflineModeIsEnabled):
            return Away("HF_HUB_OFFLINE is set", hopeless=True)
        if status == 401 and _is_hub(response):
            return Refused("the hub knows no such token (401): set HF_TOKEN to a valid one with write access")
        if status == 403 and _is_hub(response):
            return Refused("this token may not write there (403): set HF_TOKEN to one with write access to it")
        if status in REFUSALS and _is_hub(response):
            said = getattr(link, "server_message", None) or said
            return Refused(f"the hub does not take it ({status}): {_short(said, token)}")
        if status:
            return Away(f"it answered {status}")
        last, link = link, link.__cause__ or link.__context__
    return Away(_short(f"{type(last).__name__}: {last}", token))


def _is_hub(response) -> bool:
    """Not the storage behind it, where 403 is an address that has expired."""
    return str(response.request.url).startswith(constants.ENDPOINT)


def _short(text: str, token: str | None) -> str:
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


def make_repo(api: HfApi, repo_id: str, repo_type: str, private: bool) -> str:
    """The full name of a repository that is there now."""
    return api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True).repo_id


def may_write(repo_id: str, private: bool, token: str | None) -> str:
    """The full name of a model's repository that is there now and that `token` may write to: Refused where it may
    not, Away where the hub does not answer within ten seconds.
    """
    with client(token, timeout=10.0) as api:
        repo = make_repo(api, repo_id, "model", private)
        # a repository that exists is no error above even for those who may only read; nothing is uploaded here
        api.preupload_lfs_files(repo, additions=[CommitOperationAdd("README.md", b"")])
        return repo


def deliver(
    contents: dict[str, Content],
    repo_id: str,
    repo_type: str,
    revision: str,
    tag: str | None,
    private: bool,
    message: str,
    token: str | None,
) -> tuple[str, str]:
    """(full name of the repository, commit) once `revision` holds every file of `contents` byte for byte.

    Raises Refused where trying again is of no use, Away where it may be.
    """
    with client(token) as api:
        repo = make_repo(api, repo_id, repo_type, private)
        place = {"repo_id": repo, "repo_type": repo_type}
        there = listing(api, repo, repo_type, revision)
        if there is None and revision != constants.DEFAULT_REVISION:
            api.create_branch(**place, branch=revision, exist_ok=True)
            there = listing(api, repo, repo_type, revision)
        new = differing(contents, there or {})
        gone = stale(contents, there or {}, repo_type)
        if new or gone:
            operations = [CommitOperationAdd(name, contents[name].path) for name in new]
            operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
            commit = api.create_commit(**place, operations=operations, commit_message=message, revision=revision).oid
            there = listing(api, repo, repo_type, revision)
            wrong = differing(contents, there or {})
            wrong = [
                name for name in wrong if _read_back(repo, repo_type, revision, name, token) != contents[name].sha256
            ]
            if wrong:
                raise Away(f"after the commit {wrong[0]} is not there as it is here, {len(wrong)} such files")
        else:
            commit = api.repo_info(**place, revision=revision).sha
        if tag:
            _tag(api, place, tag, commit, contents)
    return repo, commit


def _tag(api: HfApi, place: dict[str, str], tag: str, commit: str, contents: dict[str, Content]) -> None:
    """Let `tag` name a commit that holds `contents`, wherever it was before."""
    tagged = listing(api, **place, revision=tag)
    if tagged is not None and not differing(contents, tagged):
        return
    try:
        if tagged is not None:
            api.delete_tag(**place, tag=tag)
        api.create_tag(**place, tag=tag, revision=commit, exist_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (404, 405, 501):
            raise
        print(f"hub: {place['repo_id']}: this hub has no tags; {tag} is commit {commit}", flush=True)


def listing(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, RepoFile] | None:
    """The files of a revision by name; None where the hub has no such revision, or lists none at all."""
    try:
        tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return None


def differing(contents: dict[str, Content], there: dict[str, RepoFile]) -> list[str]:
    """The names that are not there, or not with these bytes: by size, and by sha256 or git's name of the content."""

    def same(mine: Content, its: RepoFile | None) -> bool:
        if its is None or its.size != mine.bytes:
            return False
        return its.lfs.sha256 == mine.sha256 if its.lfs else its.blob_id == mine.blob

    return [name for name, content in contents.items() if not same(content, there.get(name))]


def stale(contents: dict[str, Content], there: dict[str, RepoFile], repo_type: str) -> list[str]:
    """Weights or rows of an earlier push, in the folders of ours, that ours do not replace."""
    folders = {PurePosixPath(name).parent for name in contents if _is_main(name, repo_type)}
    return [
        name
        for name in there
        if name not in contents and PurePosixPath(name).parent in folders and _is_main(name, repo_type)
    ]


def _is_main(name: str, repo_type: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in STALE[repo_type])


def _read_back(repo_id: str, repo_type: str, revision: str, name: str, token: str | None) -> str | None:
    """The sha256 of a file as the hub gives it out, for one that lists no names by content; None without the file."""
    address = hf_hub_url(repo_id, name, repo_type=repo_type, revision=revision)
    digest = sha256()
    with get_session().stream("GET", address, headers=build_hf_headers(token=token)) as answer:
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            digest.update(piece)
    return digest.hexdigest()
