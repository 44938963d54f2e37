"""Datasets of the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION][/folder].

HF_ENDPOINT, HF_TOKEN (or the token that `hf auth login` saved) and HF_HUB_OFFLINE mean what they
mean to huggingface_hub, which reads them once, when it is imported. `web` says why its downloads
are not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import urllib.parse
from pathlib import Path

from tasks.data import web
from tasks.errors import DataError

FORM = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<folder>[^?#@]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A dataset at a revision: a commit, a branch or a tag, with %2F for a slash in its name."""

    name: str
    revision: str
    folder: str

    @property
    def shown(self) -> str:
        return "/".join(
            part for part in (f"hf://datasets/{self.name}@{self.revision}", self.folder) if part
        )


def repository(source: str) -> Repository:
    """Raises DataError when the address is not of the form above."""
    found = FORM.fullmatch(source)
    if not found:
        raise DataError(
            f"source {source!r} is not of the form "
            "hf://datasets/OWNER/NAME[@REVISION][/folder]: correct it"
        )
    return Repository(
        found["name"], found["revision"] or "main", (found["folder"] or "").strip("/")
    )


def address(source: str, name: str) -> web.Address:
    """The file `name` of the dataset; `url` raises DataError when HF_HUB_OFFLINE is set."""
    repo = repository(source)
    inner = urllib.parse.quote("/".join(part for part in (repo.folder, name) if part))
    return _address(
        repo,
        f"{repo.shown}/{name}",
        f"datasets/{repo.name}/resolve/{_quoted(repo.revision)}/{inner}",
    )


def resolve(source: str) -> str:
    """The same source with the commit that its revision stands for now.

    Raises DataError, and Unreachable when a later try may succeed.
    """
    repo = repository(source)
    if COMMIT.fullmatch(repo.revision):
        return repo.shown
    place = _address(
        repo, repo.shown, f"api/datasets/{repo.name}/revision/{_quoted(repo.revision)}"
    )

    def ask() -> str:
        with web.answered(place, {}) as answer:
            web.check(answer, place)
            content = answer.read()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if COMMIT.fullmatch(commit := str(json.loads(content)["sha"])):
                return commit
        raise DataError(
            f"{repo.shown}: the hub names no commit: "
            "write the one you want behind an @ in [data] source"
        )

    return dataclasses.replace(repo, revision=web.patiently(ask)).shown


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests to the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """The address of the hub, or of a mirror."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _address(repo: Repository, shown: str, path: str) -> web.Address:
    token = _token()

    def url() -> str:
        if offline():
            raise DataError(
                f"{shown} is not on this machine, and "
                f"HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']} forbids the download: unset it, "
                "name the commit behind the @ if the shards were downloaded, or put them into a "
                "folder and name that in [data] source"
            )
        return f"{endpoint()}/{path}"

    page = f"https://huggingface.co/datasets/{repo.name}"
    remedy = "this HF_TOKEN has no access" if token else "it needs a login: set HF_TOKEN"
    # A redirect to another host drops the login.
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return web.Address(shown, url, f"{remedy}; accept the licence at {page}", headers=headers)


def _quoted(revision: str) -> str:
    return urllib.parse.quote(urllib.parse.unquote(revision), safe="")


def _token() -> str:
    """The login, or nothing: public datasets need none."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    saved = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with contextlib.suppress(OSError):
            token = saved.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise DataError(
            "HF_TOKEN is not a token: it contains a blank or a special character. Copy it again"
        )
    return token
