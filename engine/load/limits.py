"""Requests and tokens per minute: a worker's exact share of a target's limits. Integers only, and no clock.

Buckets reserve: `take` never says no, it says how long to wait, and the next one queues behind. The law, for each
limit and each worker: in any window of t the amount charged is at most share * t + burst. The burst of all workers
together is `burst_s` seconds of the limit in whole requests or tokens, but

  - each worker has at least one request of it: plans are given no more workers than that (`most_workers`);
  - a request of more tokens than the burst goes when the bucket is full and leaves it in debt, or it could never go:
    then the burst is that one request.

Tokens are charged by estimate when the request goes, and corrected when its usage is known, at that moment and no
earlier: what comes back counts against the charges of the window it comes back in.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Final

from ..plan.plan import SECOND, Plan, Target
from .rate import exact

MINUTE_NS: Final = 60 * SECOND


class Bucket:
    """One limit: `amount` per `period_ns`, at most `burst` saved up. Full at first, until `empty` is called."""

    __slots__ = ("_back", "_burst", "_charged", "_cost", "_empty_at", "_scale", "_waiting")

    def __init__(self, amount: int, period_ns: int, burst: int) -> None:
        # Time in 1/amount ns, so that one unit costs an integer of them: nothing is ever rounded away.
        self._scale = amount
        self._cost = period_ns
        self._burst = burst * period_ns
        self._empty_at = -(1 << 200)  # when the bucket was, or will be, empty
        self._charged = 0  # all charges so far
        self._back = 0  # of them, settled and not yet given back
        # Charges whose moment has not come: (at_ns, when it is - charges before it), the second ever smaller.
        self._waiting: deque[tuple[int, int]] = deque()

    def empty(self, now_ns: int) -> None:
        """Takes out what has been saved up until now."""
        self._empty_at = max(self._empty_at, now_ns * self._scale)

    def advance(self, now_ns: int) -> None:
        """Returns to the bucket what was settled, as far as the bucket can hold it.

        It holds what a bucket that is full now would have left after those charges whose moment is still to come:
        more would be spent beside them, as a second burst.
        """
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ns:
            waiting.popleft()
        if self._back:
            full = waiting[0][1] + self._charged if waiting else now_ns * self._scale
            self._empty_at = max(self._empty_at - self._back, min(self._empty_at, full - self._burst))
            self._back = 0

    def ready_ns(self, from_ns: int, amount: int) -> int:
        """The first moment from `from_ns` on at which `amount` can go."""
        needed = min(amount * self._cost, self._burst)
        return max(from_ns, -(-(self._empty_at + needed) // self._scale))

    def charge(self, at_ns: int, amount: int) -> None:
        """Takes `amount` out at `at_ns`, which is not before any other charge."""
        at, cost = at_ns * self._scale, amount * self._cost
        self._empty_at = max(self._empty_at, at - self._burst) + cost
        waiting, rank = self._waiting, at - self._charged
        while waiting and waiting[-1][1] <= rank:
            waiting.pop()
        waiting.append((at_ns, rank))
        self._charged += cost

    def settle(self, estimated: int, real: int) -> None:
        """Corrects a charge whose moment has come: too much comes back, what was too little is owed."""
        difference = (estimated - real) * self._cost
        if difference > 0:
            self._back += difference
        else:
            self._empty_at -= difference

    def take(self, now_ns: int, amount: int) -> int:
        """Reserves `amount`; how many ns to wait before using it."""
        self.advance(now_ns)
        at_ns = self.ready_ns(now_ns, amount)
        self.charge(at_ns, amount)
        return at_ns - now_ns


class TargetLimits:
    """All limits of one target in one worker: a request goes when each of them lets it, in the order of asking.

    Every bucket is charged for the moment the request goes. Charged one by one, a request limit would be paid while a
    token limit still holds the requests back, and they would then all go at once.
    """

    __slots__ = ("_last_ns", "_requests", "_tokens")

    def __init__(self, requests: list[Bucket], tokens: list[Bucket]) -> None:
        self._requests = requests
        self._tokens = tokens
        self._last_ns = 0

    def take(self, now_ns: int, tokens: int) -> int:
        """Reserves one request of `tokens` tokens; how many ns to wait before sending it."""
        at_ns = max(now_ns, self._last_ns)
        charges = [(bucket, 1) for bucket in self._requests] + [(bucket, tokens) for bucket in self._tokens]
        for bucket, charged in charges:
            bucket.advance(now_ns)
            at_ns = max(at_ns, bucket.ready_ns(at_ns, charged))
        for bucket, charged in charges:
            bucket.charge(at_ns, charged)
        self._last_ns = at_ns
        return at_ns - now_ns

    def settle(self, estimated: int, real: int) -> None:
        """Corrects the tokens of a request."""
        for bucket in self._tokens:
            bucket.settle(estimated, real)

    def empty(self, now_ns: int) -> None:
        """Takes out what has been saved up: for a worker that takes over from a dead one."""
        for bucket in (*self._requests, *self._tokens):
            bucket.empty(now_ns)


def limits_of(plan: Plan, target: Target, worker: int, workers: int) -> TargetLimits | None:
    """This worker's share of the limits of one target; None without limits.

    `limits` of the plan hold for each target by itself, beside the target's own; where both are given both hold.
    """
    requests = _shares(worker, workers, (target.rpm, target.burst_s), (plan.limits.rpm, plan.limits.burst_s))
    tokens = _shares(worker, workers, (target.tpm, target.burst_s), (plan.limits.tpm, plan.limits.burst_s))
    return TargetLimits(requests, tokens) if requests or tokens else None


def most_workers(plan: Plan) -> int | None:
    """The most workers that can each have one request of the smallest burst; None without request limits."""
    limits = [(target.rpm, target.burst_s) for target in plan.targets]
    limits.append((plan.limits.rpm, plan.limits.burst_s))
    return min((burst_of(rpm, burst_s) for rpm, burst_s in limits if rpm is not None), default=None)


def burst_of(per_minute: float, burst_s: float) -> int:
    """Whole requests or tokens in `burst_s` seconds of a limit, at least one."""
    return max(1, int(exact(per_minute) * exact(burst_s) / 60))


def _shares(worker: int, workers: int, *limits: tuple[float | None, float]) -> list[Bucket]:
    shares = [share_of(limit, burst_s, worker, workers) for limit, burst_s in limits if limit is not None]
    return [Bucket(rate.numerator, rate.denominator, burst) for rate, burst in shares]


def share_of(per_minute: float, burst_s: float, worker: int, workers: int) -> tuple[Fraction, int]:
    """One worker's exact share of a limit: (per ns, burst)."""
    burst = burst_of(per_minute, burst_s)
    return exact(per_minute) / (MINUTE_NS * workers), max(1, burst // workers + (worker < burst % workers))
