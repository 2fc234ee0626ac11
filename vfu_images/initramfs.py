"""Builds what a guest boots: a kernel, and an initramfs of busybox, tools, modules and our programs."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfu_images import private
from vfu_images.cpio import Archive
from vfu_images.debian import CONTENTS, Debian
from vfu_images.workspace import CACHE, GUEST_SOURCES, IMAGES, SetupError, renew, say, write_file

ROOT = CACHE / "guest"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    KERNEL,
    "busybox-static",
    "pciutils",
    "e2fsprogs",
    "iproute2",
    "ethtool",
    "kmod",
    "zstd",
)
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
"""Drivers that the guest loads, with what they depend on; what is built into the kernel is passed over."""

MODULES_ON_DEMAND = ("ext4", "8021q", "vfio_pci", "vfio_iommu_type1")
"""What the kernel, or a person, asks modprobe for on first use; costs a boot nothing but the room."""

HOST_PROGRAMS = ("netverify", "netbench")
"""Our own that a host runs too, at the other end of a network."""

PROGRAMS = ("init", "ioverify", "blkbench", "fsverify", "vfiomove", "kexec", *HOST_PROGRAMS)
"""Our own, each one C file in images/guest; the headers there hold what several of them share."""

MADE = ("vmlinuz", "vmlinux", "initramfs.cpio.gz", *HOST_PROGRAMS)

DYNAMIC = (
    "usr/bin/lspci",
    "usr/bin/setpci",
    "usr/sbin/mke2fs",
    "usr/sbin/e2fsck",
    "usr/sbin/tune2fs",
    "usr/sbin/debugfs",
    "usr/sbin/ethtool",
    "usr/bin/ip",
)
"""Programs of the packages. The guest's shell has an `ip` of its own; Debian's is called as `/bin/ip`."""

ALIASES = {"usr/sbin/mkfs.ext4": "mke2fs", "usr/sbin/fsck.ext4": "e2fsck"}
NAMED_VENDORS = ("1af4", "1b36", "1234", "8086")
"""PCI vendors whose names the guest's lspci knows; the whole list takes it a while to read."""

SIGNED = b"~Module signature appended~\n"

