"""What is installed and what is distributed: all that is needed, and nothing with a name for anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = {"pymodel", "vfu_client", "vfu_demo", "vfu_images", "vfu_server"}
BIN = Path(sys.executable).parent


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """What builds, with the tools of this Python: its exit status, and all that it said."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of what `make ext` built, installed elsewhere."""
    root = tmp_path_factory.mktemp("installed")
    command = [str(BIN / "meson"), "install", "-C", str(PROJECT / "build" / "ext"), "--no-rebuild", "--quiet"]
    command += ["--skip-subprojects", "--destdir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = root.rglob("vfu_server")
    return package.parent


def test_what_is_installed(installed: Path) -> None:
    """Packages with names of their own; sources only of what runs in a guest; modules compiled once."""
    assert {path.name for path in installed.iterdir()} == PACKAGES
    sources = {
        path.relative_to(installed).parent.as_posix()
        for path in installed.rglob("*")
        if path.suffix in (".c", ".h", ".pxd", ".pyx", ".build")
    }
    assert sources == {"vfu_images/guest"}
    assert (installed / "vfu_images" / "guest" / "init.c").is_file()
    there = {path.relative_to(installed) for path in installed.rglob("*.so")}
    built = {path.relative_to(PROJECT) for name in PACKAGES for path in (PROJECT / name).rglob("*.so")}
    assert there >= built
    assert len(built) > 20 or os.environ.get("COMPILED", "yes") != "yes"


def test_it_runs_from_there(installed: Path, tmp_path: Path) -> None:
    """Its images are the user's, in the cache folder; nothing is written beside the packages."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = python("-c", "from vfu_images import workspace as w; print(w.IMAGES, w.GUEST_SOURCES, w.COMMAND)")
    assert told.split() == [
        str(tmp_path / "cache" / "vfu-virtio" / "images"),
        str(installed / "vfu_images" / "guest"),
        "vfu-images",
    ]
    # What one of them unpacks another one looks for.
    code = "from vfu_images.libnbd import ROOT; from vfu_server.disks.libnbd import UNPACKED"
    assert python("-c", f"{code}; print(ROOT / 'usr' / 'lib' in UNPACKED)") == "True\n"
    assert "libvfio-user" not in python("-m", "vfu_images", "--help")
    for module in (
        "vfu_server",
        "vfu_client.owner.cli",
        "vfu_client.move.cli",
        "vfu_images",
        "vfu_images.boot",
        "vfu_demo",
    ):
        assert python("-m", module, "--version").startswith("vfu-")


@pytest.mark.long
def test_a_source_distribution(tmp_path: Path) -> None:
    """It has the sources that the repository has not, their licenses, and nothing that was built."""
    if not (PROJECT / ".git").exists():
        pytest.skip("a source distribution is made of a git repository")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path)]
    status, told = _run(command, PROJECT)
    assert status == 0, told
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "LICENSE.json-c", "LICENSE.libvfio-user", "PKG-INFO"} <= names
    assert {
        "subprojects/libvfio-user/lib/libvfio-user.c",
        "subprojects/libvfio-user/include/pci_caps/pm.h",
        "subprojects/libvfio-user/meson.build",
        "subprojects/json-c/json_object.c",
        "subprojects/json-c/meson.build",
        "docs/migrate.md",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


@pytest.fixture
def untouched(tmp_path: Path) -> Path:
    """A copy of the project in which nothing was fetched or built."""
    copy = tmp_path / "clone"
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "libvfio-user", "json-c", "*.so", "__pycache__", "tests", "docs"
    )
    shutil.copytree(PROJECT, copy, ignore=left_out)
    shutil.copytree(
        PROJECT / "subprojects" / "packagefiles", copy / "subprojects" / "packagefiles", dirs_exist_ok=True
    )
    return copy


def _configure(clone: Path, *options: str) -> tuple[int, str]:
    return _run([str(BIN / "meson"), "setup", *options, "build"], clone)


def test_sources_that_may_not_be_fetched(untouched: Path) -> None:
    """Who builds packages forbids downloads, and is told what is missing."""
    status, told = _configure(untouched, "--wrap-mode=nodownload")
    assert status == 1
    assert "libvfio-user: run `python3 -m images libvfio-user`, which fetches it." in told
    assert not (untouched / "subprojects" / "libvfio-user").exists()


def test_sources_are_fetched(untouched: Path) -> None:
    """`python -m build` and `pip install` in a fresh clone configure it: what is missing comes before.

    A script stands for `images`, which tests/images tries: there is no network in a test.
    """
    (untouched / "images" / "__main__.py").write_text(
        "import sys\nprint('no such host', file=sys.stderr)\nsys.exit(1)\n"
    )
    status, told = _configure(untouched)
    assert status == 1
    assert "could not be fetched.\nno such host" in told

    (untouched / "images" / "__main__.py").write_text(
        "import shutil, sys\n"
        "assert sys.argv[1:] == ['libvfio-user']\n"
        "for name in ('libvfio-user', 'json-c'):\n"
        f"    shutil.copytree(f'{PROJECT}/subprojects/{{name}}', f'{untouched}/subprojects/{{name}}')\n"
    )
    status, told = _configure(untouched)
    assert status == 0, told
