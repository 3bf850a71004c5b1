"""The page of `grpo label`: it shows the answers to a prompt, and keeps what a labeller says about them.

The answers are hostile, as in `grpo view`: invisible characters are sent by their names, and the page's script inserts
texts only as text. Every request needs the token, because it may write.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from grpo.labelling.items import LabelItem
from grpo.labelling.labels import Label, LabelFile, compare_labellers, labellers_of, read_labels
from grpo.view.guards import guarded_app, json_response
from grpo.visible import visible

_TYPES = {"label.html": "text/html", "label.css": "text/css", "label.js": "text/javascript"}
_LARGEST_BODY = 1 << 16


class Labelling:
    """The items of a labeller: which come next, and what he said."""

    def __init__(self, items: Sequence[LabelItem], file: LabelFile, labeller: str) -> None:
        """Continue where the file ends.

        Args:
            items: items in the order in which they are shown.
            file: file of the labels.
            labeller: name of the labeller.
        """
        self._items, self._file, self.labeller = {item.id: item for item in items}, file, labeller
        self._lock = threading.Lock()
        mine = [label.id for label in read_labels(file.path) if label.labeller == labeller]
        self._done = [item for item in mine if item in self._items]

    def state(self) -> dict[str, Any]:
        """What the page shows: the next item, progress, and the agreement with other labellers."""
        with self._lock:
            done = set(self._done)
            left = next((item for item in self._items.values() if item.id not in done), None)
        labels = read_labels(self._file.path)
        others = [name for name in labellers_of(labels) if name != self.labeller]
        return {
            "labeller": visible(self.labeller),
            "done": len(done),
            "total": len(self._items),
            "item": None if left is None else self._shown(left),
            "agreement": [visible(str(compare_labellers(labels, self.labeller, name))) for name in others],
        }

    def add(self, item: str, places: Sequence[Sequence[int]]) -> None:
        """Keep a label.

        Args:
            item: id of the item.
            places: numbers of the shown answers, from 1, in each place; empty to skip the item.

        Raises:
            LookupError: there is no such item.
            ValueError: the places do not hold each answer once.
        """
        if item not in self._items:
            raise LookupError(f"there is no item {item!r:.40}; reload the page")
        order = self._order(self._items[item])
        numbers = list(itertools.chain.from_iterable(places))
        if places and (sorted(numbers) != list(range(1, len(order) + 1)) or not all(places)):
            raise ValueError(f"a label must place each of the {len(order)} answers once, got {places!r:.80}")
        named = tuple(tuple(order[number - 1] for number in place) for place in places)
        with self._lock:
            self._file.add(Label(item, self.labeller, self._items[item].prompt, named))
            if item not in self._done:
                self._done.append(item)

    def back(self) -> None:
        """Take the last label back, so that its item comes next."""
        with self._lock:
            if self._done:
                self._file.take_back(self._done.pop(), self.labeller)

    def _order(self, item: LabelItem) -> list[str]:
        # Each labeller sees another order, so that the first place favours no answer.
        return random.Random(f"{self.labeller}\x00{item.id}").sample(item.answers, len(item.answers))

    def _shown(self, item: LabelItem) -> dict[str, Any]:
        return {
            "id": item.id,
            "prompt": visible(item.prompt),
            "answers": [visible(answer) for answer in self._order(item)],
        }


def make_label_app(labelling: Labelling, *, token: str, hosts: Sequence[str] = ()) -> FastAPI:
    """Make the application that serves the page.

    Args:
        labelling: items and labels.
        token: secret that the browser must send.
        hosts: host names that requests may use, besides `localhost` and addresses.
    """
    app = guarded_app(hosts=hosts, token=token, command="grpo label")

    @app.get("/")
    def root() -> Response:
        return _asset("label.html")

    @app.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in _TYPES:
            raise HTTPException(404, "no such file")
        return _asset(name)

    @app.get("/api/state")
    def state() -> Response:
        return json_response(labelling.state())

    @app.post("/api/label")
    async def label(request: Request) -> Response:
        given = await _body(request)
        labelling.add(*_label_in(given))
        return json_response(labelling.state())

    @app.post("/api/back")
    async def back(request: Request) -> Response:
        await _body(request)
        labelling.back()
        return json_response(labelling.state())

    return app


def _label_in(given: Mapping[str, Any]) -> tuple[str, list[list[int]]]:
    """The id and the places of a label that a browser sent.

    Raises:
        ValueError: they have another form.
    """
    item, places = given.get("id"), given.get("places")
    whole = isinstance(places, list) and all(isinstance(place, list) for place in places)
    # True is a number for Python.
    if not isinstance(item, str) or not whole or any(type(n) is not int for place in places or () for n in place):
        raise ValueError("a label needs an id and places, lists of numbers of answers")
    return item, places or []


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request that may write.

    Browsers send this content type from another site only after a question, which no page of this server answers.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "send application/json")
    body = await request.body()
    if len(body) > _LARGEST_BODY:
        raise HTTPException(413, "a label has a few hundred characters")
    given = await request.json()
    if not isinstance(given, dict):
        raise ValueError("send a JSON object")
    return given


def _asset(name: str) -> Response:
    text = resources.files("grpo.labelling").joinpath("templates", name).read_text(encoding="utf-8")
    return Response(text, media_type=f"{_TYPES[name]}; charset=utf-8")
