"""Which server is asked, and whether and when again.

gRPC's own retries end after five attempts, do not cover streams, and stay on one channel: they cannot go over to
another server, nor wait as long as a busy server says. So both clients repeat calls themselves, by what stands here.
"""

import random
import time
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Generic, TypeVar

from grpc import StatusCode

from heed.client.wire import CallError

ROUNDS = 5  # of attempts while servers are UNAVAILABLE, each server once in a round
FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between rounds, doubling
SHORTEST_WAIT = 0.01  # seconds, whatever a busy server says
FOREVER = 1e9  # seconds, which gRPC can carry; infinity it cannot
REST = 1.0  # seconds for which a server that was UNAVAILABLE is asked after the others

# CANCELLED is how a stopping server, or a balancer before it, may end what nobody here has cancelled.
GONE = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)

Door = TypeVar("Door")


class Server(Generic[Door]):
    """One server, and how to ask it."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.rests_until = 0.0  # on time.monotonic's clock


class Servers(Generic[Door]):
    """Servers that are asked in turn. Safe to use from several threads."""

    def __init__(self, doors: Iterable[Door]) -> None:
        self.each = [Server(door) for door in doors]
        self._turns = count()

    def turn(self, timeout: float) -> "Turn[Door]":
        """For one request that has so many seconds."""
        now, timeout = time.monotonic(), min(timeout, FOREVER)
        awake = [server for server in self.each if server.rests_until <= now] or self.each
        first = next(self._turns) % len(awake)
        resting = [server for server in self.each if server not in awake]
        return Turn(awake[first:] + awake[:first] + resting, now + timeout)


class Turn(Generic[Door]):
    """One request's way through the servers."""

    def __init__(self, order: Sequence[Server[Door]], until: float) -> None:
        self._order, self._until = order, until
        self._asked = self._unavailable = 0

    @property
    def door(self) -> Door:
        """Whom to ask now."""
        return self._order[self._asked % len(self._order)].door

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._until - time.monotonic())

    def wait_after(self, error: CallError) -> float:
        """Seconds until the next server is to be asked.

        Raises:
            CallError: the very error, where asking again is of no use or would be too late.
        """
        if error.pushback is not None and error.pushback < 0:  # gRFC A6: never
            raise error
        if error.code in GONE:
            wait = self._wait_for_another(error)
        elif error.code is StatusCode.RESOURCE_EXHAUSTED and error.pushback is not None:
            wait = max(error.pushback, SHORTEST_WAIT)
        else:
            raise error
        if wait >= self.left:
            raise error
        self._asked += 1
        return wait

    def _wait_for_another(self, error: CallError) -> float:
        """None, until all have been asked. Then as long as this one says, or a growing while for some rounds."""
        self._order[self._asked % len(self._order)].rests_until = time.monotonic() + REST
        self._unavailable += 1
        rounds, within = divmod(self._unavailable, len(self._order))
        if within:
            return 0.0
        if error.pushback is not None:
            return max(error.pushback, SHORTEST_WAIT)
        if rounds >= ROUNDS:
            raise error
        return min(FIRST_WAIT * 2.0 ** (rounds - 1), LONGEST_WAIT) * random.uniform(0.8, 1.2)
