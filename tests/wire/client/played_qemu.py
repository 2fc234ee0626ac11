"""A QEMU that a test plays: one empty root port, and devices that come and go as QMP says."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any, Self

PERIPHERAL = "/machine/peripheral"
PORT = "spare"


class PlayedQemu:
    """Its monitor is at `path`, for one client after the other. It refuses to plug what is in `refused`.

    `told` is what it was told of devices, in order.
    """

    def __init__(
        self, path: Path, version: tuple[int, int, int], refused: frozenset[str] = frozenset()
    ) -> None:
        self.path = path
        self.told: list[tuple[str, str]] = []
        self._version = version
        self._refused = refused
        self._devices: dict[str, dict[str, Any]] = {PORT: {"driver": "pcie-root-port"}}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="played-qemu")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def put(self, device: dict[str, Any]) -> None:
        """Have a device there."""
        self._devices[device["id"]] = device

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                self._say(client, {"QMP": {"version": {}, "capabilities": []}})
                decoder = json.JSONDecoder()
                unread = ""
                while data := lines.read1(1 << 16):
                    unread += data.decode()
                    while unread.strip():
                        try:
                            message, end = decoder.raw_decode(unread)
                        except ValueError:
                            break
                        unread = unread[end:].lstrip()
                        self._answer(client, message)

    def _answer(self, client: socket.socket, message: dict[str, Any]) -> None:
        arguments = message.get("arguments", {})
        reply: dict[str, Any]
        try:
            method = getattr(self, "_" + message["execute"].replace("-", "_"))
            reply = {"return": method(**{key.replace("-", "_"): value for key, value in arguments.items()})}
        except PermissionError as error:
            reply = {"error": {"class": "GenericError", "desc": str(error)}}
        self._say(client, reply | {"id": message["id"]} if "id" in message else reply)

    def _say(self, client: socket.socket, message: dict[str, Any]) -> None:
        client.sendall(json.dumps(message).encode() + b"\r\n")

    # -- commands

    def _qmp_capabilities(self, **_: Any) -> dict[str, Any]:
        return {}

    def _query_version(self) -> dict[str, Any]:
        return {"qemu": dict(zip(("major", "minor", "micro"), self._version, strict=True)), "package": ""}

    def _query_status(self) -> dict[str, Any]:
        return {"status": "running"}

    def _query_pci(self) -> list[Any]:
        return []

    def _qom_list(self, path: str) -> list[dict[str, str]]:
        if path == PERIPHERAL:
            return [
                {"name": name, "type": f"child<{made['driver']}>"} for name, made in self._devices.items()
            ]
        device = self._devices.get(path.removeprefix(f"{PERIPHERAL}/"), {})
        if "socket" in device:
            region = f"vfio-user:{device['socket']['path']} BAR 0[0]"
            return [{"name": region, "type": "child<memory-region>"}]
        return [{"name": PORT, "type": "child<PCIE>"}] if device else []

    def _qom_get(self, path: str, property: str) -> Any:  # noqa: A002 - QMP's name for it
        device = self._devices[path.removeprefix(f"{PERIPHERAL}/")]
        if property == "hotplug":
            return True
        return f"{PERIPHERAL}/{PORT}/{device['bus']}" if "bus" in device else "/machine/q35/pcie.0"

    def _device_add(self, id: str, **device: Any) -> dict[str, Any]:  # noqa: A002 - QMP's name for it
        self.told.append(("add", id))
        if id in self._refused:
            raise PermissionError("Failed to connect")
        self._devices[id] = device
        return {}

    def _device_del(self, id: str) -> dict[str, Any]:  # noqa: A002 - QMP's name for it
        self.told.append(("del", id))
        del self._devices[id]
        return {}
