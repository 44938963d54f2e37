"""`./run doctor`: what would fail on this machine, and the remedy.

For a profile of a GPU, a training's box tries on it what a night needs. A check passes, fails, or
only informs (`ok` is None). An address gets 5 s to answer; no key is printed or forwarded to
another host. Not covered: whether the data's source can be reached, which the preparation reports.
"""

from __future__ import annotations

import dataclasses
import difflib
import http.client
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import configs
from flows import state_home
from flows.command_line import process_state, server
from tasks import addresses
from tasks.errors import NightlyError, UsageError
from tasks.text import counted, one_line

PATIENCE_SECONDS = 5.0  # for an address to answer
FREE_BYTES = {  # data, checkpoints and artifacts of several nights
    "cpu": 2 * 2**30,
    "mps": 2 * 2**30,
    "cuda": 30 * 2**30,
}
OPENAI = "https://api.openai.com/v1"
SHOWN_MODELS = 3  # of an endpoint's list


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the output: `ok` is None where nothing is required."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def checks(home: Path, profile: configs.Profile) -> Iterator[Check]:
    """Every check in turn, each made when it is asked for."""
    yield check_python()
    yield check_process(int(profile.limits.memory_gib * 2**30))
    if profile.device == "cuda":
        yield from check_driver_and_compiler()
    torch = check_torch(profile.device)
    yield torch
    isolation = yield from check_isolation(home, profile.device, profile.limits.isolation)
    yield check_disk(home, FREE_BYTES[profile.device])
    if profile.device == "cuda" and torch.ok:
        yield from check_gpu(home, profile, isolation)
    yield check_git(state_home.ROOT)
    yield check_mlflow(state_home.mlflow_uri(home))
    yield check_prefect(os.environ.get("PREFECT_API_URL") or server.running_server(home))
    yield from check_noise(home, profile)
    yield from check_proposer(profile)


def run(home: Path, profile: configs.Profile) -> int:
    """Prints each check as it is made; returns 1 if one failed, else 0."""
    failed = 0
    for check in checks(home, profile):
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
        print(f"{mark}  {check.name}: {check.detail}", flush=True)
        if check.ok is False:
            failed += 1
            if check.remedy:
                print(f"      {check.remedy}", flush=True)
    print(f"{failed} failed" if failed else f"--profile {profile.name} can run here")
    return 1 if failed else 0


def check_python() -> Check:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    supported = (3, 11) <= sys.version_info[:2] < (3, 15)
    return Check("python", supported, found, "use Python 3.11 to 3.14: PYTHON=python3.12 ./run")


def check_process(box_bytes: int) -> Check:
    """What this shell hands down to every command; a box may use `box_bytes` of memory."""
    found = "; ".join(process_state.findings(box_bytes))
    return Check("process", None if found else True, found or "inherits nothing that is in the way")


def check_driver_and_compiler() -> Iterator[Check]:
    """What torch needs on a GPU of the system around it."""
    from tasks.trial import device_readiness

    for found in (device_readiness.driver(), device_readiness.compiler()):
        yield Check(found.name, found.holds, found.detail, found.remedy)


