"""Clients that send one thing after another, and hold the board to its word."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from tests.conftest import PASSWORD, Json, bearer, files
from tests.crash_facts import Fact, Facts
from tests.crash_memory import Change, Outcome, Outcomes, Picture, Post, Seen, Shown, State

# What a client may meet, beside success, while something is down.
CUT = "the connection is refused or cut"
STORE_DOWN = "/problems/storage-unavailable"
DATABASE_DOWN = "/problems/database-unavailable"
# Seconds in which everything is answered, whatever hangs: an image (READ_PATIENCE, and the client's
# read_timeout once it is on its way), what brings files to the store (PUT_PATIENCE and
# DELETE_PATIENCE), and the rest (a turn for the database, a new connection, command_timeout).
LOAD, STORE, ANSWER, ABANDON = 10.0 + 15, 45.0 + 5, 10.0 + 5 + 30, 5.0 + 5
SLACK = 5.0  # for a slow machine
HANG = 120.0  # After which an answer is waited for no longer.


class Answered(NamedTuple):
    """When a request was sent, how long it took, and its answer: no status if it was cut, and the
    type of its problem if it was refused."""

    request: "Request"
    sent: float
    took: float
    status: int | None = None
    problem: str | None = None


@dataclass
class Situation:
    """What all clients know: the way to the board, what is the matter with it, what they saw."""

    http: httpx.AsyncClient
    seed: int
    album: list[Picture] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    trouble: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    ending: bool = False
    restorable: bool = True  # what is deleted
    clients: list["Client"] = field(default_factory=list)
    # What can be liked and replied to: its feed, by the comment's id.
    comments: dict[int, int] = field(default_factory=dict)

    def slowest(self, what: str, began: float) -> float:
        """Count how long something took, if nothing took longer; gives the seconds."""
        took, what = time.monotonic() - began, f"ms of the slowest {what}"
        self.counts[what] = max(round(took * 1000), self.counts[what])
        return took


@dataclass(frozen=True)
class Request:
    """A request; `files` by field, and the refusals that are no fault."""

    method: str
    path: str
    form: Json | None = None
    json: Json | None = None
    files: tuple[str, Sequence[Picture]] = ("", ())
    may_be: tuple[int, ...] = ()

    def patience(self, trouble: set[str]) -> float:
        """Seconds within which the answer has to come."""
        if "/images/" in self.path:
            # The database is asked first whether its feed is deleted.
            return LOAD + (ANSWER if DATABASE_DOWN in trouble else 0) + SLACK
        fetches = self.path.endswith("/complete")
        if not self.files[1] and not fetches:
            return ANSWER + SLACK
        # What was put is taken back, for which a database that hangs is asked a second time.
        again = ABANDON if DATABASE_DOWN in trouble else 0
        return max(STORE * (1 + fetches), ANSWER + again) + SLACK

    def body(self) -> Json:
        name, pictures = self.files
        uploads = files(name, *(picture.sent for picture in pictures)) or None
        return {"data": self.form, "files": uploads, "json": self.json}


def problem_of(answer: httpx.Response) -> str | None:
    """The type of the problem that an answer is, if it is one."""
    is_problem = answer.headers.get("content-type") == "application/problem+json"
    return answer.json()["type"] if is_problem else None


class Client:
    """Somebody with an account, who keeps what was promised: `feeds`, those `hidden` that can be
    restored, `pending` images, and `facts`.

    Nobody else changes these, so it is known what they must look like.
    """

    def __init__(self, situation: Situation, account: Json, name: str) -> None:
        self.situation, self.name = situation, name
        self.id, self.headers = account["id"], bearer(account)
        self.account = {"email": account["email"], "password": PASSWORD}
        self.random = random.Random(f"{situation.seed} {name}")
        self.feeds: dict[int, Post] = {}
        self.hidden: dict[int, Post] = {}
        self.facts: Facts = {}
        self.pending: dict[int, Shown] = {}
        self.deleted: list[int] = []
        self.doubts: list[Change] = []
        self._said = 0

    def says(self, what: str) -> str:
        """Words that nobody has said before."""
        self._said += 1
        return f"{what} {self._said} of {self.name}"

    def words(self) -> Json:
        return {
            "title": self.says("Post"),
            "content": " ".join(["한글 & words."] * self.random.randint(1, 9)),
        }

    def choose(self, least: int, most: int) -> list[Picture]:
        """Some pictures of the album."""
        return self.random.choices(self.situation.album, k=self.random.randint(least, most))

    def take_feed(self) -> tuple[int, Post]:
        """One of the feeds, of which nothing is known until it is written back."""
        feed_id = self.random.choice(list(self.feeds))
        return feed_id, self.feeds.pop(feed_id)

    def take_feed_with_images(self) -> tuple[int, Post] | None:
        shown = [feed_id for feed_id, post in self.feeds.items() if post.images]
        feed_id = self.random.choice(shown) if shown else None
        return (feed_id, self.feeds.pop(feed_id)) if feed_id else None

    def take_pending(self, least: int, most: int) -> tuple[Shown, ...]:
        """Some of the pending images, likewise."""
        count = min(self.random.randint(least, most), len(self.pending))
        return tuple(map(self.pending.pop, self.random.sample(list(self.pending), count)))

    def known(self) -> set[int]:
        """The ids of all images that have been promised, and may not have been taken back."""
        return set(self.pending).union(*(change.known() for change in self.doubts))

    async def write(
        self, kind: str, request: Request, before: State, after: State, *feeds: int
    ) -> bool | None:
        """Send a change, and remember what came of it; None is not known."""
        done, answer = await self._ask(kind, request)
        change = Change({(False,): before, (True,): after}, feeds).given([done])
        if done is None:
            self._doubt(change)
        else:
            self._keep(change, answer.json() if answer else {})
        return done

    async def tell(
        self, kind: str, request: Request, what: str, fact: Fact, *, wanted: bool = True
    ) -> Json | None:
        """Send what makes a fact be so, or not; gives the answer if it was done."""
        fact = self.facts.setdefault(what, fact)
        done, answer = await self._ask(kind, request)
        if done is None:
            self.situation.counts["facts in doubt"] += 1
            fact.so = fact.so | {wanted}
        elif done:
            fact.so = {wanted}
        return answer.json() if answer else None

    async def send_form(self, form: Json, data: bytes) -> bool:
        """Send a file to the store, as a browser does; it need not be there."""
        try:
            answer = await self.situation.http.post(
                form["url"], data=form["fields"], files={"file": ("photo", data)}
            )
        except httpx.TransportError:
            return False
        if not answer.is_success and STORE_DOWN not in self.situation.trouble:
            self.situation.faults.append(f"the form: {answer.status_code} {answer.text[:300]}")
        return answer.is_success

    async def race(
        self,
        kind: str,
        requests: Sequence[Request],
        outcomes: Outcomes,
        *feeds: int,
    ) -> None:
        """Send what gets into each other's way, all at once; how it ended is seen later."""
        answers = await asyncio.gather(*(self._ask(kind, request) for request in requests))
        change = Change(outcomes, feeds).given([done for done, _ in answers])
        if not change.outcomes:
            self.situation.faults.append(f"{requests}: {[(d, a and a.text) for d, a in answers]}")
        self._doubt(change)

    def _doubt(self, change: Change) -> None:
        if len(change.outcomes) > 1:
            self.situation.counts["writes of unknown outcome"] += 1
        self.doubts.append(change)

    async def _ask(self, kind: str, request: Request) -> tuple[bool | None, httpx.Response | None]:
        counts = self.situation.counts
        counts["writes sent"] += 1
        done, answer = await self.send(request)
        if done:
            counts["writes acknowledged"] += 1
            counts[f"- {kind}"] += 1
        return done, answer

    def _keep(self, change: Change, answer: Any) -> None:
        ((which, state),) = change.outcomes.items()
        told = state.shown_by(answer) if any(which) else state
        if told is None:
            self.situation.faults.append(f"{state} was acknowledged as {answer}")
            return
        for post in told.posts:
            self.feeds[change.feeds[0] if change.feeds else answer["id"]] = post
        for post in told.hidden:
            self.hidden[change.feeds[0]] = post
        if not told.posts and not told.hidden:
            self.deleted += change.feeds
        self.pending |= {image.id: image for image in told.pending if image.id is not None}

    async def send(self, request: Request) -> tuple[bool | None, httpx.Response | None]:
        """Whether it was done (None: who knows), and the answer if it was.

        What else comes is a fault, unless what is down explains it.
        """
        situation, began, answer = self.situation, time.monotonic(), None
        situation.counts["requests sent"] += 1
        try:
            answer = await situation.http.request(
                request.method, request.path, headers=self.headers, **request.body()
            )
        except httpx.TransportError as error:
            return await self._cut(request, error)
        finally:
            took = situation.slowest("answer", began)
            if took > request.patience(situation.trouble):
                situation.faults.append(f"{request} took {took:.1f} s")
            said = () if answer is None else (answer.status_code, problem_of(answer))
            situation.answers.append(Answered(request, began, took, *said))
        if answer.status_code == 200:
            return True, answer
        if answer.status_code in request.may_be:
            situation.counts["races lost"] += 1
            return False, None
        return await self._refused(request, answer), None

    async def _cut(self, request: Request, error: httpx.TransportError) -> tuple[bool | None, None]:
        situation = self.situation
        # An image that is on its way when the store ends can only be cut off.
        on_its_way = STORE_DOWN in situation.trouble and "/images/" in request.path
        explained = CUT in situation.trouble or on_its_way
        if not explained or isinstance(error, httpx.TimeoutException):
            situation.faults.append(f"{request}: {error!r}")
        situation.counts["requests refused or cut"] += 1
        await asyncio.sleep(0.1)
        return False if isinstance(error, httpx.ConnectError) else None, None

    async def _refused(self, request: Request, answer: httpx.Response) -> bool | None:
        situation, kind = self.situation, problem_of(answer)
        explained = answer.status_code == 503 and "retry-after" in answer.headers
        if not explained or kind not in situation.trouble:
            situation.faults.append(f"{request}: {answer.status_code} {answer.text[:300]}")
        situation.counts["requests answered 503"] += 1
        await asyncio.sleep(0.1)
        # Without its store the service promises that nothing was changed; a database may have
        # gone between its commit and its answer.
        return False if kind == STORE_DOWN else None

    def settle(self, seen: Seen) -> None:
        """See how what was in doubt turned out; half of a change is no outcome at all."""
        for change in self.doubts:
            fitting = change.fitting(seen)
            assert fitting, f"neither done nor not done is {change}: there is {change.about(seen)}"
            self._remember(fitting[0], change)
        self.doubts.clear()

    def _remember(self, outcome: Outcome, change: Change) -> None:
        if len(change.outcomes) > 1:
            self.situation.counts[f"- of these {'done' if outcome.done else 'not done'}"] += 1
        self.feeds |= outcome.posts
        self.hidden |= outcome.hidden
        self.pending |= outcome.pending
        left = outcome.posts.keys() | outcome.hidden.keys()
        self.deleted += [feed_id for feed_id in change.feeds if feed_id not in left]
