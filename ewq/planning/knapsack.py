"""One choice from every group, at the least total cost within a total weight, exactly.

Groups are tensors and choices their types; cost is expected divergence and weight bytes, or the
other way round. A Lagrange multiplier gives a plan that is nearly best and a proof how nearly; what
could be better is little, and is searched through (Pisinger 1995, "A minimal algorithm for the
multiple-choice knapsack problem").
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
RELATIVE = 1e-12
"""Differences of costs below this share of their total are rounding."""
SCOUTED_STATES = 512
"""States kept by the first, incomplete search, whose plan narrows the second one."""


@dataclass(frozen=True)
class Choice:
    """One way to settle a group."""

    cost: float
    weight: float


def choose(groups: Sequence[Sequence[Choice]], limit: float) -> list[int] | None:
    """The index of the choice of every group, of which none is empty; of equal plans any one.

    ``None`` where even the lightest choices exceed the limit, the most total weight.
    """
    places = [_undominated(group) for group in groups]
    width = max(map(len, places))
    # Shorter rows repeat their last choice.
    rows = [
        [group[place] for place in kept] + [group[kept[-1]]] * (width - len(kept))
        for group, kept in zip(groups, places, strict=True)
    ]
    costs = np.array([[choice.cost for choice in row] for row in rows], dtype=np.float64)
    weights = np.array([[choice.weight for choice in row] for row in rows], dtype=np.float64)
    room = limit - float(weights[:, 0].sum())
    if room < 0:
        return None
    found = _Search(costs, weights - weights[:, :1], room).best()
    return [kept[index] for kept, index in zip(places, found, strict=True)]


def _undominated(group: Sequence[Choice]) -> list[int]:
    """A group's choices by rising weight and falling cost; what is heavier and no cheaper goes."""
    kept: list[int] = []
    for place in sorted(range(len(group)), key=lambda i: (group[i].weight, group[i].cost)):
        if not kept or group[place].cost < group[kept[-1]].cost:
            kept.append(place)
    return kept


class _Search:
    """``costs`` and ``weights`` are ``[groups, choices]``, weights counted from the lightest.

    A plan is ``[groups]``, a column for each row.
    """

    def __init__(self, costs: Floats, weights: Floats, room: float) -> None:
        self._costs, self._weights, self._room = costs, weights, room
        self._rows = np.arange(len(costs))
        self._price = self._find_price()
        priced = costs + self._price * weights
        # What a choice costs beyond the best one of its group at this price.
        self._extra: Floats = priced - priced.min(axis=1, keepdims=True)
        self._start: Places = priced.argmin(axis=1)

    def best(self) -> list[int]:
        plan = self._filled(self._start.copy())
        scouted = self._search(self._gap(plan), SCOUTED_STATES)
        plan = min((plan, plan if scouted is None else scouted), key=self._gap)
        found = self._search(self._gap(plan), None)
        return [int(choice) for choice in (plan if found is None else found)]

    def _find_price(self) -> float:
        """The least price of weight at which the plan of the best choices fits."""
        if self._fits(0.0):
            return 0.0
        # Cost saved for each unit of weight, between all pairs of choices.
        saved = self._costs[:, :, None] - self._costs[:, None, :]
        added = self._weights[:, None, :] - self._weights[:, :, None]
        # Just above a slope the heavier of its two choices is given up.
        prices = np.unique(saved[added > 0] / added[added > 0]) * (1 + RELATIVE)
        return float(prices[bisect_left(prices, True, hi=len(prices) - 1, key=self._fits)])

    def _fits(self, price: float) -> bool:
        cheapest = (self._costs + price * self._weights).argmin(axis=1)
        return self._weight(cheapest) <= self._room

    def _weight(self, plan: Places) -> float:
        return float(self._weights[self._rows, plan].sum())

    def _gap(self, plan: Places) -> float:
        """How far a plan can be from the best: its extras and the price of the room it leaves."""
        extra = float(self._extra[self._rows, plan].sum())
        return extra + self._price * (self._room - self._weight(plan))

    def _filled(self, plan: Places) -> Places:
        """Spend what room is left, each time where it saves the most cost for its weight."""
        while True:
            room = self._room - self._weight(plan)
            saved = self._costs[self._rows, plan][:, None] - self._costs
            added = self._weights - self._weights[self._rows, plan][:, None]
            possible = (added > 0) & (added <= room)
            gain = np.divide(saved, added, where=possible, out=np.zeros_like(saved))
            group, choice = divmod(int(gain.argmax()), gain.shape[1])
            if gain[group, choice] <= 0:
                return plan
            plan[group] = choice

    def _search(self, gap: float, most_states: int | None) -> Places | None:
        """The best plan with less than ``gap``, if there is one.

        States are partial plans, ``[2, states]``: the weight beyond that of the starting plan, and
        the extras. A plan better than the one known has extras below the gap and, in the end, no
        more weight than fits and no less than the gap can pay for.
        """
        gap *= 1 - RELATIVE
        close = (self._extra < gap) & (np.diff(self._weights, axis=1, prepend=-1) > 0)
        open_groups = [(row, np.flatnonzero(close[row])) for row in self._rows[close.sum(1) > 1]]
        moves = [self._weights[g, c] - self._weights[g, self._start[g]] for g, c in open_groups]
        room = self._room - self._weight(self._start)
        lightest = _sums_from_behind([float(move.min()) for move in moves])
        heaviest = _sums_from_behind([float(move.max()) for move in moves])
        states = np.zeros((2, 1))
        trail: list[tuple[int, Places, Places]] = []
        for step, (group, choices) in enumerate(open_groups):
            added = np.stack([moves[step], self._extra[group, choices]])
            states = (states[:, :, None] + added[:, None, :]).reshape(2, -1)
            weights, extras = states
            unspent = room - weights - heaviest[step + 1]
            worst = extras + self._price * np.maximum(unspent, 0.0)
            fits = weights + lightest[step + 1] <= room
            order = self._front(states, np.flatnonzero(fits & (worst < gap)), most_states)
            states = states[:, order]
            parents, taken = np.divmod(order, len(choices))
            trail.append((group, parents, choices[taken]))
        weights, extras = states
        gaps = extras + self._price * (room - weights)
        good = np.flatnonzero((weights <= room) & (gaps < gap))
        if not good.size:
            return None
        state, plan = good[np.argmin(gaps[good])], self._start.copy()
        for group, parents, taken in reversed(trail):
            plan[group] = taken[state]
            state = parents[state]
        return plan

    def _front(self, states: Floats, among: Places, most: int | None) -> Places:
        """Places that no other state beats in both weight and cost."""
        weights, extras = states[:, among]
        costs = extras - self._price * weights
        order = np.lexsort((costs, weights))
        least = np.minimum.accumulate(costs[order])
        better = np.concatenate([[True], costs[order][1:] < least[:-1]])[: len(order)]
        order = order[better]
        if most is not None and len(order) > most:
            order = np.sort(order[np.argpartition(extras[order], most)[:most]])
        return among[order]


def _sums_from_behind(values: Sequence[float]) -> list[float]:
    return list(accumulate(reversed(values), initial=0.0))[::-1]
