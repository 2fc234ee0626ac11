"""Where libvfio-user's source may come from."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vfu_images import libvfio_user
from vfu_images.libvfio_user import HEADER
from vfu_images.workspace import SetupError


def make(archive: Path, *names: str) -> Path:
    """An archive of these files, each of which holds its own name."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return archive


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is put, with an older copy there."""
    folder = tmp_path / "subprojects" / "libvfio-user"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    monkeypatch.setattr(libvfio_user, "SOURCE", folder)
    return folder


@pytest.mark.parametrize("top", ["libvfio-user-1/", "qemu-11.1/subprojects/libvfio-user/", "./", ""])
def test_archives(source: Path, tmp_path: Path, top: str) -> None:
    """Its own, or one of QEMU: what lies beside it is left out."""
    archive = make(tmp_path / "a.tar.gz", "qemu-11.1/README", f"{top}{HEADER}", f"{top}lib/dma.c")
    libvfio_user._unpack(archive)
    assert (source / HEADER).read_text() == f"{top}{HEADER}"
    assert (source / "lib" / "dma.c").is_file()
    assert (source / ".origin").read_text() == "archive a.tar.gz\n"
    assert not (source / "old").exists()


def test_archives_without_it(source: Path, tmp_path: Path) -> None:
    """The reason is said, and what was there stays."""
    with pytest.raises(
        SetupError, match=r"no source of libvfio-user: there is no include/libvfio-user.h in it"
    ):
        libvfio_user._unpack(make(tmp_path / "a.tar.gz", "qemu-11.1/README"))
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(SetupError, match="text can't be unpacked"):
        libvfio_user._unpack(tmp_path / "text")
    with pytest.raises(SetupError, match="none can't be unpacked"):
        libvfio_user._unpack(tmp_path / "none")
    assert (source / "old").is_file()


def test_archives_that_reach_out(source: Path, tmp_path: Path) -> None:
    """No member is put anywhere else."""
    archive = make(tmp_path / "a.tar.gz", f"a/{HEADER}", "a/../../../escaped")
    with pytest.raises(SetupError, match="can't be unpacked"):
        libvfio_user._unpack(archive)
    assert (source / "old").is_file()
    assert not list(tmp_path.rglob("escaped"))
