"""Batches are Ansible's `serial`: every host in exactly one, in order, of the sizes that were asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.batches import sizes_left, split_rollouts
from deploy.desired import Pace
from tests.unit.test_plan import DESIRED

ITEMS = st.one_of(st.integers(1, 300).map(str), st.integers(1, 100).map(lambda percent: f"{percent}%"))
BATCHES = st.lists(ITEMS, min_size=1, max_size=6).map(tuple)


@pytest.mark.parametrize(
    ("batch", "hosts", "sizes"),
    [
        (("100%",), 10, (10,)),
        (("1",), 3, (1, 1, 1)),
        (("1", "5", "25%"), 20, (1, 5, 5, 5, 4)),
        (("1", "5", "25%"), 200, (1, 5, 50, 50, 50, 44)),
        (("30%",), 10, (3, 3, 3, 1)),
        # Rounded down, and never to nothing.
        (("25%",), 3, (1, 1, 1)),
        (("33%",), 10, (3, 3, 3, 1)),
        (("5", "100%"), 4, (4,)),
    ],
)
def test_the_last_item_is_repeated_and_a_percentage_is_of_all_hosts_of_the_rollout(
    batch: tuple[str, ...], hosts: int, sizes: tuple[int, ...]
) -> None:
    assert sizes_left(batch, hosts, hosts) == sizes


@given(BATCHES, st.integers(0, 400), st.data())
def test_every_host_is_in_exactly_one_batch(batch: tuple[str, ...], hosts: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, hosts))
    sizes = sizes_left(batch, hosts, left, data.draw(st.integers(0, 8)))
    assert sum(sizes) == left
    assert all(size > 0 for size in sizes)


@given(BATCHES, st.integers(1, 400))
def test_what_is_left_after_a_batch_goes_on_as_it_was_planned(batch: tuple[str, ...], hosts: int) -> None:
    sizes = sizes_left(batch, hosts, hosts)
    assert sizes_left(batch, hosts, hosts - sizes[0], 1) == sizes[1:]


@given(BATCHES, st.integers(2, 400))
def test_a_batch_that_proved_nothing_is_followed_by_one_of_its_size(
    batch: tuple[str, ...], hosts: int
) -> None:
    first = sizes_left(batch, hosts, hosts)[0]
    again = sizes_left(batch, hosts, hosts - first, 0)
    assert not again or again[0] <= first


@given(st.lists(st.tuples(st.sampled_from(["1", "100%"]), st.integers(0, 1)), max_size=12))
def test_hosts_of_another_pace_are_a_rollout_of_their_own_in_the_inventorys_order(
    paces: list[tuple[str, int]],
) -> None:
    hosts = [
        replace(DESIRED, host=f"h{number}", pace=Pace(batch=(item,), max_failures=most))
        for number, (item, most) in enumerate(paces)
    ]
    rollouts = split_rollouts(hosts)
    assert sorted(d.host for r in rollouts for d in r.hosts) == sorted(d.host for d in hosts)
    assert len({rollout.pace for rollout in rollouts}) == len(rollouts)
    for rollout in rollouts:
        assert [d for d in hosts if d.pace == rollout.pace] == list(rollout.hosts)
    firsts = [hosts.index(rollout.hosts[0]) for rollout in rollouts]
    assert firsts == sorted(firsts)


def test_hosts_that_are_changed_all_at_once_need_no_canary() -> None:
    one, two = (replace(DESIRED, host=name, pace=Pace(batch=("1",))) for name in "ab")
    assert split_rollouts([one])[0].is_whole
    assert not split_rollouts([one, two])[0].is_whole
    assert split_rollouts([replace(one, pace=Pace()), replace(two, pace=Pace())])[0].is_whole
