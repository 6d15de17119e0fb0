"""Rules 31 to 50: a reply that came as server-sent events, chunk by chunk."""

from __future__ import annotations

from typing import Any

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.calls import check_calls
from healthchecks.toolcalls.deltas import CallDeltas
from healthchecks.toolcalls.exchange import INTEROP, MUST, WARN, Reply
from healthchecks.toolcalls.findings import (
    Findings,
    error_text,
    show,
)
from healthchecks.toolcalls.known import (
    CREATED_PER_CHUNK,
    NO_FINAL_CHUNK,
    ROLE_IN_EVERY_DELTA,
    KnownFault,
    ends_in_repetition,
)
from healthchecks.toolcalls.leaks import check_content
from healthchecks.toolcalls.sse import DONE, Events, parse_events
from healthchecks.toolcalls.strict_json import parse_body
from healthchecks.toolcalls.turn import (
    Beside,
    check_finish_word,
    check_identity,
    check_outcome,
    check_usage,
    error_of,
    first_choice,
    is_integer,
    look_beside,
    make_reply,
    reasoning_of,
)

MOST_EVENTS = 1_000_000


def check_stream(text: str, asked: Asked, found: Findings) -> Reply | None:
    """Check the text of an event stream; None when no chunk could be read."""
    events = parse_events(text)
    if events.stray_lines:
        found.add(31, INTEROP, "body", f"a line is no field of an event: {show(events.first_stray_line)}")
    if events.glued:
        found.add(31, INTEROP, "body", "a single line end stands between events in place of a blank line")
    if not events.data:
        found.add(31, INTEROP, "body", "the reply holds no event")
        return None
    if len(events.data) > MOST_EVENTS:
        reason = f"the stream has {len(events.data)} events; no more than {MOST_EVENTS} are read"
        found.add(31, INTEROP, f"events[{MOST_EVENTS}]", reason)
        return None
    data = _check_last_event(events, asked, found)
    end = next((number for number, event in enumerate(data) if event.strip() == DONE), None)
    found.looked_at(32, 47)
    chunks = _Chunks(asked, found)
    for number, event in enumerate(data[:end]):
        _read_event(event, events.types.get(number), f"events[{number}]", chunks, found)
    known = None if events.unended or not chunks.stop_in_repetition else NO_FINAL_CHUNK
    if end is None:
        if not chunks.failed:
            found.add(32, INTEROP, f"events[{len(data)}]", "no `data: [DONE]` ends the stream", known)
    elif end + 1 < len(data):
        found.add(32, INTEROP, f"events[{end + 1}]", "events follow `data: [DONE]`")
    cut_inside = len(data) < len(events.data)
    return chunks.finish(ended=end is not None, cut_inside=cut_inside, known=known)


def _check_last_event(events: Events, asked: Asked, found: Findings) -> tuple[str, ...]:
    """The data of the events, less a last one that was cut."""
    if not events.unended:
        return events.data
    where = f"events[{len(events.data) - 1}]"
    last = events.data[-1]
    if last.strip() == DONE or _is_json(last):
        # Of a reply alone, as an editor saved it, nobody knows whether the server sent that line.
        severity = WARN if asked.stream is None else INTEROP
        found.add(31, severity, where, "no blank line ends the last event")
        return events.data
    found.add(47, INTEROP, where, "the stream is cut inside an event")
    return events.data[:-1]


def _is_json(text: str) -> bool:
    try:
        parse_body(text)
    except ValueError:
        return False
    return True


def _read_event(text: str, type_: str | None, where: str, chunks: _Chunks, found: Findings) -> None:
    """Rules 31 and 47 for one event; `type_` where it is not the default one.

    OpenAI sends none. What has no choices is then no chunk, but a ping perhaps: a warning, and not read.
    """
    try:
        chunk = parse_body(text)
    except ValueError:
        chunk = None
        if type_ is None:
            found.add(31, INTEROP, where, f"the data of an event is not JSON: {show(text)}")
            return
    error = _error_in(chunk, text, type_)
    if error is not None:
        chunks.failed = True
        found.add(47, INTEROP, where, f"the stream holds an error: {error_text(error)}")
        return
    if type_ is not None:
        reason = f"an event has the type {show(type_)}; clients that look at data only take it for a chunk"
        found.add(31, WARN, where, reason)
        if not isinstance(chunk, dict) or "choices" not in chunk:
            return
    if not isinstance(chunk, dict):
        found.add(31, INTEROP, where, f"the data of an event is {show(chunk)}, not an object")
    else:
        chunks.add(chunk, where)


