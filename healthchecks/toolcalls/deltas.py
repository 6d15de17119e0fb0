"""Rules 37 to 43: the calls of a stream, put together from their deltas."""

from __future__ import annotations

from typing import Any

from healthchecks.toolcalls.exchange import INTEROP, MUST
from healthchecks.toolcalls.findings import Findings, show
from healthchecks.toolcalls.known import INDEX_ALWAYS_0, NO_INDEX
from healthchecks.toolcalls.turn import is_integer


class _GrowingCall:
    """A call whose pieces are still coming."""

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id: Any = None
        self.type: Any = None
        self.function: dict[str, Any] | None = None
        self.pieces: list[str] = []

    def entry(self) -> dict[str, Any]:
        """As it would stand in the `tool_calls` of a plain reply."""
        if self.function is not None and "arguments" not in self.function:
            self.function["arguments"] = "".join(self.pieces)
        return {"id": self.id, "index": self.index, "type": self.type, "function": self.function}


class CallDeltas:
    """Takes the `tool_calls` of one delta after the other."""

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._calls: list[_GrowingCall] = []
        self._by_index: dict[int, _GrowingCall] = {}
        self._by_id: dict[str, _GrowingCall] = {}
        self._next_index = 0
        self.malformed = False
        """Something came in place of a delta that is none."""

    def entries(self) -> list[Any]:
        """The calls so far, in the order in which they began."""
        return [call.entry() for call in self._calls]

    def add(self, pieces: Any, where: str) -> None:
        """The value of `delta.tool_calls`, which is not null."""
        found = self._found
        found.looked_at(43)
        if not isinstance(pieces, list):
            self.malformed = self.malformed or bool(pieces)
            found.add(43, MUST, where, f"`tool_calls` is {show(pieces)}, not a list")
            return
        if not pieces:
            found.add(43, INTEROP, where, "`tool_calls` is an empty list")
        for position, piece in enumerate(pieces):
            at = f"{where}[{position}]"
            if isinstance(piece, dict):
                self._add_piece(piece, at)
            else:
                self.malformed = True
                found.add(43, MUST, at, f"the tool delta is {show(piece)}, not an object")

    def _add_piece(self, piece: dict[str, Any], at: str) -> None:
        found = self._found
        found.looked_at(37, 38, 39, 40, 41, 42)
        index = piece.get("index")
        if not is_integer(index):
            reason = "has no index" if index is None else f"has the index {show(index)}"
            known = NO_INDEX if "index" not in piece else None
            found.add(37, MUST, at + ".index", "a tool delta " + reason, known)
            index = None
        function = piece.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        call = self._called_before(index, piece.get("id"), name, at)
        if call is None:
            call = self._begin(index, piece, name, at)
        self._merge(call, piece, function, at)

    def _called_before(self, index: int | None, id_: Any, name: Any, at: str) -> _GrowingCall | None:
        """The call that this piece continues. Without an index: the one with its id, or else the last."""
        same_id = self._by_id.get(id_) if isinstance(id_, str) else None
        if index is None:
            return same_id if id_ else (self._calls[-1] if self._calls else None)
        call = self._by_index.get(index)
        # Another id together with a name is another call; another id alone is a change of mind (rule 41).
        if call is not None and id_ and call.id and id_ != call.id and name:
            known = INDEX_ALWAYS_0 if index == 0 and len(self._by_index) == 1 else None
            self._found.add(39, INTEROP, at, f"the index {index} is used for several ids", known)
            return same_id
        return call

    def _begin(self, index: int | None, piece: dict[str, Any], name: Any, at: str) -> _GrowingCall:
        found = self._found
        call = _GrowingCall(index)
        self._calls.append(call)
        if index is not None:
            if index not in self._by_index:
                if index != self._next_index:
                    reason = f"the index {index} comes where {self._next_index} is next"
                    found.add(38, INTEROP, at + ".index", reason)
                self._next_index = index + 1
            self._by_index[index] = call
            if isinstance(piece.get("id"), str) and piece["id"] in self._by_id:
                found.add(39, INTEROP, at + ".id", "the id {} has several indices".format(show(piece["id"])))
        given = {"id": piece.get("id"), "type": piece.get("type"), "name": name}
        missing = [key for key, value in given.items() if not value]
        if missing:
            found.add(40, INTEROP, at, "the first delta of a call lacks its {}".format(" and ".join(missing)))
        return call

    def _merge(self, call: _GrowingCall, piece: dict[str, Any], function: Any, at: str) -> None:
        id_ = piece.get("id")
        if id_:
            call.id = self._same("id", call.id, id_, at + ".id")
            if isinstance(id_, str):
                self._by_id.setdefault(id_, call)
        if piece.get("type"):
            call.type = self._same("type", call.type, piece["type"], at + ".type")
        if function is None:
            return
        at += ".function"
        if not isinstance(function, dict):
            self._found.add(16, MUST, at, f"`function` is {show(function)}, not an object")
            return
        if call.function is None:
            call.function = {"name": None}
        if function.get("name"):
            call.function["name"] = self._same("name", call.function["name"], function["name"], at + ".name")
        if "id" in function:
            call.function["id"] = function["id"]
        if "arguments" in function:
            self._merge_arguments(call, call.function, function["arguments"], at + ".arguments")

    def _merge_arguments(self, call: _GrowingCall, function: dict[str, Any], piece: Any, at: str) -> None:
        if isinstance(piece, str):
            call.pieces.append(piece)
            return
        self._found.add(42, MUST, at, f"a piece of the arguments is {show(piece)}, not a string")
        if not call.pieces:
            function["arguments"] = piece

    def _same(self, what: str, before: Any, now: Any, at: str) -> Any:
        """Rule 41; the first value stays."""
        if before is None:
            return now
        if now != before:
            self._found.add(41, INTEROP, at, f"the {what} of a call changes")
        return before
