"""A stand-in for docker where there is no engine: the same command line, with bubblewrap's boxes.

`install` puts it on a PATH as `docker`. A container has its own session and survives its client, as
a real one does; it has the mounts, tmpfs, environment, user and entrypoint that were asked for over
a bare root whose /root is closed, and our seccomp filter in place of docker's. What it cannot show:
image, engine, cgroup limits, device nodes, the real mount order.
"""

import contextlib
import csv
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from tasks.judge import seccomp
from tasks.judge.bwrap import find_bwrap
from tasks.judge.processes import ProcessId

ROOT = Path(__file__).resolve().parent.parent
BARE = ("--rm", "--read-only")  # options of `run` without a value
VERSION = "0.0.fake"


def install(folder: Path, name: str = "docker") -> Path:
    """Makes the command; its state folder, where a file `deaf` makes it ignore kill and rm."""
    state = folder / "containers"
    state.mkdir(parents=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {__file__} {state} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return state


def main(state: Path, verb: str, *arguments: str) -> int:
    """One call of docker; its exit code."""
    if verb in ("image", "container"):
        verb, arguments = f"{verb} {arguments[0]}", arguments[1:]
    if verb == "version":
        print(VERSION)
    elif verb == "image inspect":
        print("" if arguments[0] == "--format" else "[]")
    elif verb == "run":
        return _run(state, list(arguments))
    elif verb == "ps":
        wanted = arguments[arguments.index("--filter") + 1].removeprefix("label=")
        for path in state.glob("*.json"):
            labels = json.loads(path.read_text())["labels"]
            if wanted in labels and _pid(path):
                judge = next(label for label in labels if label.startswith("nightly-judge="))
                print(path.stem, judge.partition("=")[2])
    elif verb in ("container inspect", "kill", "rm"):
        return _known(state, verb, list(arguments))
    else:
        print(f"the fake docker does not know {verb}", file=sys.stderr)
        return 64
    return 0


def _known(state: Path, verb: str, arguments: list[str]) -> int:
    path = state / f"{arguments[-1]}.json"
    pid = _pid(path)
    if pid is None:
        print(f"Error response from daemon: No such container: {arguments[-1]}", file=sys.stderr)
        return 1
    if verb == "container inspect":
        print(pid if "Pid" in arguments[1] else "true")
    elif not (state / "deaf").exists():
        os.kill(pid, signal.SIGKILL)
    return 0


def _pid(path: Path) -> int | None:
    """The container's first process; None if it is gone, as all run with `--rm`."""
    with contextlib.suppress(FileNotFoundError):
        process = ProcessId.parse(json.loads(path.read_text())["process"])
        if process.is_alive:
            return process.pid
        path.unlink(missing_ok=True)
    return None


def _run(state: Path, argv: list[str]) -> int:
    options: dict[str, list[str]] = {}
    while argv[0].startswith("--"):
        name = argv.pop(0)
        options.setdefault(name, []).append("" if name in BARE else argv.pop(0))
    argv.pop(0)  # the image
    ours, theirs = os.pipe()
    with seccomp.descriptor("cpu") as filter_fd:
        assert filter_fd is not None
        inside = [*_wall(options, theirs, filter_fd), options["--entrypoint"][0], *argv]
        container = subprocess.Popen(inside, pass_fds=[theirs, filter_fd], start_new_session=True)
    os.close(theirs)
    with os.fdopen(ours) as info:
        said = info.read()
    if said:
        pid = json.loads(said)["child-pid"]
        part = state / "part"
        with contextlib.suppress(OSError):  # it has ended
            process = str(ProcessId.of(pid))
            part.write_text(json.dumps({"process": process, "labels": options["--label"]}))
            part.replace(state / f"{options['--name'][0]}.json")
    return container.wait() % 256


def _wall(options: dict[str, list[str]], info_fd: int, filter_fd: int) -> list[str]:
    """Bubblewrap's argv up to the command. As root without a user namespace: users are real."""
    user, group = options["--user"][0].split(":")
    wall = [str(find_bwrap()), "--info-fd", str(info_fd), "--seccomp", str(filter_fd), "--as-pid-1"]
    wall += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--clearenv"]
    wall += ["--hostname", options["--hostname"][0], "--dir", "/root", "--chmod", "0700", "/root"]
    for name in ("bin", "sbin", "lib", "lib64"):
        wall += ["--symlink", f"usr/{name}", f"/{name}"]
    wall += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    mounts = {
        "/dev/shm": ["--perms", "1777", "--size", options["--shm-size"][0], "--tmpfs", "/dev/shm"]
    }
    for text in options["--tmpfs"]:
        target, _, given = text.partition(":")
        chosen = dict(option.split("=") for option in given.split(",") if "=" in option)
        # Bubblewrap's tmpfs is root's: where another owner is asked for, everybody may write.
        mode = "1777" if "uid" in chosen else chosen["mode"]
        mounts[target] = ["--perms", mode, "--size", chosen["size"], "--tmpfs", target]
    for fields in csv.reader(options["--mount"]):
        bind = dict(field.split("=", 1) for field in fields if "=" in field)
        mounts[bind["target"]] = ["--ro-bind", bind["source"], bind["target"]]
    for target in sorted(mounts, key=lambda target: target.count("/")):  # by depth, as docker does
        for folder in reversed(Path(target).parents[:-1]):
            wall += ["--dir", str(folder)]  # as docker does: 0755
        wall += mounts[target]
    wall += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", options["--workdir"][0]]
    for variable in options["--env"]:
        wall += ["--setenv", *variable.split("=", 1)]
    if os.geteuid() != 0:
        return [*wall, "--unshare-user", "--uid", user, "--gid", group, "--cap-drop", "ALL", "--"]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
        wall += ["--cap-add", capability]
    drop = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    return [*wall, "--", "/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", *drop]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