COMPILE = ("-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Kernel:
    """A kernel in an unpacked root: its image, and the folder of its modules, which is named for it."""

    image: Path
    modules: Path

    @classmethod
    def of(cls, root: Path) -> Kernel:
        """The newest kernel of a root. Raises SetupError where there is none."""
        folders = sorted((root / "lib/modules").glob("*/modules.order"))
        if not folders:
            raise SetupError(f"{root} has no kernel; remove that folder and run the command again")
        modules = folders[-1].parent
        # Debian 13 moved it.
        places = (modules / "vmlinuz", root / "boot" / f"vmlinuz-{modules.name}")
        return cls(next(place for place in places if place.is_file()), modules)


def prepare(debian: Debian) -> None:
    """Leave MADE in build/images: kernel, initramfs, programs; made anew only if an input changed.

    vmlinux is the same kernel unpacked: an emulated processor boots it a second faster. The initramfs is only
    wrapped as gzip, not compressed, for the same reason.

    Raises SetupError when a package, the C compiler or a file in a package is missing.
    """
    debian.unpack(PACKAGES, ROOT)
    kernel = Kernel.of(ROOT)
    renew(IMAGES / ".guest.inputs", _inputs(kernel), [IMAGES / name for name in MADE], lambda: _make(kernel))
    say(f"guest: {', '.join(MADE)} in {IMAGES}")


def _make(kernel: Kernel) -> None:
    say("building the initramfs...")
    image = kernel.image.read_bytes()
    write_file(IMAGES / "vmlinuz", image)
    write_file(IMAGES / "vmlinux", unpacked(image))
    archive = Archive()
    _add_busybox(archive)
    _add_programs(archive)
    add_modules(archive, kernel)
    _add_packaged(archive)
    _add_pci_names(archive)
    for folder in ("dev", "proc", "sys", "run", "tmp", "root"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    write_file(IMAGES / "initramfs.cpio.gz", wrapped(archive))


def wrapped(archive: Archive) -> bytes:
    """An archive as a kernel takes it; several that follow each other are one, the later files win."""
    return gzip.compress(archive.encode(), compresslevel=0, mtime=0)


def _inputs(kernel: Kernel) -> str:
    """A hash over everything that the images are made of."""
    digest = hashlib.sha256((ROOT / CONTENTS).read_bytes())
    digest.update(kernel.modules.name.encode())
    for path in sorted([*GUEST_SOURCES.glob("*.[ch]"), Path(__file__), Path(__file__).with_name("cpio.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() + "\n"


def unpacked(kernel: bytes) -> bytes:
    """The ELF file inside a bzImage; the bzImage itself when it is compressed with something other than zstd.

    Linux x86 boot protocol, "The Real-Mode Kernel Header": setup_sects, payload_offset, payload_length. The
    payload ends with its unpacked size.
    """
    sectors = kernel[0x1F1] or 4
    start, length = struct.unpack_from("<II", kernel, 0x248)
    start += (sectors + 1) * 512
    payload, size = kernel[start : start + length - 4], kernel[start + length - 4 : start + length]
    if not payload.startswith(b"\x28\xb5\x2f\xfd"):
        return kernel
    content = private.run(ROOT, "usr/bin/zstd", "-dcq", given=payload)
    if len(content) != int.from_bytes(size, "little"):
        raise SetupError(f"the kernel is damaged; remove its folder in {CACHE} and run the command again")
    return content


def _add_busybox(archive: Archive) -> None:
    busybox = ROOT / "usr/bin/busybox"
    archive.file("usr/bin/busybox", busybox.read_bytes(), 0o755)
    for name in ("bin", "sbin"):
        archive.folder(f"usr/{name}")
        archive.link(name, f"usr/{name}")
    listed = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True)
    for path in listed.stdout.split():
        if path.rpartition("/")[2] not in ("busybox", "lspci", "init", "ip"):
            archive.link(f"usr/bin/{path.rpartition('/')[2]}", "busybox")
    # Where the kernel looks for it.
    archive.link("usr/sbin/modprobe", "../bin/busybox")


def _add_programs(archive: Archive) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SetupError("there is no C compiler; install the packages gcc and libc6-dev")
    with tempfile.TemporaryDirectory() as folder:
        for name in PROGRAMS:
            output = Path(folder) / name
            command = [compiler, *COMPILE, "-s", "-o", str(output), str(GUEST_SOURCES / f"{name}.c")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SetupError(f"{name}.c could not be compiled (is libc6-dev installed?):\n{done.stderr}")
            archive.file("init" if name == "init" else f"usr/bin/{name}", output.read_bytes(), 0o755)
            if name in HOST_PROGRAMS:
                write_file(IMAGES / name, output.read_bytes(), 0o755)


def add_modules(archive: Archive, kernel: Kernel, more: Sequence[Path] = ()) -> None:
    """Add the modules of MODULES and MODULES_ON_DEMAND, their index, and the order in which to load them.

    `more` are modules that did not come with the kernel; they are there on demand.
    """
    folder = kernel.modules
    available = {_module_name(path): path for path in sorted((folder / "kernel").rglob("*.ko*"))}
    available |= {_module_name(path): path for path in more}
    builtin = {_module_name(Path(line)) for line in (folder / "modules.builtin").read_text().split()}
    order = _in_order(MODULES, available, builtin)
    on_demand = _in_order([*MODULES_ON_DEMAND, *map(_module_name, more)], available, builtin)
    place = f"usr/lib/modules/{folder.name}"
    with tempfile.TemporaryDirectory() as temporary:
        # An index of just these modules, which modprobe and `lspci -k` ask for.
        tree = Path(temporary) / place
        (Path(temporary) / "lib").symlink_to("usr/lib")
        for name in {*order, *on_demand}:
            write_file(tree / f"{name}.ko", _module_content(available[name]))
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            write_file(tree / name, (folder / name).read_bytes())
        private.run(ROOT, "usr/sbin/depmod", "-b", temporary, folder.name)
        for path in sorted(tree.iterdir()):
            archive.file(f"{place}/{path.name}", path.read_bytes())
    archive.file("modules/order", "".join(f"/{place}/{name}.ko\n" for name in order).encode())


def _in_order(wanted: Sequence[str], available: dict[str, Path], builtin: set[str]) -> list[str]:
    """The modules and what they need, each once and after what it needs itself."""
    return list(
        dict.fromkeys(name for each in wanted for name in _with_dependencies(each, available, builtin))
    )


def _with_dependencies(name: str, available: dict[str, Path], builtin: set[str]) -> Iterator[str]:
    """The module and what it needs, each after what it needs itself."""
    if name in builtin:
        return
    if name not in available:
        raise SetupError(
            f"the kernel has no module {name}; remove its folder in {CACHE} and run the command again"
        )
    listed = re.search(rb"\0depends=([^\0]*)\0", _module_content(available[name]))
    for dependency in listed[1].decode().split(",") if listed and listed[1] else []:
        yield from _with_dependencies(dependency.replace("-", "_"), available, builtin)
    yield name


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    """The module unpacked and without its signature, whose check takes an emulated processor 0.1 s each.

    Linux, "Kernel module signing facility": the content, the signature, 12 bytes of which the last 4 are the
    signature's size, a marker.
    """
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    if not content.endswith(SIGNED):
        return content
    (size,) = struct.unpack_from(">I", content, len(content) - len(SIGNED) - 4)
    return content[: -(len(SIGNED) + 12 + size)]


def _add_packaged(archive: Archive) -> None:
    """The programs of DYNAMIC, their other names, and what they need."""
    for program in DYNAMIC:
        add_dynamic(archive, ROOT, program)
    for path, program in ALIASES.items():
        archive.link(path, program)
    archive.link("lib64", "usr/lib64")
    archive.link("lib", "usr/lib")
    archive.file("etc/mke2fs.conf", (ROOT / "etc/mke2fs.conf").read_bytes())
    # e2fsck asks it what is mounted.
    archive.link("etc/mtab", "/proc/mounts")


def add_dynamic(archive: Archive, root: Path, program: str) -> None:
    """Add a program, or a library, of an unpacked root, the loader, and the libraries that it finds."""
    archive.file(program, (root / program).read_bytes(), 0o755)
    listed = private.run(root, program, loader=["--list"]).decode()
    found = re.findall(r"^\s*(\S+) => (?!/lib64)", listed, re.MULTILINE)
    for path in (private.LOADER, *(f"{private.LIBRARIES}/{name}" for name in found)):
        if (root / path).is_file():
            archive.file(path, (root / path).read_bytes(), 0o755)


def _add_pci_names(archive: Archive) -> None:
    """The names of a few vendors and their devices, for lspci."""
    names = (ROOT / "usr/share/misc/pci.ids").read_text(errors="replace")
    kept, keep = [], False
    for line in names.splitlines(keepends=True):
        if line[0] not in "\t#\n":
            keep = line.startswith(("C ", *NAMED_VENDORS))
        if keep and not line.startswith("#"):
            kept.append(line)
    archive.file("usr/share/misc/pci.ids", "".join(kept).encode())
