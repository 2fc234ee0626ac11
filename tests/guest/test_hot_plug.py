"""A VF that comes and goes while the guest runs."""

from __future__ import annotations

from tests.guest.conftest import Plain
from tests.guest.guest_disk import disk_of, finish, start_io, verify, wait_written


def test_plug_and_unplug(plain: Plain) -> None:
    """A VF is plugged into a root port, used, and unplugged, three times; the server keeps nothing of it.

    Beside it the guest does I/O on its other VF, which must not notice.
    """
    guest, server = plain.guest, plain.server
    beside = start_io(guest, disk_of(guest, "vf1"), depth=2)
    open_files = server.open_files
    for _ in range(3):
        mark = server.mark()
        guest.plug(server.qemu_device("vf3"))
        disk = disk_of(guest, "vf3")
        verify(guest, disk)
        assert "a client attached" in server.wait_log(r"virtio\.vf3: a client attached", since=mark)
        guest.unplug("vf3")
        server.wait_log(r"virtio\.vf3: detached: the client left", since=mark)
        assert guest.run(f"test -e {disk}").status != 0
        assert server.open_files == open_files
    wait_written(beside, 400)
    finish(beside)
