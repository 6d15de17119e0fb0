"""Which hosts are changed together: Ansible's `serial`, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.desired import Desired, Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Hosts that are changed at one pace, in the inventory's order."""

    pace: Pace
    hosts: tuple[Desired, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of its batches, if all of its hosts have changes."""
        return sizes_left(self.pace.batch, len(self.hosts), len(self.hosts))

    @property
    def is_whole(self) -> bool:
        """All at once: there is no canary to wait for."""
        return len(self.sizes) <= 1


def split_rollouts(hosts: Sequence[Desired]) -> tuple[Rollout, ...]:
    """Hosts of different paces apart, each rollout where its first host stands in the inventory."""
    groups: dict[Pace, list[Desired]] = {}
    for desired in hosts:
        groups.setdefault(desired.pace, []).append(desired)
    return tuple(Rollout(pace=pace, hosts=tuple(members)) for pace, members in groups.items())


def size_of(item: str, hosts: int) -> int:
    """A count, or a percentage of `hosts`, rounded down: at least one host, as in Ansible."""
    if item.endswith("%"):
        return max(1, hosts * int(item.removesuffix("%")) // 100)
    return int(item)


def sizes_left(batch: Sequence[str], hosts: int, left: int, first: int = 0) -> tuple[int, ...]:
    """The sizes of the batches of the last `left` of `hosts`, from the item at `first` on.

    The last item is repeated. They add up to `left`.
    """
    sizes: list[int] = []
    while left > 0:
        size = min(left, size_of(batch[min(first + len(sizes), len(batch) - 1)], hosts))
        sizes.append(size)
        left -= size
    return tuple(sizes)
