"""The driver's side of the admin queue: what it makes of answers that ours does not give, and others may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.server_process import ServerProcess
from vfu_client.owner.admin import AdminError, AdminQueue, PendingCommand
from vfu_client.owner.owner import OwnerDriver

LIST_QUERY = 0


@pytest.fixture
def admin(shared: ServerProcess) -> Iterator[AdminQueue]:
    with OwnerDriver.open(shared.socket("pf"), timeout=20) as owner:
        yield owner.admin


def answering(admin: AdminQueue, *answers: tuple[int, int]) -> list[PendingCommand]:
    """Have the next commands answered with these statuses and qualifiers; the commands that were sent."""
    sent: list[PendingCommand] = []
    submit = admin.submit

    def tampered(opcode: int, **parts: Any) -> PendingCommand:
        command = submit(opcode, **parts)
        while not admin.done(command):
            pass
        if len(sent) < len(answers):
            answer = np.array(answers[len(sent)], "<u2").view(np.uint8)
            command.frame.view[command.answer_at : command.answer_at + 4] = answer
        sent.append(command)
        return command

    admin.submit = tampered  # type: ignore[method-assign]
    return sent


@pytest.mark.spec("P-DRV-05")
@pytest.mark.parametrize(
    ("status", "name"), [(1, "EINVAL"), (99, "EINVAL"), (0xFFFF, "EINVAL"), (17, "EEXIST")]
)
@pytest.mark.parametrize(
    ("qualifier", "meaning"), [(8, "INVALID_COMMAND"), (0xFFFF, "INVALID_COMMAND"), (3, "INVALID_FIELD")]
)
def test_statuses_that_nobody_knows(
    admin: AdminQueue, status: int, name: str, qualifier: int, meaning: str
) -> None:
    """They count as EINVAL, and unknown qualifiers as INVALID_COMMAND; the numbers are told too."""
    answering(admin, (status, qualifier))
    with pytest.raises(AdminError) as caught:
        admin.list_query(1)
    assert (caught.value.status_name, caught.value.qualifier_name) == (name, meaning)
    assert (caught.value.status, caught.value.qualifier) == (status, qualifier)


@pytest.mark.spec("P-DRV-09")
def test_what_lies_beyond_the_used_length(admin: AdminQueue) -> None:
    """It counts as zero, whatever is in the buffer."""
    command = admin.submit(LIST_QUERY, group=1, result=64)
    while not admin.done(command):
        pass
    whole = command.frame.view[command.answer_at :].copy()
    command.frame.view[command.answer_at + 12 :] = 0xFF
    admin._lengths[command.head] = 12
    reply = admin.wait(command)
    assert reply.used_length == 12
    assert reply.array(np.dtype("<u8"), 4).tobytes() == whole[8:12].tobytes() + bytes(28)


@pytest.mark.spec("P-DRV-11")
def test_eagain_is_tried_again(admin: AdminQueue) -> None:
    """A few times; then it is an error like others. Another error is not tried again."""
    sent = answering(admin, (11, 7), (11, 7))
    assert 0x40 in admin.list_query(1)
    assert len(sent) == 3
    sent = answering(admin, *[(11, 7)] * 50)
    with pytest.raises(AdminError, match="EAGAIN, TRYAGAIN"):
        admin.list_query(1)
    assert 1 < len(sent) < 50
    sent = answering(admin, (12, 6))
    with pytest.raises(AdminError, match="ENOMEM"):
        admin.list_query(1)
    assert len(sent) == 1
