"""Ways to break one rule, each with the rules that must fire: that one and what it unavoidably implies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.unit.toolcalls_good_replies import CASES, GoodReply, faultless

PLAIN = (False,)
STREAM = (True,)
BOTH = (False, True)

Break = Callable[[GoodReply], object]


@dataclass(frozen=True)
class Mutation:
    """`implies`: rules that cannot but fire too, the reason at each use; `in_stream`: those of a stream."""

    rule: int
    break_it: Break
    shapes: tuple[bool, ...]
    calls: range
    implies: frozenset[int]
    in_stream: frozenset[int]

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.break_it.__name__}"

    def applications(self) -> list[tuple[GoodReply, frozenset[int]]]:
        """Every good reply it applies to, broken, with the rules that must fire."""
        broken = []
        for stream in self.shapes:
            expected = {self.rule} | self.implies | (self.in_stream if stream else frozenset())
            for case in CASES:
                reply = faultless(case, stream=stream)
                if len(reply.calls) in self.calls:
                    self.break_it(reply)
                    broken.append((reply, frozenset(expected)))
        return broken


ANY = range(99)
WITH_CALLS = range(1, 99)
WITHOUT_CALLS = range(1)
WITH_SEVERAL_CALLS = range(2, 99)


class Catalogue(list[Mutation]):
    """The mutations of one module."""

    def breaks(
        self,
        rule: int,
        shapes: tuple[bool, ...],
        calls: range = ANY,
        *,
        implies: tuple[int, ...] = (),
        in_stream: tuple[int, ...] = (),
    ) -> Callable[[Break], Break]:
        """Enter a function that breaks `rule` in replies with so many calls."""

        def enter(break_it: Break) -> Break:
            self.append(Mutation(rule, break_it, shapes, calls, frozenset(implies), frozenset(in_stream)))
            return break_it

        return enter
