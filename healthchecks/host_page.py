"""One host of the fleet's page: the figures of its last report, and how they went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from healthchecks.charts import LineChart, draw_bar, draw_line, draw_strip
from healthchecks.facts_reader import mapping_of, number_of, objects_of, text_of, texts_of, truth_of
from healthchecks.figure_texts import age_text, moment_text, rate_text, seconds_text, size_text
from healthchecks.fleet_figures import judged_version
from healthchecks.health_report import HealthReport, State
from healthchecks.kept_reports import KeptReports, Run


def host_details(kept: KeptReports | None, place: int) -> dict[str, Any]:
    """What the template shows of a host; everything empty where nothing is known.

    Args:
        place: the host's number on the page, which makes the names of its charts unlike all others.
    """
    report = None if kept is None else kept.report
    runs = () if kept is None else kept.runs
    facts: Mapping[str, Any] = {} if report is None else report.facts
    age = None if kept is None else kept.age_seconds
    version = text_of(facts, "ollama_version")
    return {
        "checked": report is not None,
        "age": "" if age is None or age < 0 else age_text(age),
        "started": "" if report is None else report.started,
        "version": None if version is None else judged_version(version),
        "facts": list(_facts(facts)),
        "drifted": texts_of(facts, "drifted_files"),
        "memory": _memory(facts),
        "gpus": list(_gpus(facts)),
        "models": [_model(model) for model in objects_of(facts, "models")],
        "rate": _lowest_rate(facts),
        "checks": [] if report is None else _checks(report),
        "charts": list(_charts(facts, runs, place)),
        "strip": draw_strip([run.state.value for run in runs]),
        "runs": _runs_text(runs),
    }


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known, in words; what is not is left out, but for what a person would look for."""
    yield "release", text_of(facts, "release") or "unknown"
    yield "last deploy", text_of(facts, "deploy_last_success_at") or "unknown"
    rollback = {True: "available", False: "none", None: "unknown"}
    yield "rollback", rollback[truth_of(facts, "rollback_available")]
    unit = mapping_of(facts, "unit")
    active = truth_of(unit, "active")
    if active is not None:
        restarts = number_of(unit, "restarts")
        more = "" if restarts is None else f", {restarts:.0f} restarts"
        yield "service", ("active" if active else "not active") + more
    if (wait := number_of(facts, "api_seconds")) is not None:
        yield "API", seconds_text(wait)
    disk = mapping_of(facts, "filesystem")
    if (free := number_of(disk, "avail_bytes")) is not None:
        yield "disk", f"{size_text(free)} free at {text_of(disk, 'path') or '?'}"
    if listeners := texts_of(facts, "listeners"):
        yield "listens on", ", ".join(listeners)
    driver = mapping_of(facts, "driver")
    if name := text_of(driver, "driver_version"):
        cuda = text_of(driver, "cuda_version")
        yield "driver", name + (f", CUDA {cuda}" if cuda else "")
    if toolkit := text_of(facts, "toolkit_version"):
        yield "deployed by", f"ollama-fleet {toolkit}"


def _lowest_rate(facts: Mapping[str, Any]) -> str:
    rates = [number_of(model, "tokens_per_second") for model in objects_of(facts, "models")]
    known = [rate for rate in rates if rate is not None]
    return rate_text(min(known)) if known else ""


def _model(model: Mapping[str, Any]) -> Mapping[str, Any]:
    size, vram = number_of(model, "size_bytes"), number_of(model, "vram_bytes")
    is_there, is_ours = truth_of(model, "present"), truth_of(model, "digest_match")
    stored = {True: "as deployed", False: "other weights", None: "there"}[is_ours]
    words = {True: "yes", False: "NO", None: "unknown"}
    return {
        "name": text_of(model, "name") or "?",
        "stored": stored if is_there else "missing" if is_there is False else "unknown",
        "loaded": "not known to be loaded" if size is None else size_text(size),
        "on_gpu": "" if not size or vram is None else f"{100 * vram / size:.0f} % on the GPU",
        "rate": rate_text(number_of(model, "tokens_per_second")),
        "first": seconds_text(number_of(model, "first_token_seconds")),
        "load": seconds_text(number_of(model, "load_seconds")),
        "toolcall": words[truth_of(model, "toolcall_ok")],
    }


