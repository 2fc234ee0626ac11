"""A private apt: downloads and unpacks Debian packages, as any user, and leaves the system alone.

Signatures are checked as the system's apt does. The machine's own apt configuration is read (a proxy may be
set there), but its hooks are dropped and every path of state, cache and sources is overridden.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfu_images.sources import Mirror, own_mirror
from vfu_images.workspace import CACHE, SetupError, replacing, say

CONTENTS = ".contents"
"""File in an unpacked root: the suite and the packages that were asked for."""

HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
    "DPkg::Pre-Install-Pkgs",
)
"""Commands of the machine's own apt configuration that touch the system's state."""


@dataclass(frozen=True)
class Archive:
    """One file that apt would download: its name and its size in bytes."""

    name: str
    size: int


class Debian:
    """One suite of the Debian archive with an apt state of its own below `cache/SUITE`.

    A backports suite includes the release that it belongs to. Nothing is fetched before the first download.
    """

    def __init__(self, suite: str, cache: Path = CACHE / "apt") -> None:
        self.suite = suite
        self.folder = cache / suite
        self._indexed = False

    def unpack(self, packages: Sequence[str], root: Path, *, dependencies: bool = True) -> None:
        """Put packages, by default with all they depend on, into `root`, which appears whole or not at all.

        A root that was made by the same request is left alone. Raises SetupError when a package is not to be
        had or the disk is full; `root` is then as it was before.
        """
        request = f"{self.suite} {' '.join(packages)}\n"
        if (root / CONTENTS).is_file() and (root / CONTENTS).read_text() == request:
            return
        self._index()
        verb = ["install", "--yes", "--no-install-recommends"] if dependencies else ["download"]
        archives = self._listed([*verb, *packages])
        megabytes = sum(archive.size for archive in archives) / 1e6
        say(f"downloading {len(archives)} packages ({megabytes:.0f} MB) of {self.suite}...")
        debs = self.folder / "archives"
        if dependencies:
            self._apt([*verb, "--download-only", *packages])
        else:
            self._apt([*verb, *packages], inside=debs)
        say(f"unpacking {len(archives)} packages into {root.name}...")
        with replacing(root) as fresh:
            # Debian's files live below usr/ and the top folders are links to it, which no package carries.
            for name in ("bin", "sbin", "lib", "lib64"):
                (fresh / "usr" / name).mkdir(parents=True)
                (fresh / name).symlink_to(f"usr/{name}")
            for archive in archives:
                command = ["dpkg", "-x", str(debs / archive.name), str(fresh)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SetupError(
                        f"{archive.name} could not be unpacked: {done.stderr.strip()}. Is the disk full?"
                    )
            (fresh / CONTENTS).write_text(request)
        for archive in archives:
            (debs / archive.name).unlink()

    def unpack_source(self, package: str, part: str, folder: Path) -> str:
        """Put the folder `part` of a source package's upstream tree, or all of it, into `folder`.

        Returns the upstream archive's name. Raises SetupError when the source package is not to be had or
        has no such part; `folder` is then as it was.
        """
        self._index()
        request = ["source", "--download-only", "--tar-only", package]
        archives = self._listed(request)
        megabytes = sum(archive.size for archive in archives) / 1e6
        say(f"downloading the source of {package} ({megabytes:.0f} MB) of {self.suite}...")
        downloads = self.folder / "sources"
        downloads.mkdir(exist_ok=True)
        self._apt(request, inside=downloads)
        for archive in archives:
            with replacing(folder) as fresh:
                if extract_part(downloads / archive.name, part, fresh):
                    (downloads / archive.name).unlink()
                    return archive.name
                raise SetupError(f"{archive.name} of {self.suite} has no {part}")
        raise SetupError(f"{self.suite} has no source package {package}")

    def _index(self) -> None:
        """Write the private configuration and fetch the package lists, once per object."""
        if self._indexed:
            return
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise SetupError(
                    f"{tool} is not installed; without it, install QEMU >= 10.1 and json-c yourself"
                )
        mirror = own_mirror()
        if not mirror.keyring.is_file():
            raise SetupError(f"{mirror.keyring} is missing; install the package debian-archive-keyring")
        for name in ("state/lists/partial", "archives/partial", "none", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_bytes(b"")
        (self.folder / "sources.list").write_text(self._sources(mirror))
        (self.folder / "apt.conf").write_text(self._configuration())
        say(f"fetching the package lists of {self.suite}...")
        self._apt(["update", "--error-on=any"])
        self._indexed = True

    def _sources(self, mirror: Mirror) -> str:
        release = self.suite.removesuffix("-backports")
        lines = []
        for suite in dict.fromkeys((release, self.suite)):
            # A backports index is often past its Valid-Until date on a mirror; its signature is checked.
            options = f"arch=amd64 signed-by={mirror.keyring}"
            options += " check-valid-until=no" if suite.endswith("-backports") else ""
            lines.append(f"deb [{options}] {mirror.uri} {suite} main\n")
            lines.append(f"deb-src [{options}] {mirror.uri} {suite} main\n")
        return "".join(lines)

    def _configuration(self) -> str:
        settings = {
            "APT::Architecture": "amd64",
            "APT::Default-Release": self.suite,
            "APT::Sandbox::User": "",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::State::extended_states": self.folder / "state/extended_states",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": self.folder / "archives",
            "Dir::Log": self.folder / "log",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": self.folder / "none",
            "Dir::Etc::preferences": self.folder / "none/preferences",
            "Dir::Etc::preferencesparts": self.folder / "none",
        }
        cleared = "".join(f"#clear {name};\n" for name in (*HOOKS, "APT::Architectures"))
        return cleared + "".join(f'{name} "{value}";\n' for name, value in settings.items())

    def _listed(self, request: Sequence[str]) -> list[Archive]:
        """What a request would download, whether or not some of it is here already."""
        printed = self._apt([*request, "--print-uris", "-o", f"Dir::Cache::archives={self.folder / 'none'}"])
        found = re.findall(r"^'[^']*' (\S+) (\d+) ", printed, re.MULTILINE)
        return [Archive(name, int(size)) for name, size in found]

    def _apt(self, arguments: Sequence[str], inside: Path | None = None) -> str:
        """Run apt-get and return its output. Raises SetupError with what apt said and what to do next."""
        command = ["apt-get", "-q", "-c", str(self.folder / "apt.conf"), *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            command, cwd=inside, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout
        said = [
            line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("E:", "W:", "Err"))
        ]
        raise SetupError(
            f"apt could not {arguments[0]} from the suite {self.suite}:\n  "
            + "\n  ".join(said or [f"exit status {done.returncode}"])
            + "\nCheck that this machine's Debian mirror (see its apt sources) is up and has that suite, "
            "or set DEBIAN_MIRROR to the address of one that has, and run the command again."
        )


def extract_part(archive: Path, part: str, folder: Path) -> bool:
    """Extract what lies below TOP/`part` of a source archive into `folder`; false when there is nothing.

    All of TOP where `part` is empty.
    """
    with tarfile.open(archive, "r|*") as tar:
        return extract(tar, re.compile(f"[^/]+/{re.escape(part)}/" if part else "[^/]+/"), folder)


def extract(tar: tarfile.TarFile, prefix: re.Pattern[str], folder: Path) -> bool:
    """Extract what has a name that begins with `prefix`, without that; false when there is nothing."""
    found = False
    tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
    for member in tar:
        begin = prefix.match(member.name)
        if begin is not None and begin.end() < len(member.name):
            member.name = member.name[begin.end() :]
            tar.extract(member, folder)
            found = True
    return found
