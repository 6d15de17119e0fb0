"""What `./fleet test` and `./fleet check` do: every tier of the tests, and everything a change must pass.

Both print what happened on stdout and return 0 or 1 as the process's exit code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from testbed.hosts_machine import missing_parts
from testbed.machine_image import missing_machine_parts
from testbed.ollama import start_server
from tests.browser.chromium import missing_browser_parts
from tests.fault_rows import (
    PAGE,
    RowTest,
    marked_functions,
    missing_on_page,
    read_row_tests,
    read_rows,
    unshown,
)

PROJECT = Path(__file__).resolve().parent.parent

# In the order they run. The emulated machine keeps one core busy for minutes and leaves the others idle: it
# runs beside those before the local tier, which is done sooner with every core than beside it, and that of
# the hosts, whose deadlines it would overrun.
TIERS = ("unit", "contract", "smoke", "browser", "local", "hosts", "machine")
WANT_EVERY_CORE = ("local", "hosts")
MISSING_PARTS = {
    "browser": missing_browser_parts,
    "hosts": missing_parts,
    "machine": missing_machine_parts,
}
"""What a tier needs that a machine may lack, each told as a phrase."""
# `FLEET_INVENTORY_EXAMPLES`: how many generated inventories are compared with Ansible's reading.
INVENTORIES, INVENTORIES_IN_CI = "100", "500"
PROCESSES_AT_MOST = 4
# Their tests wait for servers, hosts and timers two thirds of the time: two of them share a core.
WAITING_TIERS = ("contract", "local", "hosts")
# A practice host holds seven to ten instances of root's, and a worker has up to seven hosts, mostly two.
# Where none is left a host does not start.
INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_OF_A_WORKER = 40
NO_TEST_SELECTED = 5  # pytest's exit code


class TierEnd(StrEnum):
    """How a tier ended: `ok` also when a filter selected none of its tests."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierResult:
    """What the summary says of a tier, and what its tests showed of the fault matrix."""

    name: str
    end: TierEnd
    told: str
    faults: tuple[RowTest, ...] = ()


def run_tests(extra: Sequence[str] = ()) -> int:
    """Runs every tier; `extra` goes to pytest: options, or paths of tests, which then run alone."""
    results = run_tiers(extra)
    if not extra:
        results.append(_check_faults(results))
    print("\n== summary")
    for result in results:
        print(f"{result.name:<10} {result.end:<8} {result.told}")
    ends = {result.end for result in results}
    return 0 if TierEnd.OK in ends and TierEnd.FAILED not in ends else 1


def run_tiers(extra: Sequence[str]) -> list[TierResult]:
    """What `run_tests` runs, without its summary."""
    targets, options = _split(extra)
    tiers = _chosen(targets)
    cores = os.cpu_count() or 1
    is_beside = "machine" in tiers and cores > 1 and not tiers.keys() <= {*WANT_EVERY_CORE, "machine"}
    results = []
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryFile() as output:
        machine = (
            pool.submit(_run_tier, "machine", tiers.pop("machine"), options, output=output)
            if is_beside
            else None
        )
        for tier, paths in tiers.items():
            if machine is not None and tier in WANT_EVERY_CORE:
                wait([machine])
            print(f"== {tier}", flush=True)
            free = cores if machine is None or machine.done() else cores - 1
            results.append(_run_tier(tier, paths, options, cores=free))
        if machine is not None:
            results.append(machine.result())
            output.seek(0)
            print(
                "== machine, beside those before",
                output.read().decode(errors="replace"),
                sep="\n",
                flush=True,
            )
    return results


def _chosen(targets: Sequence[str]) -> dict[str, list[Path]]:
    """The tiers that these paths are in, with their paths; without any, every tier with its directory."""
    tiers = {}
    for tier in TIERS:
        directory = PROJECT / "tests" / tier
        # pytest runs in the project, whatever directory the caller is in.
        inside = [path for path in map(Path.absolute, map(Path, targets)) if path.is_relative_to(directory)]
        if inside or not targets:
            tiers[tier] = inside or [directory]
    return tiers


def without_rows_of(results: Sequence[TierResult]) -> list[TierResult]:
    """The tiers that were not run and have tests of the fault matrix."""
    tiers = {Path(name).parts[1] for name in marked_functions()}
    return [result for result in results if result.end is TierEnd.NOT_RUN and result.name in tiers]


def _check_faults(results: Sequence[TierResult]) -> TierResult:
    """Every row of the matrix was shown by a test that passed or says why not, and the page tells of it."""
    out = without_rows_of(results)
    if out:
        names = ", ".join(result.name for result in out)
        return TierResult(name="faults", end=TierEnd.NOT_RUN, told=f"nor was {names}")
    tests = [test for result in results for test in result.faults]
    missing = unshown(read_rows(), tests) + missing_on_page(PAGE.read_text(), tests)
    if missing:
        return TierResult(name="faults", end=TierEnd.FAILED, told="; ".join(missing))
    told = f"{len(read_rows())} rows of docs/faults.md shown, or told why not"
    return TierResult(name="faults", end=TierEnd.OK, told=told)


