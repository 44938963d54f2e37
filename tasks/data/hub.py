"""Datasets of the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION][/folder].

HF_ENDPOINT, HF_TOKEN (or the token that `hf auth login` saved) and HF_HUB_OFFLINE mean what they mean to
huggingface_hub. Its downloader is not used: it neither shows progress where we want it nor stops with one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import urllib.parse
from pathlib import Path

import requests

from tasks.data import web
from tasks.errors import DataError

FORM = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<folder>[^?#@]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A dataset at a revision: a commit, a branch or a tag; what has a slash in it is written with %2F."""

    name: str
    revision: str
    folder: str

    @property
    def shown(self) -> str:
        return "/".join(
            part for part in (f"hf://datasets/{self.name}@{self.revision}", self.folder) if part
        )


def repository(source: str) -> Repository:
    """Raises DataError when the address is not of the form."""
    found = FORM.fullmatch(source)
    if not found:
        raise DataError(
            f"source {source!r} is not of the form hf://datasets/OWNER/NAME[@REVISION][/folder]: correct it"
        )
    return Repository(
        found["name"], found["revision"] or "main", (found["folder"] or "").strip("/")
    )


def address(source: str, name: str) -> web.Address:
    """The file `name` of the dataset; its `url` raises DataError when HF_HUB_OFFLINE forbids the download."""
    repo = repository(source)
    inner = urllib.parse.quote("/".join(part for part in (repo.folder, name) if part))
    return _address(
        repo,
        f"{repo.shown}/{name}",
        f"datasets/{repo.name}/resolve/{_quoted(repo.revision)}/{inner}",
    )


def resolve(source: str) -> str:
    """The same source with the commit that its revision is now. Raises DataError, Unreachable when a later try may help."""
    repo = repository(source)
    if COMMIT.fullmatch(repo.revision):
        return repo.shown
    place = _address(
        repo, repo.shown, f"api/datasets/{repo.name}/revision/{_quoted(repo.revision)}"
    )

    def ask() -> str:
        with web.answered(place, {}) as answer:
            web.check(answer, place)
            text = answer.text
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if COMMIT.fullmatch(commit := str(json.loads(text)["sha"])):
                return commit
        raise DataError(
            f"{repo.shown}: the hub names no commit: write the one you want behind an @ in [data] source"
        )

    return dataclasses.replace(repo, revision=web.patiently(ask)).shown


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """The hub's address, or a mirror's."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _address(repo: Repository, shown: str, path: str) -> web.Address:
    token = _token()

    def url() -> str:
        if offline():
            raise DataError(
                f"{shown} is not here, and HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']} forbids to ask for it: unset it, name "
                "the commit behind the @ if the shards are here, or put them into a folder and name that in [data] source"
            )
        return f"{endpoint()}/{path}"

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = (
            f"Bearer {token}"  # requests drops it when it is sent on to another host
        )
        return request

    page = f"https://huggingface.co/datasets/{repo.name}"
    login = f"{'this HF_TOKEN has no access' if token else 'it needs a login: set HF_TOKEN'}; accept the licence at {page}"
    return web.Address(shown, url, login, auth=sign if token else web.unsigned)


def _quoted(revision: str) -> str:
    return urllib.parse.quote(urllib.parse.unquote(revision), safe="")


def _token() -> str:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    saved = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with contextlib.suppress(OSError):  # public datasets need none
            token = saved.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise DataError(
            "HF_TOKEN is no token: it has a blank or a special character in it. Copy it again"
        )
    return token