def check_torch(device: str) -> Check:
    """The torch build, and whether it can use the profile's device."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries cannot be loaded
        remedy = "delete .venv and call ./run again"
        return Check("torch", False, f"cannot be imported: {error}", remedy)
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        gpu = torch.cuda.get_device_properties(0)
        gpus = f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
        found = f"{torch.__version__}, {gpus}"
    else:
        cuda = torch.version.cuda
        build = f"built for CUDA {cuda}" if cuda else "built without CUDA"
        found = f"{torch.__version__}, {build}, no CUDA device"
    usable = {"cpu": True, "cuda": has_cuda, "mps": torch.backends.mps.is_available()}[device]
    remedy = (
        f"the profile needs device {device}; for another torch build, "
        "delete .venv and set TORCH_INDEX=URL"
    )
    return Check("torch", usable, found, remedy)


def check_isolation(
    home: Path, device: str, wanted: str
) -> Generator[Check, None, Literal["bwrap", "docker", "none"]]:
    """What a box must refuse, tried in a real one; returns the kind of box that holds.

    A hole in bubblewrap's box is no failure where a container's box holds.
    """
    from tasks.judge import container
    from tasks.judge.probe import probe

    engine = container.engine()
    by_bwrap = [] if wanted == "docker" else probe(home, device)
    bwrap_holds = bool(by_bwrap) and all(holds for _, holds, _ in by_bwrap)
    needs_docker = wanted == "docker" or (wanted == "auto" and engine and not bwrap_holds)
    by_docker = probe(home, device, "docker") if needs_docker else []
    docker_holds = bool(by_docker) and all(holds for _, holds, _ in by_docker)
    for name, holds, detail in by_bwrap:
        yield _box_check(f"isolation, {name}", holds or (None if docker_holds else False), detail)
    for name, holds, detail in by_docker:
        yield _box_check(f"docker, {name}", holds, detail)
    answers = f"engine {engine} answers" if engine else "no engine answers"
    unneeded = "; not needed: bubblewrap's box holds" if bwrap_holds else ""
    yield Check("docker", None, f"{answers}{unneeded}")
    return "bwrap" if bwrap_holds else "docker" if docker_holds else "none"


def check_gpu(
    home: Path, profile: configs.Profile, isolation: Literal["bwrap", "docker", "none"]
) -> Iterator[Check]:
    """What a training's box does on the GPU, up to the first step that fails.

    Not while a night trains on it: that would cost the night time and memory.
    """
    from tasks.trial import device_lock, device_readiness

    sandboxed = "" if isolation != "none" else " (unsandboxed)"
    try:
        with device_lock.held(home, device_lock.device_of(profile), "./run doctor"):
            for found in device_readiness.in_a_box(home, profile, isolation):
                name = f"GPU{sandboxed}, {found.name}"
                yield Check(name, found.holds, found.detail, found.remedy)
    except UsageError as error:
        yield Check("GPU", None, f"not tried: {error}")


def _box_check(name: str, ok: bool | None, detail: str) -> Check:
    remedy = "without a box a night runs only with --allow-unsandboxed"
    return Check(name, ok, detail or ("holds" if ok else "DOES NOT HOLD"), remedy)


def check_disk(home: Path, need: int) -> Check:
    remedy = (
        f"{need / 2**30:.0f} GiB are needed: free some space, "
        "or set NIGHTLY_HOME to a folder on another disk"
    )
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"x")
    except OSError as error:
        return Check("disk", False, f"{home} cannot be written: {error.strerror}", remedy)
    free = shutil.disk_usage(home).free
    return Check("disk", free >= need, f"{free / 2**30:.1f} GiB free in {home}", remedy)


def check_git(folder: Path) -> Check:
    """The checkout that a night would start from, by the night's own check."""
    from tasks.history import champion

    try:
        found = champion.open_checkout(folder)
    except NightlyError as error:
        return Check("git", False, str(error))
    return Check("git", True, f"{found.describe()}{'' if found.dirty else ', clean'}")


