"""What would fail on this machine, and the remedy: `./run doctor`.

A check is ok, failed, or neither: `None` is a fact to know that stops nothing. An address gets 5 s to answer, and no key
is printed or sent on to another host. Not covered: whether the data's source can be reached (the preparation says it).
"""

from __future__ import annotations

import dataclasses
import difflib
import http.client
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import configs
from flows import state_home
from flows.command_line import server
from tasks.errors import UsageError
from tasks.text import one_line

SECONDS = 5.0  # of patience with an address
FREE_BYTES = {
    "cpu": 2 * 2**30,
    "mps": 2 * 2**30,
    "cuda": 30 * 2**30,
}  # data, checkpoints and artifacts of some nights
OPENAI = "https://api.openai.com/v1"


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the doctor's: `ok` is None where nothing was required."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def checks(home: Path, profile: configs.Profile) -> Iterator[Check]:
    """Every check in turn; each is done when it is asked for."""
    yield check_python()
    yield check_torch(profile.device)
    yield from check_isolation(home, profile.device, profile.limits.isolation)
    yield check_disk(home, FREE_BYTES[profile.device])
    yield from check_git(state_home.ROOT)
    yield check_mlflow(state_home.mlflow_uri(home))
    yield check_prefect(os.environ.get("PREFECT_API_URL") or server.running_server(home))
    yield from check_researcher(profile)


def run(home: Path, profile: configs.Profile) -> int:
    """Prints every check as it is made; returns 1 if one failed, else 0."""
    failed = 0
    for check in checks(home, profile):
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
        print(f"{mark}  {check.name}: {check.detail}", flush=True)
        if check.ok is False:
            failed += 1
            if check.remedy:
                print(f"      {check.remedy}", flush=True)
    print(f"{failed} failed" if failed else f"all is well for --profile {profile.name}")
    return 1 if failed else 0


def check_python() -> Check:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return Check(
        "python",
        (3, 11) <= sys.version_info[:2] < (3, 15),
        found,
        "use Python 3.11 to 3.14: PYTHON=python3.12 ./run",
    )


def check_torch(device: str) -> Check:
    """The torch build, and whether it drives the profile's device."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of it cannot be loaded
        return Check(
            "torch", False, f"cannot be imported: {error}", "remove .venv and call ./run again"
        )
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found = f"{torch.__version__}, {torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    else:
        built = (
            f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        )
        found = f"{torch.__version__}, {built}, no CUDA device"
    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }[device]
    remedy = f"the profile wants {device}: look at nvidia-smi; another build is chosen by TORCH_INDEX=URL at set-up"
    return Check("torch", usable, found, remedy)


def check_isolation(home: Path, device: str, wanted: str) -> Iterator[Check]:
    """What a real box refuses, tried in one; what bubblewrap's does not hold is no failure where a container holds."""
    from tasks.judge import container
    from tasks.judge.probe import probe

    remedy = "no night runs without a box, unless you say --allow-unsandboxed"
    engine = container.engine()
    found = (
        []
        if wanted == "docker"
        else [(f"isolation, {name}", holds, said) for name, holds, said in probe(home, device)]
    )
    holds_bwrap = bool(found) and all(holds for _, holds, _ in found)
    contained: list[tuple[str, bool, str]] = []
    if wanted == "docker" or (wanted == "auto" and engine and not holds_bwrap):
        contained = [
            (f"docker, {name}", holds, said) for name, holds, said in probe(home, device, "docker")
        ]
    enough = bool(contained) and all(holds for _, holds, _ in contained)
    for name, holds, said in found:
        yield Check(
            name,
            holds or (None if enough else False),
            said or ("holds" if holds else "DOES NOT HOLD"),
            remedy,
        )
    for name, holds, said in contained:
        yield Check(name, holds, said or ("holds" if holds else "DOES NOT HOLD"), remedy)
    answers = f"engine {engine} answers" if engine else "no engine answers"
    yield Check(
        "docker", None, f"{answers}{'; not needed: bubblewrap holds' if holds_bwrap else ''}"
    )


def check_disk(home: Path, need: int) -> Check:
    remedy = f"{need / 2**30:.0f} GiB are needed: free some, or set NIGHTLY_HOME to a folder on another disk"
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"x")
    except OSError as error:
        return Check("disk", False, f"{home} cannot be written: {error.strerror}", remedy)
    free = shutil.disk_usage(home).free
    return Check("disk", free >= need, f"{free / 2**30:.1f} GiB free in {home}", remedy)


def check_git(checkout: Path) -> Iterator[Check]:
    """The checkout that a night would start from. The night commits as its own author: no identity is needed."""

    def git(*arguments: str) -> str | None:
        argv = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short", "--verify", "HEAD")
    if head is None:
        remedy = "a night needs a git checkout with a commit: git clone it, or git init && git add -A && git commit -m start"
        yield Check("git", False, f"{checkout} has no commit", remedy)
        return
    branch = git("symbolic-ref", "--short", "--quiet", "HEAD") or "detached"
    state = (
        "with uncommitted changes, which a night leaves alone"
        if git("status", "--porcelain")
        else "clean"
    )
    yield Check("git", True, f"{branch} at {head}, {state}")
    name, email = git("config", "user.name"), git("config", "user.email")
    yield Check(
        "git identity",
        None,
        f"{name} <{email}>" if name and email else "not set; nights commit as their own author",
    )


