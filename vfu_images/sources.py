"""Finds the machine's own Debian mirror and release; the project itself names no host."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vfu_images.workspace import SetupError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "DEBIAN_MIRROR"
"""Environment variable that overrules the machine's apt sources."""

FALLBACK_RELEASE = "trixie"
"""Release whose packages are used on a machine that is no Debian."""


@dataclass(frozen=True)
class Mirror:
    """A Debian archive: its address and the keyring that signs it."""

    uri: str
    keyring: Path


def own_release(os_release: Path = Path("/etc/os-release")) -> str:
    """Codename of the Debian release that this machine runs, or FALLBACK_RELEASE on any other system."""
    try:
        text = os_release.read_text()
    except OSError:
        return FALLBACK_RELEASE
    facts: dict[str, str] = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if facts.get("ID") != "debian":
        return FALLBACK_RELEASE
    return facts.get("VERSION_CODENAME", FALLBACK_RELEASE)


def own_mirror(apt: Path = Path("/etc/apt")) -> Mirror:
    """The mirror of DEBIAN_MIRROR, else of the machine's first apt source whose path ends in /debian.

    Raises SetupError when there is none.
    """
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return Mirror(chosen.rstrip("/"), KEYRING)
    parts = apt / "sources.list.d"
    for path in [apt / "sources.list", *sorted(parts.glob("*.list"))]:
        for uri, keyring in _one_line_entries(_text(path)):
            if _is_debian(uri):
                return Mirror(_resolved(uri), keyring)
    for path in sorted(parts.glob("*.sources")):
        for uri, keyring in _deb822_entries(_text(path)):
            if _is_debian(uri):
                return Mirror(_resolved(uri), keyring)
    raise SetupError(
        f"no apt source of this machine is a Debian mirror (a URI whose path ends in /debian, in {apt}). "
        f"Set {MIRROR_VARIABLE} to the address of one and run the command again."
    )


def _one_line_entries(text: str) -> list[tuple[str, Path]]:
    """(URI, keyring) of each `deb [options] URI suite component...` line."""
    entries = []
    for options, uri in re.findall(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)", text, re.MULTILINE):
        signed_by = re.search(r"signed-by=(\S+)", options)
        entries.append((uri, _keyring(signed_by.group(1) if signed_by else "")))
    return entries


def _deb822_entries(text: str) -> list[tuple[str, Path]]:
    """(URI, keyring) of each URI of each enabled stanza."""
    entries = []
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", uncommented):
        fields = {
            name.lower(): re.sub(r"\s+", " ", value).strip()
            for name, value in re.findall(r"^([\w-]+):((?:[^\n]*)(?:\n[ \t][^\n]*)*)", stanza, re.MULTILINE)
        }
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        keyring = _keyring(fields.get("signed-by", ""))
        entries += [(uri, keyring) for uri in fields.get("uris", "").split()]
    return entries


def _keyring(signed_by: str) -> Path:
    """The entry's own keyring if it is a file (it may also be a key or a fingerprint), else Debian's."""
    first = signed_by.partition(",")[0]
    return Path(first) if first.startswith("/") and Path(first).is_file() else KEYRING


def _is_debian(uri: str) -> bool:
    path = urlsplit(_resolved(uri)).path
    return path.rstrip("/").endswith("/debian")


def _resolved(uri: str) -> str:
    """The first mirror of a mirror list in a file (`mirror+file:`, as cloud images have it); else the URI
    itself.
    """
    if uri.startswith("mirror+file:"):
        listed = re.findall(r"^\s*(\w+:\S+)", _text(Path(urlsplit(uri).path)), re.MULTILINE)
        return str(listed[0]).rstrip("/") if listed else uri
    return uri.rstrip("/")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
