"""Which GPU a box gets, from CUDA_VISIBLE_DEVICES and the device nodes, and what it gets with it.

There is no GPU where the tests run: nodes and drivers are made up, and their folders too.
"""

import dataclasses
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tasks.judge import bwrap, container, gpu
from tasks.judge.box import open_box
from tasks.judge.door import open_door
from tests.boxes import SAY, answer, make_spec

RENDER = 12345 if os.geteuid() == 0 else os.getgid()  # a group
NVIDIA = {"nvidia0": 0o666, "nvidiactl": 0o666, "nvidia-uvm": 0o666}
AMD = {"kfd": 0o660, "dri/renderD128": 0o660, "dri/card0": 0o660}
CHOICE = ("NIGHTLY_DEVICE", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")  # variables tested below
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
SYSTEMS = Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1")  # a place that ldconfig knows


@pytest.mark.parametrize(
    ("visible", "first"),
    [
        ("3,1", "3"),
        (" 2", "2"),
        ("GPU-0a1b,1", "GPU-0a1b"),
        ("MIG-GPU-ab/1/0", "MIG-GPU-ab/1/0"),
        ("", None),
        ("-1,0", None),
        ("NoDevFiles", None),
    ],
)
def test_the_first_visible_gpu(monkeypatch, visible, first):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.first_visible() == first


def test_without_the_variable_it_is_the_first_of_the_machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.first_visible() == "0"


@pytest.mark.parametrize(("visible", "inside"), [("3,1", "3"), ("GPU-0a1b", "GPU-0a1b"), ("", "")])
def test_a_box_sees_that_gpu_alone_and_counts_as_the_driver_does(
    folder, monkeypatch, visible, inside
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = bwrap.environment(make_spec(folder, device="cuda"), 3)
    assert environment["CUDA_VISIBLE_DEVICES"] == inside
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_nodes_of_every_gpu_and_of_its_slices_are_found(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "sda"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    monkeypatch.setattr(gpu, "DEV", tmp_path)
    names = [node.name for node in gpu.nodes()]
    assert names == ["nvidia-caps", "nvidia-uvm", "nvidia0", "nvidiactl"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes up a machine: its device nodes, each with its mode, and the libcuda of the loader."""
    monkeypatch.setattr(gpu, "USUAL_FOLDERS", ())
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def machine(nodes: dict[str, int], cached: Path | None, dev: Path = tmp_path / "dev") -> Path:
        for name, mode in nodes.items():
            (dev / name).parent.mkdir(parents=True, exist_ok=True)
            (dev / name).touch()
            if not mode & 0o006:
                os.chown(dev / name, -1, RENDER)
            (dev / name).chmod(mode)
        monkeypatch.setattr(gpu, "DEV", dev)
        monkeypatch.setattr(gpu, "_cached_library", lambda: cached)
        return dev

    return machine


@pytest.fixture
def lib64(tmp_path):
    """A folder with libcuda, which here is the system's library of mathematics."""
    folder = tmp_path / "local" / "nvidia" / "lib64"
    folder.mkdir(parents=True)
    shutil.copyfile(next(Path("/usr/lib").rglob("libm.so.6")), folder / "libcuda.so.575.1")
    (folder / "libcuda.so.1").symlink_to("libcuda.so.575.1")
    return folder


@dataclasses.dataclass
class Made:
    """What a box for CUDA has beside what one for a CPU has."""

    nodes: list[str]
    folders: list[str]
    variables: dict[str, str]
    groups: list[str]


def by_bubblewrap(folder: Path) -> Made:
    spec = make_spec(folder, device="cuda")
    plain = dataclasses.replace(spec, device="cpu")
    argv, _ = bwrap.command(spec, 3, [])
    variables, places = bwrap.environment(plain, 3), dict(bwrap.mounts(plain)).values()
    return Made(
        nodes=[value for name, value in itertools.pairwise(argv) if name == "--dev-bind-try"],
        folders=[to for _, to in bwrap.mounts(spec) if to not in places],
        variables={
            name: value
            for name, value in bwrap.environment(spec, 3).items()
            if variables.get(name) != value and name not in CHOICE
        },
        groups=[word for word in argv if word.startswith(("--groups", "--clear-groups"))],
    )


def by_docker(folder: Path) -> Made:
    spec = make_spec(folder, device="cuda", isolation="docker")
    plain = dataclasses.replace(spec, device="cpu")
    options: list[list[tuple[str, str]]] = []
    with open_door(folder) as door:
        for each in (spec, plain):
            argv = container.command(each, "a-name", door, [])
            options.append(list(itertools.pairwise(argv[: argv.index("--entrypoint")])))
    more = [pair for pair in options[0] if pair not in options[1] and pair[0].startswith("--")]
    variables = dict(value.split("=", 1) for name, value in more if name == "--env")
    return Made(
        nodes=[value for name, value in more if name == "--device"],
        folders=[
            value.partition("target=")[2].removesuffix(",readonly")
            for name, value in more
            if name == "--mount"
        ],
        variables={name: value for name, value in variables.items() if name not in CHOICE},
        groups=[value for name, value in more if name == "--group-add"],
    )


@pytest.fixture(params=[by_bubblewrap, by_docker])
def made(request, folder):
    """What a box for CUDA has beside what one for a CPU has."""
    return lambda: request.param(folder)


def none(found: Made) -> bool:
    return found.groups in ([], ["--clear-groups"])  # an ordinary user, docker; root


def test_a_box_for_plain_cuda_on_a_made_up_machine(machine, made, monkeypatch, tmp_path):
    dev = machine(NVIDIA, SYSTEMS)
    (tmp_path / "conda" / "lib").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/conda/lib::relative:{SYSTEMS.parent}")
    found = made()
    assert found.nodes == sorted(str(dev / name) for name in NVIDIA)
    assert (found.folders, found.variables) == ([], ALLOCATOR)
    assert none(found)


def test_a_box_where_only_a_made_up_ld_library_path_has_libcuda(
    machine, made, lib64, monkeypatch, tmp_path
):
    dev = machine(NVIDIA, None)
    (tmp_path / "conda" / "lib").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/conda/lib:{lib64}")
    found = made()
    assert found.nodes == sorted(str(dev / name) for name in NVIDIA)
    assert found.folders == [str(lib64)]
    places = {"LD_LIBRARY_PATH": str(lib64), "TRITON_LIBCUDA_PATH": str(lib64)}
    assert found.variables == ALLOCATOR | places


def test_a_made_up_libcuda_in_ld_library_path_comes_before_the_loaders_own(
    machine, made, lib64, monkeypatch
):
    machine(NVIDIA, SYSTEMS)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(lib64))
    assert made().folders == [str(lib64)]


def test_a_made_up_libcuda_that_the_loader_knows_outside_usr_is_brought_in(machine, made, lib64):
    machine(NVIDIA, lib64 / "libcuda.so.1")
    found = made()
    assert (found.folders, found.variables) == ([str(lib64)], ALLOCATOR)


def test_a_libcuda_that_is_a_link_is_brought_in_with_what_it_links_to_made_up(
    machine, made, lib64, monkeypatch, tmp_path
):
    machine(NVIDIA, None)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "libcuda.so.1").symlink_to(lib64 / "libcuda.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/links")
    found = made()
    assert sorted(found.folders) == sorted([str(lib64), f"{tmp_path}/links"])
    assert found.variables["LD_LIBRARY_PATH"] == f"{tmp_path}/links"


def test_a_box_on_a_made_up_wsl2(machine, made, lib64, monkeypatch):
    dev = machine({"dxg": 0o666, "dri/renderD128": 0o660}, None)
    monkeypatch.setattr(gpu, "USUAL_FOLDERS", (Path("/nowhere"), lib64))
    found = made()
    assert found.nodes == [str(dev / "dxg")]
    assert found.folders == [str(lib64)]
    assert found.variables == {"LD_LIBRARY_PATH": str(lib64), "TRITON_LIBCUDA_PATH": str(lib64)}
    assert none(found)


def test_a_box_for_rocm_on_a_made_up_machine(machine, made):
    dev = machine(AMD, None)
    found = made()
    assert found.nodes == [str(dev / "dri/renderD128"), str(dev / "kfd")]
    assert (found.folders, found.variables) == ([], {})
    by_stage = [f"--groups={RENDER}"] if os.geteuid() == 0 else []
    assert found.groups in (by_stage, [str(RENDER)])


def test_no_box_gets_the_group_of_root_made_up(machine, monkeypatch):
    dev = machine({"kfd": 0o666}, None)
    (dev / "kfd").chmod(0o660)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result((0o660, *9 * (0,))))
    assert gpu.groups([dev / "kfd"]) == []


USES = f"""{SAY}
import ctypes
ctypes.CDLL("libcuda.so.1")
nodes = [sys.argv[1] + name for name in ("/kfd", "/dri/renderD128")]
say([open(node, "r+b").close() for node in nodes] + os.listdir(sys.argv[1] + "/dri"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a group's node where boxes look")
def test_a_real_box_opens_made_up_nodes_of_the_group_render_and_loads_libcuda(
    folder, machine, lib64, monkeypatch
):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(lib64))
    with tempfile.TemporaryDirectory(dir="/run") as dev:
        os.chmod(dev, 0o755)
        machine(AMD, None, Path(dev))
        with open_box(make_spec(folder, device="cuda"), ["-c", USES, dev]) as box:
            assert answer(box) == [None, None, "renderD128"]


def test_the_node_of_unified_memory_is_made_before_a_box_starts_by_a_made_up_driver(
    folder, machine, tmp_path, monkeypatch
):
    dev = machine({"nvidia0": 0o666, "nvidiactl": 0o666}, SYSTEMS)
    tool = tmp_path / "bin" / "nvidia-modprobe"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntouch {dev}/nvidia-uvm\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu, "NVIDIA_DRIVER", tmp_path / "version")
    (tmp_path / "asked").touch()
    spec = make_spec(folder, device="cuda", isolation="none")
    with open_box(spec, ["-c", "pass"]):
        assert (tmp_path / "asked").read_text() == ""  # no driver
    (tmp_path / "version").touch()
    with open_box(dataclasses.replace(spec, device="cpu"), ["-c", "pass"]):
        assert (tmp_path / "asked").read_text() == ""
    for _ in range(2):  # the second time it is there
        with open_box(spec, ["-c", "pass"]):
            assert (tmp_path / "asked").read_text() == "-u -c0\n"
