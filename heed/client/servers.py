"""Which server each attempt of a request goes to, and whether and when there is another attempt.

gRPC's own retries end after five attempts, do not cover streams, and stay on one channel: they cannot go over to
another server, nor wait as long as a busy server asks for. So both clients retry by the rules in this module.
"""

import random
import time
from collections.abc import Sequence
from itertools import count

from grpc import StatusCode

from heed.client.wire import CallError

ROUNDS = 5  # of attempts while servers are UNAVAILABLE, each server once in a round
FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between rounds, doubling
SHORTEST_WAIT = 0.01  # seconds, even if a busy server asks for less
LONGEST_TIMEOUT = 1e9  # seconds, which gRPC can carry; infinity it cannot
COOLDOWN = 1.0  # seconds for which a server that was UNAVAILABLE is tried only after the others

# A stopping server, or a balancer in front of it, may end calls with CANCELLED that nobody here has cancelled.
RETRY_ELSEWHERE = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)


class Servers:
    """Servers, known by their index, that get requests in turn (round robin). Safe to use from several threads."""

    def __init__(self, number: int) -> None:
        self._available_from = [0.0] * number  # by time.monotonic
        self._turns = count()

    def attempts(self, timeout: float) -> "Attempts":
        """For one request. `timeout` in seconds from now, for all attempts together."""
        now, timeout = time.monotonic(), min(timeout, LONGEST_TIMEOUT)
        indices = range(len(self._available_from))
        available = [index for index in indices if self._available_from[index] <= now] or list(indices)
        first = next(self._turns) % len(available)
        cooling = [index for index in indices if index not in available]
        return Attempts(self, available[first:] + available[:first] + cooling, now + timeout)

    def cool_down(self, server: int) -> None:
        self._available_from[server] = time.monotonic() + COOLDOWN


class Attempts:
    """The attempts of one request."""

    def __init__(self, servers: Servers, order: Sequence[int], deadline: float) -> None:
        """`order`: the servers' indices; `deadline` by time.monotonic."""
        self._servers, self._order, self._deadline = servers, order, deadline
        self._failed = self._unavailable = 0  # attempts

    @property
    def server(self) -> int:
        """The index of the server that gets the next attempt."""
        return self._order[self._failed % len(self._order)]

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def wait_after(self, error: CallError) -> float:
        """Seconds until the next attempt.

        Raises:
            CallError: the given error, if another attempt is of no use or would be too late.
        """
        if error.pushback is not None and error.pushback < 0:  # gRFC A6: never
            raise error
        if error.code in RETRY_ELSEWHERE:
            wait = self._wait_for_another_server(error)
        elif error.code is StatusCode.RESOURCE_EXHAUSTED and error.pushback is not None:
            wait = max(error.pushback, SHORTEST_WAIT)
        else:
            raise error
        if wait >= self.seconds_left:
            raise error
        self._failed += 1
        return wait

    def _wait_for_another_server(self, error: CallError) -> float:
        """0 until each server had an attempt; after a round what the error asks for, or a growing wait."""
        self._servers.cool_down(self.server)
        self._unavailable += 1
        rounds, within_round = divmod(self._unavailable, len(self._order))
        if within_round:
            return 0.0
        if error.pushback is not None:
            return max(error.pushback, SHORTEST_WAIT)
        if rounds >= ROUNDS:
            raise error
        return min(FIRST_WAIT * 2.0 ** (rounds - 1), LONGEST_WAIT) * random.uniform(0.8, 1.2)