def _memory(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of all GPUs together, and which model has how much of it."""
    found = [
        (used, total)
        for gpu in objects_of(facts, "gpus")
        if (used := number_of(gpu, "memory_used_bytes")) is not None
        and (total := number_of(gpu, "memory_total_bytes"))
    ]
    if not found:
        return None
    used, total = sum(one for one, _ in found), sum(one for _, one in found)
    models = [
        (text_of(model, "name") or "?", size)
        for model in objects_of(facts, "models")
        if (size := number_of(model, "vram_bytes"))
    ]
    parts = draw_bar(total, min(used, total), models)
    told = [f"{part.label or 'others'} {size_text(part.size_bytes)}" for part in parts]
    claimed = sum(size for _, size in models)
    return {
        "parts": parts,
        "text": f"{size_text(used)} of {size_text(total)}",
        "told": ", ".join(told) or "nothing in use",
        "problem": f"models claim {size_text(claimed)}, more than is in use" if claimed > used else "",
    }


def _gpus(facts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for gpu in objects_of(facts, "gpus"):
        used, total = number_of(gpu, "memory_used_bytes"), number_of(gpu, "memory_total_bytes")
        index, heat = number_of(gpu, "index"), number_of(gpu, "temperature_celsius")
        busy, xid = number_of(gpu, "utilization_percent"), number_of(gpu, "xid_last_code")
        told = [
            "" if heat is None else f"{heat:.0f} \N{DEGREE SIGN}C",
            "" if busy is None else f"{busy:.0f} % busy",
            "" if xid is None else f"Xid {xid:.0f}",
        ]
        yield {
            "name": f"{'?' if index is None else f'{index:.0f}'}: {text_of(gpu, 'name') or 'GPU'}",
            "parts": draw_bar(total, min(used, total), ()) if used is not None and total else (),
            "text": f"{size_text(used)} of {size_text(total)}",
            "told": ", ".join(filter(None, told)),
        }


def _checks(report: HealthReport) -> Sequence[Mapping[str, Any]]:
    """Those that need somebody first; the others in their order."""
    order = (State.FAIL, State.WARN, State.UNKNOWN, State.PASS)
    return [
        {
            "state": result.state,
            "check": result.check,
            "reason": result.reason,
            "hint": result.hint or "",
            "seconds": seconds_text(result.seconds),
        }
        for result in sorted(report.checks, key=lambda result: order.index(result.state))
    ]


def _charts(facts: Mapping[str, Any], runs: Sequence[Run], place: int) -> Iterator[Mapping[str, Any]]:
    def chart(key: str, title: str, line: LineChart | None, text: Any) -> Iterator[Mapping[str, Any]]:
        if line is not None:
            told = f"{text(line.last)} last; {text(line.least)} to {text(line.most)} in {line.count} runs"
            yield {
                "id": f"chart-{place}-{key}",
                "title": title,
                "path": line.path,
                "most": text(line.most),
                "told": told,
                "since": moment_text(line.since),
                "until": moment_text(line.until),
            }

    for number, model in enumerate(objects_of(facts, "models")):
        name = text_of(model, "name") or "?"
        rates = draw_line(_of_model(runs, name, "tokens_per_second"), min)
        yield from chart(f"{number}-rate", f"{name}: tokens per second", rates, rate_text)
        waits = draw_line(_of_model(runs, name, "first_token_seconds"), max)
        yield from chart(f"{number}-first", f"{name}: time to the first token", waits, seconds_text)
    answers = [(run.at, number_of(run.facts, "api_seconds")) for run in runs]
    yield from chart("api", "API: time to an answer", draw_line(answers, max), seconds_text)


def _of_model(runs: Sequence[Run], name: str, key: str) -> list[tuple[float, float | None]]:
    found = []
    for run in runs:
        models = objects_of(run.facts, "models")
        values = [number_of(model, key) for model in models if text_of(model, "name") == name]
        found.append((run.at, values[0] if values else None))
    return found


def _runs_text(runs: Sequence[Run]) -> str:
    if not runs:
        return "no run before"
    counts = [(state, sum(1 for run in runs if run.state is state)) for state in reversed(State)]
    told = ", ".join(f"{count} {state}" for state, count in counts if count)
    return f"last {len(runs)} runs since {moment_text(runs[0].at)}: {told}"
