"""What the kernel's log says of the GPUs: Xids, the driver's numbered errors.

The meanings are those of https://docs.nvidia.com/deploy/xid-errors. A card can fall off the bus without an
Xid (NVSentinel#155): the words count too, and `gpu` counts the cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.gpu_driver import whole_gpus
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

OFF_THE_BUS = 79
_MOST_LINES = 50_000

_BROKEN: Mapping[int, str] = {
    46: "the GPU stopped processing",
    48: "a double-bit memory error",
    64: "a broken row or page could not be replaced",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "a memory error that was not contained",
    119: "the GPU's system processor does not answer",
    120: "an error of the GPU's system processor",
    154: "the driver asks for a recovery",
}
_HANDLED: Mapping[int, str] = {
    63: "a broken row or page was marked for replacement",
    94: "a memory error, contained to one program",
}
_OF_PROGRAMS: Mapping[int, str] = {
    13: "an exception of a program",
    31: "a memory fault of a program",
    43: "a program was stopped",
}

# `Xid (PCI:0000:17:00): 79`; of an instance of MIG `(PCI:0000:17:00 GPU-I:05)`; old drivers have no `PCI:`.
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9A-Fa-f:.]+)[^)]*\): (?P<code>\d+)")
_FALLEN = re.compile(r"NVRM: GPU (?:at PCI:)?(?P<pci>[0-9A-Fa-f:.]+)\b.*fallen off the bus")
_DMESG = re.compile(r"\[ *(?P<seconds>\d+\.\d+)\] (?P<text>.*)")


@dataclass(frozen=True)
class Xid:
    """One line; `seconds_ago` None where the log does not tell when. `pci` as the log writes it."""

    code: int
    pci: str
    seconds_ago: float | None


def check_xid(look: Look) -> Judgement:
    """The log since the boot: of the hardware all of it counts, of programs what is new."""
    xids = read_xids(look)
    newest = look.config.thresholds.xid_age_seconds
    evidence = {
        "xids": [{"code": one.code, "pci": one.pci, "seconds_ago": one.seconds_ago} for one in xids[-20:]]
    }
    facts = {"gpus": _last_codes(look, xids)}
    recent = [one for one in xids if one.seconds_ago is None or one.seconds_ago <= newest]
    broken = [one for one in recent if one.code in _BROKEN]
    if broken:
        reason = f"Xid {broken[-1].code} on {broken[-1].pci}: {_BROKEN[broken[-1].code]}"
        hint = "take the host out of service; nvidia-smi --gpu-reset or reboot; replace the card if it recurs"
        return Judgement(State.FAIL, reason, hint, evidence, facts)
    of_hardware = [one for one in xids if one.code in _BROKEN or one.code in _HANDLED]
    if of_hardware:
        last = of_hardware[-1]
        reason = f"Xid {last.code} on {last.pci}: {ALL_CODES[last.code]}"
        return Judgement(
            State.WARN, reason, "reboot when nobody uses it; the log is of this boot", evidence, facts
        )
    if recent:
        last = recent[-1]
        words = ALL_CODES.get(last.code, "see NVIDIA's list of Xids")
        hint = f"./fleet logs --limit {look.config.host}: does the server lose its runner?"
        return Judgement(State.WARN, f"Xid {last.code} on {last.pci}: {words}", hint, evidence, facts)
    return Judgement(State.PASS, "the kernel's log has no error of a GPU", None, evidence, facts)


ALL_CODES: Mapping[int, str] = {**_BROKEN, **_HANDLED, **_OF_PROGRAMS}


def read_xids(look: Look) -> tuple[Xid, ...]:
    """From the journal, else from dmesg.

    Raises:
        PermissionError: this user may read neither.
    """
    journal = ("journalctl", "-k", "-b", "-q", "--no-pager", "-o", "json", f"-n{_MOST_LINES}")
    try:
        ran = look.host.run(
            (*journal, "--output-fields=MESSAGE,__REALTIME_TIMESTAMP"), look.deadline_seconds / 2
        )
        if ran.exit_code == 0 and ran.stdout.strip():
            return parse_journal(ran.stdout.splitlines(), look.now.timestamp())
    except FileNotFoundError:
        pass
    ran = look.host.run(("dmesg",), look.deadline_seconds / 2)
    if ran.exit_code:
        raise PermissionError(
            f"neither the kernel's journal nor dmesg can be read: {ran.stderr.strip()[:200]}"
        )
    uptime = look.host.read_text("/proc/uptime")
    return parse_dmesg(ran.stdout.splitlines(), float(uptime.split()[0]) if uptime else None)


def parse_journal(lines: Iterable[str], now_seconds: float) -> tuple[Xid, ...]:
    """Lines of `journalctl -o json`; times are microseconds since the epoch."""
    found: list[Xid] = []
    for line in lines:
        # Most lines are of others, and JSON is slow.
        if "NVRM" not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            # Cut short: the lines around it count all the same.
            continue
        if not isinstance(entry, dict):
            continue
        text, at = entry.get("MESSAGE"), entry.get("__REALTIME_TIMESTAMP")
        ago = now_seconds - int(at) / 1e6 if isinstance(at, str) and at.isdigit() else None
        found += _parse_text(str(text), ago)
    return tuple(found)


def parse_dmesg(lines: Iterable[str], uptime_seconds: float | None) -> tuple[Xid, ...]:
    """Lines of `dmesg`, with seconds since the boot in brackets."""
    found: list[Xid] = []
    for line in lines:
        told = _DMESG.match(line)
        ago = uptime_seconds - float(told["seconds"]) if told and uptime_seconds is not None else None
        found += _parse_text(told["text"] if told else line, ago)
    return tuple(found)


def _parse_text(text: str, ago: float | None) -> Sequence[Xid]:
    seconds_ago = None if ago is None else round(max(ago, 0.0), 1)
    xid = _XID.search(text)
    if xid:
        return [Xid(int(xid["code"]), xid["pci"], seconds_ago)]
    fallen = _FALLEN.search(text)
    return [Xid(OFF_THE_BUS, fallen["pci"], seconds_ago)] if fallen else []


def _last_codes(look: Look, xids: Sequence[Xid]) -> Mapping[str, Mapping[str, Any]]:
    """By the uuid of the GPUs that are still there."""
    codes = {_place(one.pci): one.code for one in xids}
    found = {}
    for gpu in whole_gpus(look.gpus()):
        code = None if gpu.pci is None else codes.get(_place(gpu.pci))
        found[gpu.uuid] = {"xid_last_code": code}
    return found


def _place(pci: str) -> str:
    """Bus and device: NVML writes `00000000:17:00.0`, the log `0000:17:00`."""
    domain, _, rest = (
        pci.lower().rpartition(".")[0].partition(":") if "." in pci else pci.lower().partition(":")
    )
    return f"{int(domain or '0', 16):x}:{rest}"