def check_mlflow(uri: str) -> Check:
    """Whether the tracking store answers. A local file that does not exist yet is no failure."""
    shown = _without_secrets(uri)
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        status, problem = _request(f"{uri.rstrip('/')}/health")
        remedy = (
            "nights run without it and catch up later; correct MLFLOW_TRACKING_URI, "
            "or unset it to use the local store"
        )
        return Check("mlflow", status == 200, f"{shown} {_answer(status, problem)}", remedy)
    if not addresses.is_sqlite(uri):
        return Check("mlflow", None, f"{shown} is not checked")
    path = addresses.sqlite_path(uri)
    if not path.exists():
        return Check("mlflow", True, f"the first night will create {path}")
    try:
        connection = sqlite3.connect(
            f"{addresses.of_file(path)}?mode=ro", uri=True, timeout=PATIENCE_SECONDS
        )
        try:
            revision = connection.execute("select version_num from alembic_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        remedy = "move the file away: the next night creates a new one"
        return Check("mlflow", False, f"{path}: {error}", remedy)
    return Check("mlflow", True, f"{path}, schema {revision[0] if revision else 'unknown'}")


def check_prefect(url: str | None) -> Check:
    if url is None:
        private = "PREFECT_API_URL is not set: each command starts a private server of its own"
        return Check("prefect", None, private)
    status, problem = _request(f"{url.rstrip('/')}/health")
    remedy = "start it (./run server), or unset PREFECT_API_URL: then each command starts its own"
    shown = f"{_without_secrets(url)} {_answer(status, problem)}"
    return Check("prefect", status == 200, shown, remedy)


def check_noise(home: Path, profile: configs.Profile) -> Iterator[Check]:
    """The noise that earlier nights of the profile measured on this machine."""
    from tasks.history import earlier_noise
    from tasks.noise import Noise, unseen
    from tasks.trial import hardware
    from tasks.trial.baseline_facts import facts_before_data

    machine = hardware.describe(profile.device, profile.threads)
    nights, problems = earlier_noise.known(home, profile.name, machine, facts_before_data(profile))
    for problem in problems:
        yield Check("noise", None, problem)
    repeats = unseen((group for night in nights for group in night.repeats), set())
    found = "not measured yet with this profile on this machine: the next night does that"
    if nights:
        found = f"{Noise.pooled(repeats)}, from {counted(len(nights), 'night')}"
    yield Check("noise", None, found)


def check_proposer(profile: configs.Profile) -> Iterator[Check]:
    """The endpoint, and what the profile's proposer needs. No model is asked, no agent started."""
    model = None
    try:
        if configs.traits(profile.night.proposer).asks_a_model:
            from tasks.proposers.chat import Endpoint

            model = Endpoint.from_environment(profile.llm).model
        elif profile.night.proposer == "command":
            from tasks.proposers.command import CommandProposer

            CommandProposer.check(profile.command)
            yield Check("command", True, f"{profile.command.argv[0]} is installed")
    except UsageError as error:
        yield Check(f"proposer {profile.night.proposer}", False, str(error))
    yield check_llm(os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY"), model)


def check_llm(base_url: str | None, key: str | None, model: str | None = None) -> Check:
    """Asks the endpoint for its list of models, which must have `model`.

    An endpoint without such a list (404) may still work.
    """
    if not base_url and not key:
        unset = "neither OPENAI_BASE_URL nor OPENAI_API_KEY is set; the proposer tpe needs neither"
        return Check("llm", None, unset)
    base = (base_url or OPENAI).rstrip("/")
    shown = _without_secrets(base)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    status, answer = _request(f"{base}/models", headers)
    remedy = "check OPENAI_BASE_URL (it usually ends in /v1) and OPENAI_API_KEY"
    if status == 404:
        if _request(f"{base}/chat/completions", headers, b"{}")[0] not in (404, 405):
            return Check("llm", None, f"{shown} {_answer(status, answer)}", remedy)
        ending = "" if base.endswith("/v1") else ", and its address does not end in /v1"
        return Check("llm", False, f"{shown} has no chat completions{ending}", remedy)
    if status != 200:
        return Check("llm", False, f"{shown} {_answer(status, answer)}", remedy)
    try:
        models = [one_line(str(listed["id"])) for listed in json.loads(answer)["data"]]
    except (ValueError, KeyError, TypeError):
        return Check("llm", False, f"{shown} answers, but not with a list of models", remedy)
    return _check_model(shown, models, model)


def _check_model(shown: str, models: list[str], model: str | None) -> Check:
    """Whether the endpoint's `models` have the profile's `model`, if it names one."""
    has = f"{shown} has {len(models)} models"
    first = ", ".join(models[:SHOWN_MODELS])
    if model is None:
        more = ", ..." if models[SHOWN_MODELS:] else ""
        return Check("llm", True, f"{has}: {first}{more}" if models else has)
    if any(each in (model, f"{model}:latest") or each.endswith(f"/{model}") for each in models):
        return Check("llm", True, f"{has}, among them {model}")
    near = ", ".join(difflib.get_close_matches(model, models)) or first
    found = f"{has}, and {model} is not one of them: {near or 'there are none'}"
    return Check("llm", False, found, "set [llm] model in the profile to a name on that list")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would forward the key to wherever a redirect points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _request(
    url: str, headers: dict[str, str] | None = None, post: bytes | None = None
) -> tuple[int | None, str]:
    """A GET, or a POST of these bytes.

    Returns (status, first MiB of the answer if that is 200), or (None, what went wrong).
    """
    if not url.startswith(("http://", "https://")):
        return None, "is not an http address"
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        request = urllib.request.Request(url, post, headers or {})
        with opener.open(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read(2**20).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        # ValueError: a URL or a header that cannot be sent
        return None, f"does not answer: {getattr(error, 'reason', None) or type(error).__name__}"


def _answer(status: int | None, problem: str) -> str:
    return "answers" if status == 200 else f"answers {status}" if status else problem


def _without_secrets(url: str) -> str:
    """The address without user, password and query. By hand: urllib may not be able to parse it."""
    scheme, slashes, rest = url.partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"