def check_mlflow(uri: str) -> Check:
    """Whether the tracking store answers; a local file store that is not there yet is no fault."""
    shown, scheme = _without_secrets(uri), uri.partition(":")[0]
    remedy = "nights go on without it and catch up later; mend MLFLOW_TRACKING_URI, or unset it for the local store"
    if scheme in ("http", "https"):
        status, text = _get(f"{uri.rstrip('/')}/health")
        return Check("mlflow", status == 200, f"{shown} {_said(status, text)}", remedy)
    if scheme != "sqlite":
        return Check("mlflow", None, f"{shown} is not looked at")
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return Check("mlflow", True, f"{path} will be made by the first night")
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=SECONDS
        )
        try:
            revision = connection.execute("select version_num from alembic_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Check(
            "mlflow",
            False,
            f"{path}: {error}",
            "move the file away: the next night makes a new one",
        )
    return Check("mlflow", True, f"{path}, schema {revision[0] if revision else 'unknown'}")


def check_prefect(url: str | None) -> Check:
    if url is None:
        return Check(
            "prefect",
            None,
            "PREFECT_API_URL is not set: each command starts a private server that ends with it",
        )
    status, text = _get(f"{url.rstrip('/')}/health")
    remedy = "start it (./run server), or unset PREFECT_API_URL: then each command starts its own"
    return Check("prefect", status == 200, f"{_without_secrets(url)} {_said(status, text)}", remedy)


def check_researcher(profile: configs.Profile) -> Iterator[Check]:
    """The endpoint, and what the profile's proposer needs: told for nothing, as no model is asked and no agent is started."""
    model = None
    try:
        if configs.traits(profile.night.proposer).asks_a_model:
            from tasks.proposers.chat import Endpoint

            model = Endpoint.from_environment(profile.llm).model
        elif profile.night.proposer == "command":
            from tasks.proposers.command import CommandProposer

            CommandProposer.check(profile.command)
            yield Check("command", True, f"{profile.command.argv[0]} is there")
    except UsageError as error:
        yield Check(f"proposer {profile.night.proposer}", False, str(error))
    yield check_llm(os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY"), model)


def check_llm(base_url: str | None, key: str | None, model: str | None = None) -> Check:
    """Asks the endpoint for its models, of which `model` is to be one; without such a list (404) it may still work."""
    if not base_url and not key:
        return Check(
            "llm",
            None,
            "neither OPENAI_BASE_URL nor OPENAI_API_KEY is set; the tpe proposer needs none",
        )
    base = (base_url or OPENAI).rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    status, text = _get(f"{base}/models", headers)
    shown, ok = _without_secrets(base), {200: True, 404: None}.get(status or 0, False)
    remedy = "look at OPENAI_BASE_URL (it usually ends in /v1) and OPENAI_API_KEY"
    if status == 404 and _get(f"{base}/chat/completions", headers, b"{}")[0] in (404, 405):
        ending = "" if base.endswith("/v1") else ", and its address does not end in /v1"
        return Check("llm", False, f"{shown} has no chat completions{ending}", remedy)
    if status != 200:
        return Check("llm", ok, f"{shown} {_said(status, text)}", remedy)
    try:
        models = [one_line(str(listed["id"])) for listed in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError):
        return Check("llm", False, f"{shown} answers, but not with a list of models", remedy)
    if model and not any(
        listed in (model, f"{model}:latest") or listed.endswith(f"/{model}") for listed in models
    ):
        near = ", ".join(difflib.get_close_matches(model, models) or models[:3])
        said = f"{shown} has {len(models)} models, and {model} is not one of them: {near or 'there are none'}"
        return Check(
            "llm", False, said, "name it in the profile's [llm] model as the endpoint does"
        )
    some = (
        f", among them {model}"
        if model
        else f": {', '.join(models[:3])}{', ...' if len(models) > 3 else ''}"
    )
    return Check("llm", True, f"{shown} has {len(models)} models{some}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key on to wherever a redirect points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _get(
    url: str, headers: dict[str, str] | None = None, post: bytes | None = None
) -> tuple[int | None, str]:
    """What a GET, or a POST of these bytes, is answered: (status, the first MiB if it is 200) or (None, what went wrong)."""
    if not url.startswith(("http://", "https://")):
        return None, "is no http address"
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(
            urllib.request.Request(url, post, headers or {}), timeout=SECONDS
        ) as answer:
            return answer.status, answer.read(2**20).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, ""
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # ValueError: what cannot be sent as it stands
        return None, f"does not answer: {getattr(error, 'reason', None) or type(error).__name__}"


def _said(status: int | None, text: str) -> str:
    return "answers" if status == 200 else f"answers {status}" if status else text


def _without_secrets(url: str) -> str:
    """The address without user, password and query. By hand, as it may be none that urllib can parse."""
    scheme, slashes, rest = url.partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"
