"""Reads the fields of a JSON object one by one; what is wrong is a ValueError that names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fields:
    """An object of a JSON document; `where` leads to it, as in `models[0].`, and is empty at the top."""

    values: Mapping[str, Any]
    where: str = ""

    def text(self, name: str) -> str:
        return str(self._typed(name, (str,), "a text"))

    def text_or_none(self, name: str) -> str | None:
        return None if self.values.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        return float(self._typed(name, (int, float), "a number"))

    def number_or_none(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        return int(self._typed(name, (int,), "a whole number"))

    def whole_or_none(self, name: str) -> int | None:
        return None if self.values.get(name) is None else self.whole(name)

    def truth(self, name: str) -> bool:
        return bool(self._typed(name, (bool,), "true or false"))

    def mapping(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._typed(name, (dict,), "an object")
        return found

    def objects(self, name: str) -> Sequence[Fields]:
        """The objects of a list, each to be read by its own fields."""
        items = self._typed(name, (list,), "a list")
        return [parse_fields(item, f"{self.where}{name}[{number}]") for number, item in enumerate(items)]

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._typed(name, (list,), "a list")
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"`{self.where}{name}` is {items!r:.60}, not a list of texts")
        return tuple(items)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        found = self.text(name)
        if found not in allowed:
            raise ValueError(f"`{self.where}{name}` is {found!r}, not one of {', '.join(allowed)}")
        return found

    def _typed(self, name: str, types: tuple[type, ...], what: str) -> Any:
        if name not in self.values:
            raise ValueError(f"`{self.where}{name}` is missing")
        found = self.values[name]
        # In Python true is a number too.
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            raise ValueError(f"`{self.where}{name}` is {found!r:.60}, not {what}")
        return found


def parse_fields(value: Any, what: str) -> Fields:
    """Raises ValueError where `value` is no object; `what` names it, the document itself as `the report`."""
    if not isinstance(value, dict):
        raise ValueError(f"`{what}` is {value!r:.60}, not an object")  # noqa: TRY004 - one kind for readers
    return Fields(value, "" if " " in what else f"{what}.")
