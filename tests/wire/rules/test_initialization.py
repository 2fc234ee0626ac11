"""Bringing a device up in another order than the standard's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from tests.wire.rules.author import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    SHOULDS,
    VERSION_1,
    Author,
    Mistake,
)
from tests.wire.rules.conftest import Checked
from tests.wire.running import until
from vfu_client.vfio.connection import VfioUserError


def no_reset(author: Author) -> None:
    author.status(ACKNOWLEDGE)


def again_without_a_reset(author: Author) -> None:
    author.run()
    author.status(ACKNOWLEDGE)


def driver_alone(author: Author) -> None:
    author.reset()
    author.status(DRIVER)


def features_without_driver(author: Author) -> None:
    author.reset()
    author.status(ACKNOWLEDGE)
    author.accept()
    author.status(ACKNOWLEDGE, FEATURES_OK)


def no_features_ok(author: Author) -> None:
    author.begin()
    author.accept()
    author.status(ACKNOWLEDGE, DRIVER, DRIVER_OK)
    assert author.read("device_status") == 3


def not_read_again(author: Author) -> None:
    author.begin()
    author.accept()
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)
    author.select()
    author.write("queue_size", 8)


def writes_configuration_early(author: Author) -> None:
    author.begin()
    author.device.config_write(32, 1, 0)


def features_afterwards(author: Author) -> None:
    author.agree([VERSION_1])
    author.write("driver_feature_select", 0)
    author.write("driver_feature", 1 << 28)


def queue_after_driver_ok(author: Author) -> None:
    author.run()
    author.queue(1)


def goes_on_though_refused(author: Author) -> None:
    author.begin()
    author.accept([VERSION_1, 60])
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)
    assert author.read("device_status") == 3
    author.select()
    author.write("queue_size", 8)


def notifies_early(author: Author) -> None:
    author.agree([VERSION_1])
    author.queue()
    author.notify(0, b"\0\0")


def queue_before_features(author: Author) -> None:
    author.begin()
    author.select()
    author.write("queue_size", 8)


def clears_a_bit(author: Author) -> None:
    author.agree()
    author.status(ACKNOWLEDGE, FEATURES_OK)


def goes_on_after_failed(author: Author) -> None:
    author.begin()
    author.status(ACKNOWLEDGE, DRIVER, FAILED)
    author.accept()
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK, FAILED)


def goes_on_after_needs_reset(author: Author) -> None:
    queue = author.split()
    queue.desc[0] = (0xDEAD0000, 16, 0, 0)
    queue.publish(0)
    queue.kick(force=True)
    author.settle()
    assert author.read("device_status") & NEEDS_RESET
    queue.kick(force=True)


def suspends(author: Author) -> None:
    author.run()
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, 16)


def sets_bits_of_the_device(author: Author) -> None:
    author.begin()
    author.status(ACKNOWLEDGE, DRIVER, NEEDS_RESET, 32)


def does_not_wait_for_the_reset(author: Author) -> None:
    author.status(0)
    author.status(ACKNOWLEDGE)


def takes_what_is_not_offered(author: Author) -> None:
    author.begin()
    author.accept([VERSION_1, 4])
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)


def takes_a_word_that_is_not_there(author: Author) -> None:
    author.begin()
    author.accept()
    author.write("driver_feature_select", 3)
    author.write("driver_feature", 0x10)


def no_version_1(author: Author) -> None:
    author.begin()
    author.accept([28])
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)


def does_not_look_at_features(author: Author) -> None:
    author.begin()
    author.device.common.accept(1 << VERSION_1)
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)


def segments_without_checksums(author: Author) -> None:
    author.begin()
    author.accept([VERSION_1, 5, 11])
    author.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)


MISTAKES = [
    Mistake("INIT-01", no_reset, r"ACKNOWLEDGE \(0x01\) written to device_status, which was 0"),
    Mistake("INIT-01", again_without_a_reset, "another initialization without a reset"),
    Mistake("INIT-02", driver_alone, r"DRIVER \(0x02\) written to device_status, which was 0"),
    Mistake(
        "INIT-03", features_without_driver, r"ACKNOWLEDGE\|FEATURES_OK \(0x09\) .*, which was ACKNOWLEDGE"
    ),
    Mistake("INIT-04", no_features_ok, r"DRIVER_OK.* \(0x07\) written"),
    Mistake("INIT-05", not_read_again, "0x8 written to queue_size of queue 0"),
    Mistake("INIT-06", writes_configuration_early, "0x0 written to writeback", frozenset({"CONF-04"})),
    Mistake(
        "INIT-07",
        features_afterwards,
        r"features 0x10000000, INDIRECT_DESC \(bit 28\)",
        where={"register": "driver_feature"},
    ),
    Mistake("INIT-08", queue_after_driver_ok, "queue_enable of queue 1 after DRIVER_OK", where={"queue": 1}),
    Mistake("INIT-09", goes_on_though_refused, "0x8 written to queue_size", frozenset({"FEAT-01"})),
    Mistake("INIT-10", notifies_early, "a notification at status ACKNOWLEDGE", where={"queue": 0}),
    Mistake(
        "INIT-11",
        queue_before_features,
        r"0x8 written to queue_size of queue 0 at status ACKNOWLEDGE\|DRIVER",
    ),
    Mistake("STAT-01", clears_a_bit, "without DRIVER$"),
    Mistake("STAT-02", goes_on_after_failed, "which was ACKNOWLEDGE.*FAILED"),
    Mistake(
        "STAT-03",
        goes_on_after_needs_reset,
        r"a notification at status .*DEVICE_NEEDS_RESET",
        frozenset({"RING-02"}),
    ),
    Mistake("STAT-04", suspends, "written to device_status"),
    Mistake("STAT-05", sets_bits_of_the_device, "bits 0x60"),
    Mistake("RESET-01", does_not_wait_for_the_reset, "not read since 0 was written"),
    Mistake("FEAT-01", takes_what_is_not_offered, "features 0x10, bit 4"),
    Mistake("FEAT-01", takes_a_word_that_is_not_there, "bits 0x10 of driver_feature word 3"),
    Mistake("FEAT-03", no_version_1, "features 0x10000000"),
    Mistake("FEAT-08", does_not_look_at_features, "0x100000000 accepted"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


@pytest.mark.parametrize(
    "mistake",
    [Mistake("FEAT-02", segments_without_checksums, "bit 11 needs bit 0")],
    ids=lambda mistake: mistake.id,
)
def test_mistake_at_a_network_card(
    net_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    told(net_author, mistake)


def version_1_alone(author: Author) -> None:
    author.agree([VERSION_1])


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake(rule, version_1_alone, f"features 0x100000000, without {name}", SHOULDS - {rule})
        for rule, name in {
            "FEAT-04": "ACCESS_PLATFORM",
            "FEAT-05": "RING_PACKED",
            "FEAT-06": "NOTIF_CONFIG_DATA",
        }.items()
    ],
    ids=lambda mistake: mistake.id,
)
def test_features_that_a_driver_should_take(
    author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    author.shoulds = frozenset()
    told(author, mistake)


def test_fatal(serve: Callable[..., ServerProcess]) -> None:
    """The function of a driver that breaks a MUST is gone, and is said to be; a SHOULD ends nothing."""
    checked = Checked(serve("--vfs", "2", "--disk", "ram:64k", "--check-driver=fatal"))
    server = checked.server
    with checked.author() as author:
        version_1_alone(author)
        assert author.read("device_status") == 11
    with checked.author() as author:
        with contextlib.suppress(VfioUserError):
            no_reset(author)
        with pytest.raises(VfioUserError):
            author.read("device_status")
    until(lambda: not server.socket("vf2").exists(), "its socket is gone")
    assert [one["served"] for one in server.ask("query-functions")] == [True, True, False]
    assert "vf2: is no longer served: its driver broke INIT-01" in server.log
    checked.close()
