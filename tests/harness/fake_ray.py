"""Ray without processes: workers live in this one and do what they are asked when it is fetched."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayActorError(Exception):
    pass


class OutOfMemoryError(Exception):
    """Of Ray's own watch over a node's memory, which kills workers."""


class ObjectLostError(Exception):
    pass


class RayTaskError(Exception):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Promise:
    act: Any
    actor: Any = None
    found: list = field(default_factory=list)

    def get(self):
        if not self.found:
            self.found.append(self.act())
        return self.found[0]


def _copied(promise):
    """As another process has it."""
    return pickle.loads(pickle.dumps(promise.get()))


@dataclass(eq=False)
class Actor:
    ray: FakeRay
    worker: Any
    cards: int
    alive: bool = True

    def _ask(self, name, *arguments):
        def act():
            if not self.alive:
                raise RayActorError("dead")
            key = (arguments[0].name, arguments[2]) if name == "measure" else (name,)
            self.ray.asked.append((*key, self.cards))
            if error := self.ray.errors.get(key, []):
                if isinstance(raised := error.pop(), RayActorError | OutOfMemoryError):
                    self.alive = False
                raise raised
            given = [_copied(each) if isinstance(each, Promise) else each for each in arguments]
            try:
                return getattr(self.worker, name)(*given)
            except Exception as error:
                raise RayTaskError(error) from error

        return Promise(act, self)

    def __getattr__(self, name):
        def ask(*arguments):
            return self._ask(name, *arguments)

        def ask_for_two(*arguments):
            both = self._ask(name, *arguments)
            return Promise(lambda: both.get()[0], self), Promise(lambda: both.get()[1])

        two = SimpleNamespace(remote=ask_for_two)
        return SimpleNamespace(remote=ask, options=lambda num_returns: two)


@dataclass
class FakeRay:
    """``errors`` maps what is asked (variant and task) to what is raised, the last first."""

    resources: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 2}])
    errors: dict[tuple[str, ...], list[Exception]] = field(default_factory=dict)
    asked: list[tuple] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    most_cards: int = 0
    """Ever held at a time."""
    exceptions = SimpleNamespace(
        RayActorError=RayActorError,
        OutOfMemoryError=OutOfMemoryError,
        ObjectLostError=ObjectLostError,
        RayTaskError=RayTaskError,
    )

    def init(self, **where):
        self.where = where

    def shutdown(self):
        self.actors.clear()

    def nodes(self):
        return [{"Alive": True, "Resources": each} for each in self.resources]

    def remote(self, num_cpus, num_gpus):
        def start(worker):
            self.actors.append(Actor(self, worker(), num_gpus))
            self.most_cards = max(self.most_cards, sum(each.cards for each in self.actors))
            return self.actors[-1]

        return lambda worker: SimpleNamespace(remote=lambda: start(worker))

    def kill(self, actor):
        actor.alive = False
        if actor in self.actors:
            self.actors.remove(actor)

    def put(self, value):
        return Promise(lambda: value)

    def wait(self, promises, timeout):
        """Workers take turns."""
        first = {}
        for promise in promises:
            first.setdefault(promise.actor, promise)
        self.turn = getattr(self, "turn", 0) + 1
        ready = [*first.values()]
        return [ready[self.turn % len(ready)]], []

    def get(self, promise):
        return promise.get()
