"""A Python process with the heavy libraries imported, which forks one process for each command.

A command that needs Prefect and MLflow spends four CPU-seconds on imports; its fork spends none.
The fork then is what `python ARGUMENTS` would be: it imports the project's own modules anew from
its PYTHONPATH and folder, has that command's environment, streams, session and signals, and shows
them in /proc. Two things differ: third-party modules are there before the command's first line,
and `sys.flags` are those of the server. Needs Linux.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

PRELOADED = (
    *("prefect.main", "prefect.flow_engine", "prefect.task_engine", "prefect.artifacts"),
    *("prefect.server.api.server", "uvicorn.protocols.http.auto", "uvicorn.lifespan.on"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils"),
    *("optuna", "matplotlib.backends.backend_agg", "matplotlib.figure", "pyarrow.parquet"),
    *("git", "openai", "rustbpe", "tiktoken", "psutil", "fsspec"),
)
ROOM = 65536  # bytes for the command line, and for the environment, that /proc shows of a fork
LONGEST_ORDER = 131072  # bytes


class WarmPython:
    """The server, started at once and loaded in the background, and the way to ask it for forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_ORDER)
        self._control = ours
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), " " * ROOM],
                env={**_settings(os.environ), "WARM_PYTHON_ROOM": " " * ROOM},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )

    @property
    def pid(self) -> int:
        return self._server.pid

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: IO[Any],
        stderr: IO[Any],
        stdin: IO[Any] | None = None,
        start_new_session: bool = False,
        process_group: bool = False,
    ) -> WarmProcess:
        """`python ARGUMENTS`, the first of which is -m or -c. `process_group`: of its own."""
        order = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(env),
            "start_new_session": start_new_session,
            "process_group": process_group,
        }
        status, its_end = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, its_end)
            given = stdin or stack.enter_context(open(os.devnull))
            streams = [given.fileno(), stdout.fileno(), stderr.fileno(), its_end]
            socket.send_fds(self._control, [json.dumps(order).encode()], streams)
        return WarmProcess(status, arguments)

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run(..., capture_output=True, text=True)`."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = self.start(arguments, cwd=cwd, env=env, stdout=out, stderr=err)
            process.wait()
            out.seek(0)
            err.seek(0)
            argv = [sys.executable, *arguments]
            return subprocess.CompletedProcess(
                argv, int(process.returncode or 0), out.read(), err.read()
            )

    def end(self) -> None:
        """Ends the server; forks that still run go on."""
        self._control.close()
        self._server.wait()


class WarmProcess:
    """A fork, used as a `subprocess.Popen`. Its pid is known once the server has loaded."""

    def __init__(self, status: int, arguments: Sequence[str]) -> None:
        self.returncode: int | None = None
        self._arguments = arguments
        self._status = os.fdopen(status, "rb", buffering=0)
        self._lines = b""
        self.pid = int(self._line(None))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _line(self, timeout: float | None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0.0)
                read = self._status.read(100)
                if not read:
                    raise RuntimeError("the warm Python has ended: its message is above")
                self._lines += read
        line, _, self._lines = self._lines.partition(b"\n")
        return line


@contextlib.contextmanager
def warm_python() -> Iterator[WarmPython]:
    warm = WarmPython()
    try:
        yield warm
    finally:
        warm.end()


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What the libraries are imported with; a fork's own environment replaces it."""
    ours = ("PREFECT_", "MLFLOW_", "NIGHTLY_", "OPENAI_", "PYTHON")
    kept = {name: value for name, value in environment.items() if not name.startswith(ours)}
    return {
        **kept,
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PREFECT_HOME": "/dev/null/prefect",  # which not even root can make
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def serve(control: socket.socket) -> None:
    """Forks for each order; returns in a fork when its command is done."""
    load()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fileobj)
                    _report_end(*key.data)
                    continue
                message, streams, *_ = socket.recv_fds(control, LONGEST_ORDER, 4)
                if not message:
                    os._exit(0)
                if (pid := os.fork()) == 0:
                    selector.close()
                    control.close()
                    run(json.loads(message), streams)
                for stream in streams[:3]:
                    os.close(stream)
                os.write(streams[3], b"%d\n" % pid)
                handle = os.pidfd_open(pid)
                selector.register(handle, selectors.EVENT_READ, (pid, handle, streams[3]))


def _report_end(pid: int, handle: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # whoever started it has ended
        os.write(status, b"%d\n" % code)
    os.close(status)
    os.close(handle)


def load() -> None:
    import gc
    import threading
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Prefect's home cannot be made
        for name in PRELOADED:
            importlib.import_module(name)
    others = [thread.name for thread in threading.enumerate()][1:]
    if others:
        raise RuntimeError(
            f"importing {PRELOADED} has started threads, which no fork has: {others}"
        )
    gc.collect()
    gc.freeze()  # collections in a fork do not touch, and so copy, what is loaded


def run(order: dict[str, Any], streams: list[int]) -> None:
    """The life of a fork."""
    become(order, streams)
    code = 1
    try:
        run_main(order["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    end_process(code)


def become(order: dict[str, Any], streams: list[int]) -> None:
    """Takes on the streams, session, folder, environment and paths of the command."""
    if order["start_new_session"]:
        os.setsid()
    elif order["process_group"]:
        os.setpgid(0, 0)
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    os.closerange(3, max(streams) + 64)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also below a shell's `&`
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    show_in_proc(order["arguments"], order["environment"])
    sys.path[:0] = [order["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.meta_path.insert(0, ConfiguredPrefect(sys.modules.pop("prefect")))
    importlib.invalidate_caches()
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


class ConfiguredPrefect(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Prefect at its first import: it reads its settings from the environment, as it does anew."""

    def __init__(self, prefect: ModuleType) -> None:
        self.prefect = prefect
        self.place = prefect.__spec__, prefect.__loader__, prefect.__path__

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "prefect":
            return None
        return importlib.machinery.ModuleSpec("prefect", self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self.prefect

    def exec_module(self, module: ModuleType) -> None:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        sys.meta_path.remove(self)
        module.__spec__, module.__loader__, module.__path__ = self.place
        refresh_global_settings_context()
        setup_logging(incremental=False)


def run_main(arguments: list[str]) -> None:
    import runpy

    kind, what, *rest = arguments
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), main.__dict__)


def end_process(code: int) -> None:
    """What the interpreter does at its end, but for taking every module apart."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def show_in_proc(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Writes a command line and an environment where /proc/PID/cmdline and environ read them.

    proc(5): both are the memory between two addresses that /proc/PID/stat names. What is there
    was the server's, with ROOM for this.
    """
    import ctypes

    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    argv_start, argv_end, env_start, env_end = map(int, fields[45:49])
    argv = [sys.executable, *arguments]
    pairs = [f"{name}={value}" for name, value in environment.items()]
    for texts, start, end in ((argv, argv_start, argv_end), (pairs, env_start, env_end)):
        content = b"".join(os.fsencode(text) + b"\0" for text in texts)
        ctypes.memmove(start, content[: end - start].ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests
    serve(socket.socket(fileno=int(sys.argv[1])))
