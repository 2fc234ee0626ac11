"""`vfu-qemu`: the functions of a vfu-server become a QEMU's devices.

Exit status: 0 done, 1 not done, with the reason and what is left, 2 the command line makes no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import sys
from collections.abc import Sequence

from vfu_client.plug.arrangement import arrange
from vfu_client.plug.bars import place
from vfu_client.plug.forms import for_libvirt, for_people, for_programs, for_substitution
from vfu_client.plug.options import parse
from vfu_client.plug.plugging import Plugging
from vfu_client.plug.server import Server
from vfu_client.qemu.monitor import MonitorError
from vfu_client.qemu.qtest import QTestError
from vfu_client.qemu.running import RunningQemu, socket_in
from vfu_client.standard_streams import OUTPUT, heed_interrupts, prepare, put, tell

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    prepare()
    options = parse(arguments)
    try:
        heed_interrupts()
        asyncio.run(_run(options))
    except (MonitorError, QTestError) as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(f"standard output: {error.strerror}")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        _say("interrupted: run it again to go on")
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in SIGNALS:
        # What was begun is brought to an end: a guest that was stopped runs on.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with Server(options.folder) as server:
        if not options.command:
            await _print(server, options)
            return
        async with RunningQemu("QEMU", socket_in(options.qmp, "qmp")) as qemu:
            plugging = Plugging(server, qemu, _say)
            if options.command == "plug":
                await plugging.plug(
                    bus=options.bus, prefix=options.id_prefix, qtest=options.qtest, seconds=options.timeout
                )
            elif options.command == "place":
                await _place(server, qemu, options)
            else:
                await plugging.unplug(anyway=options.even_if_qemu_aborts)


async def _print(server: Server, options: argparse.Namespace) -> None:
    served = await server.served()
    arrangement = arrange(
        served,
        options.functions,
        prefix=options.id_prefix,
        bus=options.bus,
        slot=options.slot,
        memory=options.memory,
    )
    if options.json:
        text = for_programs(arrangement)
    elif options.libvirt:
        text = for_libvirt(arrangement)
    else:
        text = for_people(arrangement) if os.isatty(OUTPUT) else for_substitution(arrangement)
        if options.memory is None:
            _say(
                "the guest's memory must be shared with the server: give --memory SIZE, unless QEMU's other"
                " options say so"
            )
    taken = [name for name in served.functions if name in served.attached]
    if taken:
        _say(f"warning: a function has one client at a time, and {taken[0]} has one now")
    try:
        put(text)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise


async def _place(server: Server, qemu: RunningQemu, options: argparse.Namespace) -> None:
    count = await place(server, qemu, options.qtest, _say)
    sriov = (await server.served()).sriov
    if not count:
        _say("all VFs' BARs are where SR-IOV has them")
    elif sriov is not None and sriov.enabled_vfs:
        _say(f"{count} BARs are in place now: have the guest disable and enable its VFs, for their drivers")
    else:
        _say(f"{count} BARs are in place now")


def _say(line: str) -> None:
    tell("vfu-qemu", line)


if __name__ == "__main__":
    sys.exit(main())
