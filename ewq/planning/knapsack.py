"""One choice from every group, at the least total cost within a total weight, exactly.

Groups are tensors and choices their types; cost is expected divergence and weight bytes, or the
other way round. A Lagrange multiplier gives a plan that is nearly best and a proof how nearly; what
could be better is little, and is searched through (Pisinger 1995, "A minimal algorithm for the
multiple-choice knapsack problem").
"""

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
    tables = [_Table(group) for group in groups]
    room = limit - sum(table.lightest for table in tables)
    if room < 0:
        return None
    found = _Search(tables, room).best()
    return [table.places[index] for table, index in zip(tables, found, strict=True)]


class _Table:
    """A group's choices by rising weight, counted from the lightest, and falling cost."""

    def __init__(self, group: Sequence[Choice]) -> None:
        self.places: list[int] = []
        for place in sorted(range(len(group)), key=lambda i: (group[i].weight, group[i].cost)):
            # What is heavier and no cheaper is left out.
            if not self.places or group[place].cost < group[self.places[-1]].cost:
                self.places.append(place)
        self.lightest = group[self.places[0]].weight
        self.costs = np.array([group[place].cost for place in self.places], dtype=np.float64)
        self.weights = np.array([group[i].weight for i in self.places], dtype=np.float64)
        self.weights -= self.weights[0]

    def cheapest(self, price: float) -> int:
        """The best choice where a unit of weight costs ``price``; of equals the lightest."""
        return int(np.argmin(self.costs + price * self.weights))


class _Search:
    def __init__(self, tables: Sequence[_Table], room: float) -> None:
        self._tables, self._room = tables, room
        self._price = self._find_price()
        priced = [table.costs + self._price * table.weights for table in tables]
        # What a choice costs beyond the best one of its group at this price.
        self._extra: list[Floats] = [costs - costs.min() for costs in priced]
        self._start = [int(costs.argmin()) for costs in priced]

    def best(self) -> list[int]:
        plan = self._filled(list(self._start))
        scouted = self._search(self._gap(plan), SCOUTED_STATES)
        plan = min((plan, scouted or plan), key=self._gap)
        return self._search(self._gap(plan), None) or plan

    def _find_price(self) -> float:
        """The least price of weight at which the plan of the best choices fits."""
        if self._weight([table.cheapest(0.0) for table in self._tables]) <= self._room:
            return 0.0
        slopes = np.concatenate([_slopes(table) for table in self._tables])
        prices = np.unique(slopes[slopes > 0])
        low, high = -1, len(prices) - 1
        while high - low > 1:
            middle = (low + high) // 2
            # Just above a slope the heavier of its two choices is given up.
            price = float(prices[middle]) * (1 + RELATIVE)
            fits = self._weight([table.cheapest(price) for table in self._tables]) <= self._room
            low, high = (low, middle) if fits else (middle, high)
        return float(prices[high]) * (1 + RELATIVE)

    def _weight(self, plan: Sequence[int]) -> float:
        return float(sum(t.weights[c] for t, c in zip(self._tables, plan, strict=True)))

    def _gap(self, plan: Sequence[int]) -> float:
        """How far a plan can be from the best: its extras and the price of the room it leaves."""
        extra = sum(extra[c] for extra, c in zip(self._extra, plan, strict=True))
        return float(extra + self._price * (self._room - self._weight(plan)))

    def _filled(self, plan: list[int]) -> list[int]:
        """Spend what room is left, each time where it saves the most cost for its weight."""
        room = self._room - self._weight(plan)
        while True:
            steps = [
                ((t.costs[c] - t.costs[n]) / (t.weights[n] - t.weights[c]), g, n)
                for g, (t, c) in enumerate(zip(self._tables, plan, strict=True))
                for n in range(c + 1, len(t.costs))
                if t.weights[n] - t.weights[c] <= room
            ]
            if not steps:
                return plan
            _, group, choice = max(steps)
            weights = self._tables[group].weights
            room -= weights[choice] - weights[plan[group]]
            plan[group] = choice

    def _search(self, gap: float, most_states: int | None) -> list[int] | None:
        """The best plan with less than ``gap``, if there is one.

        States are partial plans, ``[2, states]``: the weight beyond that of the starting plan, and
        the extras. A plan better than the one known has extras below the gap and, in the end, no
        more weight than fits and no less than the gap can pay for.
        """
        gap *= 1 - RELATIVE
        open_groups = [
            (group, np.flatnonzero(extra < gap))
            for group, extra in enumerate(self._extra)
            if np.count_nonzero(extra < gap) > 1
        ]
        moves = [
            self._tables[g].weights[c] - self._tables[g].weights[self._start[g]]
            for g, c in open_groups
        ]
        room = self._room - self._weight(self._start)
        lightest = _sums_from_behind([float(move.min()) for move in moves])
        heaviest = _sums_from_behind([float(move.max()) for move in moves])
        states = np.zeros((2, 1))
        trail: list[tuple[int, Places, Places]] = []
        for step, (group, choices) in enumerate(open_groups):
            added = np.stack([moves[step], self._extra[group][choices]])
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
        state, plan = good[np.argmin(gaps[good])], list(self._start)
        for group, parents, taken in reversed(trail):
            plan[group] = int(taken[state])
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


def _slopes(table: _Table) -> Floats:
    """Cost saved for each unit of weight, between all pairs of choices."""
    saved = table.costs[:, None] - table.costs[None, :]
    weight = table.weights[None, :] - table.weights[:, None]
    return (saved[weight > 0] / weight[weight > 0]).ravel()


def _sums_from_behind(values: Sequence[float]) -> list[float]:
    return list(accumulate(reversed(values), initial=0.0))[::-1]
