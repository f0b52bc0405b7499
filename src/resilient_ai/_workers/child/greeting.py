"""The start of a worker: from HELLO to READY, in phases that its host can time."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from resilient_ai._inference.arenas import share_arena
from resilient_ai._inference.runtime import runtime_version
from resilient_ai._version import __version__
from resilient_ai._workers.child import cuda, preflight
from resilient_ai._workers.child.diagnosis import Examiner
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.loading import Loader
from resilient_ai._workers.child.outbox import Outbox
from resilient_ai._workers.child.preflight import CardInfo
from resilient_ai._workers.child.runner import Tools
from resilient_ai._workers.child.sabotage import Sabotage
from resilient_ai._workers.child.station import Station
from resilient_ai._workers.messages import DeviceSpec, read_hello
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import DeviceUnavailable

__all__ = ["greet"]


def greet(hello: Frame, outbox: Outbox, switch: DeadMansSwitch) -> tuple[Station, Frame]:
    """Become what the host wants: the place for the models to come, and READY to tell it so.

    Raises what stands in the way, `DeviceUnavailable` where only a person can mend it.
    """
    # Before the rest is read, of which another version may have another idea.
    _require_same_version(hello)
    device, _, meta = read_hello(hello)

    outbox.phase(hello.id, "imports")
    sabotage = Sabotage(permitted=device.injectable)
    fault = sabotage.read(meta)
    sabotage.begin_phase(fault, "imports")
    runtime = runtime_version()

    outbox.phase(hello.id, "libraries")
    sabotage.begin_phase(fault, "libraries")
    card = preflight.inspect(device)
    tools = Tools(outbox, _loader(device, card), _examiner(device, card), sabotage, switch)
    station = Station(tools, card=partial(_card_now, device, card), start_fault=fault)
    introduction = {
        "pid": os.getpid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "runtime": runtime,
        "card": None if card is None else asdict(card),
    }
    return station, Frame(Kind.READY, hello.id, introduction)


def _loader(device: DeviceSpec, card: CardInfo | None) -> Loader:
    if card is None:
        return Loader(device.name, threads=device.threads)
    gpu = preflight.gpu_options(device, card)
    share_arena(gpu)  # where that fails, the notes of the sessions say so
    return Loader(device.name, gpu=gpu)


def _examiner(device: DeviceSpec, card: CardInfo | None) -> Examiner:
    if card is None:
        return Examiner()
    return Examiner(partial(cuda.context_fault, card=device.card), card_total_bytes=card.total)


def _card_now(device: DeviceSpec, card: CardInfo | None) -> dict[str, Any] | None:
    """How full the card is; None without one, and when it does not say."""
    memory = None if card is None else cuda.memory(card=device.card)
    if card is None or memory is None:
        return None
    free, total = memory
    return {"name": card.name, "total": total, "free": free}


def _require_same_version(hello: Frame) -> None:
    """Two versions would misunderstand each other, and neither would notice."""
    theirs = hello.meta.get("version")
    if theirs != __version__:
        python = sys.executable
        raise DeviceUnavailable(
            f"the worker's interpreter {python} has resilient_ai {__version__}, its host has {theirs}. "
            f'Install the same there: {python} -m pip install "resilient-ai=={theirs}"'
        )