def _error_in(value: Any, text: str, type_: str | None) -> Any:
    """What an event says of an error; one of the type `error` does so whatever its form."""
    if type_ is None:
        return error_of(value)
    told = value.get("error") if isinstance(value, dict) else None
    if not told and type_ == "error":
        return value if isinstance(value, dict) else text
    return told or None


def _is_an_annotation(chunk: dict[str, Any]) -> bool:
    """Azure's content filter sends chunks of its own: empty id, object and model, and no delta in them."""
    choices = chunk.get("choices")
    if choices == []:
        return "prompt_filter_results" in chunk
    return isinstance(choices, list) and all(
        isinstance(choice, dict)
        and "content_filter_offsets" in choice
        and not choice.get("delta")
        and choice.get("finish_reason") in (None, "content_filter")
        for choice in choices
    )


class _Chunks:
    """Takes the chunks in order and keeps what the rules compare."""

    def __init__(self, asked: Asked, found: Findings) -> None:
        self._asked = asked
        self._found = found
        self._first: dict[str, Any] | None = None
        self._first_delta_seen = False
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls = CallDeltas(found)
        self._usage: Any = None
        self._usages = 0
        self._finish_reasons: list[Any] = []
        self._beside = Beside(answer=False, reasoning=False)
        self._model_changed = False
        self._only_others: bool | None = None
        self.failed = False

    def add(self, chunk: dict[str, Any], where: str) -> None:
        found = self._found
        if _is_an_annotation(chunk):
            # Where the filter ends the stream, such a chunk has the reason.
            filtered = [choice["finish_reason"] for choice in chunk["choices"] if choice.get("finish_reason")]
            self._finish_reasons.extend(filtered)
            return
        if chunk.get("object") != "chat.completion.chunk":
            found.add(33, MUST, where + ".object", "`object` is {}".format(show(chunk.get("object"))))
        if self._first is None:
            self._first = chunk
            found.looked_at(33, 34, 35)
            check_identity(chunk, where + ".", self._asked, found)
        else:
            self._compare(chunk, self._first, where)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            found.add(4, MUST, where + ".choices", f"`choices` is {show(choices)}, not a list")
            return
        usage = chunk.get("usage")
        if usage is not None:
            self._add_usage(usage, where + ".usage", alone=not choices)
        if choices:
            self._add_choice(choices, where)
        elif usage is None:
            found.add(4, INTEROP, where + ".choices", "a chunk has neither a choice nor usage")

    def _compare(self, chunk: dict[str, Any], first: dict[str, Any], where: str) -> None:
        """Rules 34 and 35."""
        found = self._found
        if chunk.get("id") != first.get("id"):
            found.add(34, MUST, where + ".id", "the id is not that of the first chunk")
        created = chunk.get("created")
        if created != first.get("created"):
            known = CREATED_PER_CHUNK if is_integer(created) else None
            found.add(35, MUST, where + ".created", "`created` is not that of the first chunk", known)
        if chunk.get("model") != first.get("model"):
            self._model_changed = True
            found.add(35, INTEROP, where + ".model", "the model is not that of the first chunk")

    def _add_usage(self, usage: Any, where: str, *, alone: bool) -> None:
        """Rule 46, all but its absence."""
        found = self._found
        self._usages += 1
        self._usage = usage
        if self._asked.include_usage is False:
            found.add(46, INTEROP, where, "usage comes though `include_usage` was not sent")
        elif self._asked.usage_in_every_chunk:
            return
        elif not alone:
            found.add(46, INTEROP, where, "usage comes in a chunk that has a choice")
        elif self._usages == 2:
            found.add(46, INTEROP, where, "usage comes in several chunks")

    def _add_choice(self, choices: list[Any], where: str) -> None:
        found = self._found
        choice = first_choice(choices, where + ".choices", self._asked, found)
        if choice is None:
            self._only_others = self._only_others is not False
            return
        self._only_others = False
        where += ".choices[0]."
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._add_delta(delta, where + "delta")
        else:
            found.add(4, MUST, where + "delta", f"the delta is {show(delta)}, not an object")
        finish = choice.get("finish_reason")
        if finish is not None:
            check_finish_word(finish, where + "finish_reason", found)
        # An empty one is no reason to finish: rule 5 has said what there is to say.
        if finish is not None and finish != "":
            if self._finish_reasons:
                found.add(44, INTEROP, where + "finish_reason", "a second chunk has a finish reason")
            self._finish_reasons.append(finish)

    def _add_delta(self, delta: dict[str, Any], where: str) -> None:
        found = self._found
        found.looked_at(10, 36)
        self._check_role(delta.get("role"), where + ".role")
        content = delta.get("content")
        if isinstance(content, str):
            self._content.append(content)
        elif content is not None:
            found.add(7, MUST, where + ".content", f"`content` is {show(content)}, not a string or null")
        self._reasoning.append(reasoning_of(delta))
        pieces = delta.get("tool_calls")
        if pieces is not None:
            found.looked_at(48)
            self._calls.add(pieces, where + ".tool_calls")
        beside = look_beside(delta)
        self._beside = Beside(
            self._beside.answer or beside.answer, self._beside.reasoning or beside.reasoning
        )
        if delta.get("function_call") is not None and not self._asked.legacy_functions:
            found.add(10, INTEROP, where + ".function_call", "the legacy `function_call` is used")
        if pieces and content == "":
            found.add(48, WARN, where + ".content", "an empty text stands beside a tool delta")
        if self._finish_reasons and (content or pieces):
            found.add(45, INTEROP, where, "text or a tool delta comes after the finish reason")

    def _check_role(self, role: Any, where: str) -> None:
        """Rules 6 and 36."""
        found = self._found
        if not self._first_delta_seen:
            self._first_delta_seen = True
            found.looked_at(6)
            if role is None:
                found.add(36, INTEROP, where, "the first delta has no role")
        elif role is not None:
            known = ROLE_IN_EVERY_DELTA if role == "assistant" else None
            found.add(36, INTEROP, where, "the role comes again", known)
        if role is not None and role != "assistant":
            found.add(6, MUST, where, f"the role is {show(role)}")

    @property
    def stop_in_repetition(self) -> bool:
        """The text ends in what was repeated, and then nothing: no call, finish reason, usage or error."""
        if self.failed or self._finish_reasons or self._usages or self._model_changed:
            return False
        text = "".join(self._content) or "".join(self._reasoning)
        return not self._calls.entries() and ends_in_repetition(text)

    def finish(self, *, ended: bool, cut_inside: bool, known: KnownFault | None) -> Reply | None:
        """The rules that need the whole stream.

        Args:
            ended: `data: [DONE]` came.
            cut_inside: the last event is not whole, as rule 47 has said.
            known: the fault that explains a missing end.
        """
        found = self._found
        if self._first is None:
            if not self.failed:
                found.add(44, INTEROP, "body", "the stream holds no chunk")
            return None
        if self._only_others and ended and not self.failed:
            found.add(4, INTEROP, "body", "no choice of the stream has the index 0")
            return None
        found.looked_at(44, 45)
        # An error that was told is the end, and rule 47 has said so.
        if not self._finish_reasons and not self.failed:
            known = None if ended else known
            found.add(44, INTEROP, "body", "no chunk has a finish reason", known)
            if not (ended or cut_inside):
                reason = "the stream ends without finish reason and `data: [DONE]`"
                found.add(47, INTEROP, "body", reason, known)
        if ended and not self.failed and self._asked.include_usage is not None:
            found.looked_at(46)
            if self._asked.include_usage and not self._usages:
                found.add(46, INTEROP, "body", "no chunk has the usage that was asked for")
        if self._usages:
            check_usage(self._usage, "usage", found)
        broke_off = not self._finish_reasons and (self.failed or not ended)
        return self._reply(broke_off=broke_off)

    def _reply(self, *, broke_off: bool) -> Reply:
        """Put the deltas together and check what results as a plain reply would be."""
        asked, found = self._asked, self._found
        check_content(self._content, "choices[0].delta.content", asked, found)
        content = "".join(self._content) if self._content else None
        finish = self._finish_reasons[0] if self._finish_reasons else None
        entries = self._calls.entries()
        calls = check_calls(
            entries,
            "tool_calls",
            from_stream=True,
            broke_off=broke_off,
            finish_reason=finish,
            asked=asked,
            found=found,
        )
        malformed = self._calls.malformed and not calls
        check_outcome(content, calls, self._beside, finish, self._usage, asked, found, malformed=malformed)
        return make_reply(content, calls, finish, self._usage)
