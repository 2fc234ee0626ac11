"""How a user logs in at a host by ssh: a real sshd, what a client is told, and keys made for them."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vfu_demo.stage import StageError
from vfu_images.openssh import KEYGEN, SSH, SSHD
from vfu_images.program import DIE_WITH_PARENT, kill
from vfu_images.workspace import IMAGES

USER, NUMBER = "demo", 1000
"""Who logs in. sshd runs as that user, as root is alone in its namespace: there is no other to change to."""

PORT = 2222
START_SECONDS = 20.0
LISTENS = "Server listening"

AS_USER = ("unshare", "--user", f"--map-user={NUMBER}", f"--map-group={NUMBER}")
# What is logged in ends with the first process of its namespace, and that one with this process.
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit', "login")

SERVER = """\
Port {port}
ListenAddress {address}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
SetEnv {environment}
"""
CLIENT = """\
Host {name}
    HostName {address}
    Port {port}
    HostKeyAlias {name}
    User {user}
    IdentityFile "{folder}/key"
    IdentitiesOnly yes
    UserKnownHostsFile "{folder}/known_hosts"
    StrictHostKeyChecking yes
    BatchMode yes
"""


class Login:
    """A host's sshd, with a key of its own, and the key that its user has at other hosts.

    Its files are in `folder`, which is made. `environment` is what commands get that are run by a login.
    """

    def __init__(self, name: str, folder: Path, address: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.address = address
        self._folder = folder
        folder.mkdir(mode=0o700)
        variables = " ".join(f'"{variable}={value}"' for variable, value in environment.items())
        server = SERVER.format(port=PORT, address=address, folder=folder, environment=variables)
        (folder / "sshd_config").write_text(server)

    def make_keys(self, inside: Sequence[str]) -> None:
        """Make both keys, in the namespaces that `inside` enters. Raises StageError."""
        for key in ("host_key", "key"):
            command = [str(IMAGES / KEYGEN), "-q", "-t", "ed25519", "-N", "", "-C", f"{key} of {self.name}"]
            command += ["-f", str(self._folder / key)]
            done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise StageError(f"ssh-keygen made no key: {done.stdout}{done.stderr}")

    def lets_in(self, other: Login) -> None:
        """The other host's user may log in here: each side gets the other's public key."""
        keys = self._folder / "authorized_keys"
        keys.write_text((other._folder / "key.pub").read_text())
        keys.chmod(0o600)  # sshd takes none that others can write
        (other._folder / "known_hosts").write_text(
            f"{self.name} {(self._folder / 'host_key.pub').read_text()}"
        )
        (other._folder / "config").write_text(
            CLIENT.format(name=self.name, address=self.address, port=PORT, user=USER, folder=other._folder)
        )

    def command(self, host: str) -> str:
        """What logs in from here at that host."""
        return shlex.join([SSH, "-F", str(self._folder / "config"), host])

    @contextlib.contextmanager
    def served(self, inside: Sequence[str]) -> Iterator[None]:
        """Have sshd run, in the namespaces that `inside` enters. Raises StageError."""
        log = self._folder / "sshd.log"
        sshd = [str(IMAGES / SSHD), "-D", "-e", "-f", str(self._folder / "sshd_config")]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*inside, *DIE_WITH_PARENT, *ALONE, *AS_USER, *sshd],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            while LISTENS not in log.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StageError(f"sshd of {self.name} does not run: {log.read_text(errors='replace')}")
                time.sleep(0.02)
            yield
        finally:
            kill(process)