def _split(extra: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths of tests, and options for pytest; what follows `--fleet-...` is its value, even a path.

    pytest runs in the project: a file of the caller's is named from the root.
    """
    targets, options = [], []
    words = iter(extra)
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("--fleet-"):
            value = value or next(words, "")
            options.append(f"{name}={Path(value).absolute() if name == '--fleet-inventory' else value}")
        elif Path(word.partition("::")[0]).exists():
            targets.append(word)
        else:
            options.append(word)
    return targets, options


@contextmanager
def _served(tier: str, options: Sequence[str]) -> Iterator[Sequence[str]]:
    """tests/smoke is about servers of its own: told of none, it is played against the simulated one."""
    if tier != "smoke" or any(option.startswith("--fleet-") for option in options):
        yield options
        return
    with start_server() as server:
        yield [*options, f"--fleet-url={server.url}", "--fleet-model=canary", "--fleet-level=extended"]


def _run_tier(
    tier: str,
    chosen: Sequence[Path],
    options: Sequence[str],
    *,
    cores: int = 1,
    output: IO[bytes] | None = None,
) -> TierResult:
    """One tier by a pytest of its own, on so many cores; what it prints goes to `output` if there is one."""
    if tier in os.environ.get("FLEET_TESTS_WITHOUT", "").split():
        return TierResult(name=tier, end=TierEnd.NOT_RUN, told="left out by FLEET_TESTS_WITHOUT")
    missing = MISSING_PARTS[tier]() if tier in MISSING_PARTS else ()
    if missing:
        # CI has all of it: a tier that stays out unseen would be taken for one that passes.
        end = TierEnd.FAILED if os.environ.get("CI") else TierEnd.NOT_RUN
        return TierResult(name=tier, end=end, told=f"this machine lacks {'; '.join(missing)}")
    examples = INVENTORIES_IN_CI if os.environ.get("CI") else INVENTORIES
    environment = {"FLEET_INVENTORY_EXAMPLES": examples, **os.environ}
    with tempfile.TemporaryDirectory() as directory, _served(tier, options) as told:
        report = Path(directory) / "report.xml"
        # There is one machine, and each test waits for it.
        parallel = [] if tier == "machine" else _in_parallel(tier, cores)
        command = [sys.executable, "-m", "pytest", "-q", *parallel, f"--junit-xml={report}"]
        command += [*map(str, chosen), *told]
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, stdout=output, stderr=output, check=False
        )
        seconds = time.monotonic() - began
        counts = _count(report) if report.exists() else f"pytest ended with {done.returncode}"
        faults = tuple(read_row_tests(report)) if report.exists() else ()
    code = done.returncode
    passed = code == 0 or (code == NO_TEST_SELECTED and bool(options))
    end = TierEnd.OK if passed else TierEnd.FAILED
    return TierResult(name=tier, end=end, told=f"{counts} in {seconds:.1f} s", faults=faults)


def _in_parallel(tier: str, cores: int) -> list[str]:
    """Files are kept together, so that what a file starts once is started once."""
    workers = min(PROCESSES_AT_MOST, 2 * cores if tier in WAITING_TIERS else cores)
    if tier == "hosts" and INOTIFY_LIMIT.exists():
        workers = min(workers, int(INOTIFY_LIMIT.read_text()) // INOTIFY_OF_A_WORKER)
    return ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []


def _count(report: Path) -> str:
    """`12 tests, 1 failed, 2 skipped` from pytest's own report, which this process asked for."""
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None, "pytest wrote a report without a test suite"
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    parts = [f"{suite.get('tests')} tests"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{skipped} skipped (reasons above)"] if skipped else []
    return ", ".join(parts)


def run_checks() -> int:
    """Style, types, layers, shell scripts and the fast tests; each runs, whatever the ones before said."""
    python = [sys.executable, "-m"]
    scripts = [PROJECT / "fleet", PROJECT / ".ci" / "run", *sorted(PROJECT.glob("deploy/**/*.sh"))]
    left_out = os.environ.get("FLEET_TESTS_WITHOUT", "").split()
    commands = {
        "ruff": [*python, "ruff", "check", "."],
        "format": [*python, "ruff", "format", "--check", "."],
        "types": [*python, "mypy"],
        "layers": [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        "shell": [_shellcheck(), *map(str, scripts)],
        "unit tests": [*python, "pytest", "-q", *_in_parallel("unit", os.cpu_count() or 1), "tests/unit"],
    }
    if "unit" in left_out:
        print(f"{'unit tests':<12} left out by FLEET_TESTS_WITHOUT")
        del commands["unit tests"]
    passed = [_passes(name, command) for name, command in commands.items()]
    return 0 if all(passed) else 1


def _shellcheck() -> str:
    """The one of the environment; a system's own where there is no wheel (Linux on arm64)."""
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck") or "shellcheck"


def _passes(name: str, command: Sequence[str]) -> bool:
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        failed, output = done.returncode != 0, done.stdout
    except FileNotFoundError:
        failed, output = True, f"`{command[0]}` is not installed: apt install {command[0]}\n"
    print(f"{name:<12} {'FAILED' if failed else 'ok':<8} {time.monotonic() - began:.1f} s", flush=True)
    if failed:
        print(output, end="", flush=True)
    return not failed
