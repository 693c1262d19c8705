"""What a client remembers: what it was promised, and what may or may not have happened."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from tests.conftest import Json

# The digest of what lies at each URL; one at which nothing lies has none.
Digests = dict[str, str]


@dataclass(frozen=True, eq=False)
class Picture:
    """A file to send, and digests of what is kept of it: the image, and its variants."""

    sent: bytes = field(repr=False)
    digests: tuple[str, ...]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def urls_of(image: Json) -> tuple[str, ...]:
    """The URLs of an image and of its variants."""
    return image["url"], *(variant["url"] for variant in image["variants"])


@dataclass(frozen=True)
class Shown:
    """An image that must be there: what it is, its words, and where, once that is known."""

    picture: Picture
    alt: str = ""
    id: int | None = None
    urls: tuple[str, ...] = ()

    def found(self, image: Json, digests: Digests | None = None) -> Self | None:
        """This with id and URLs, if that is what the image is; with `digests`, its bytes too."""
        urls = urls_of(image)
        if self.id not in (None, image["id"]) or self.alt != image["alt"]:
            return None
        if self.urls not in ((), urls) or len(urls) != len(self.picture.digests):
            return None
        if digests is not None and tuple(map(digests.get, urls)) != self.picture.digests:
            return None
        return replace(self, id=image["id"], urls=urls)


def all_found(
    images: Sequence[Shown], shown: Sequence[Json], digests: Digests | None = None
) -> tuple[Shown, ...] | None:
    """These images, if they are those, in this order."""
    if len(images) != len(shown):
        return None
    pairs = zip(images, shown, strict=True)
    found = tuple(each for image, one in pairs if (each := image.found(one, digests)))
    return found if len(found) == len(images) else None


@dataclass(frozen=True)
class Post:
    """What a feed must look like. Whatever is written has a title that nothing else ever has."""

    title: str
    content: str
    images: tuple[Shown, ...]

    def found(self, feed: Json, digests: Digests | None = None) -> Self | None:
        """This post with ids and URLs, if that is what the feed is; with `digests`, its bytes."""
        if (feed["title"], feed["content"]) != (self.title, self.content):
            return None
        if feed["image_urls"] != [image["url"] for image in feed["images"]]:
            return None
        images = all_found(self.images, feed["images"], digests)
        return None if images is None else replace(self, images=images)

    def altered(self, image: Shown, altered: Shown | None) -> Self:
        """With an image altered, or without it."""
        images = (altered if each == image else each for each in self.images)
        return replace(self, images=tuple(each for each in images if each))


@dataclass(frozen=True)
class Seen:
    """What is there: all feeds by id, those that a client can restore, as they were, the client's
    images that no feed shows, and the bytes of all."""

    feeds: dict[int, Json]
    hidden: dict[int, Json]
    pending: dict[int, Json]
    digests: Digests


@dataclass(frozen=True)
class State:
    """What is so of some feeds and of some pending images: these, and no others of them.

    `hidden` are feeds that are deleted and can be restored.
    """

    posts: tuple[Post, ...] = ()
    pending: tuple[Shown, ...] = ()
    hidden: tuple[Post, ...] = ()

    def shown_by(self, answer: Any) -> Self | None:
        """This state with what an answer tells of it, if it can be true beside that answer."""
        if isinstance(answer, list):
            pending = all_found(self.pending, answer)
            return None if pending is None else replace(self, pending=pending)
        if "title" in answer:
            posts = tuple(found for post in self.posts if (found := post.found(answer)))
            return replace(self, posts=posts) if posts else None
        if "url" in answer:
            told = {i: i.found(answer) for i in self.images() if i.id == answer["id"]}
            pending = tuple(told.get(image) or image for image in self.pending)
            return replace(self, pending=pending) if any(told.values()) else None
        return self

    def images(self) -> list[Shown]:
        posts = (*self.posts, *self.hidden)
        return [*self.pending, *(image for post in posts for image in post.images)]


# What is so if these of some requests were done and those not.
Outcomes = dict[tuple[bool, ...], State]


@dataclass(frozen=True)
class Change:
    """One request, or several at once, and how they may turn out.

    `feeds` are the ids of the feeds that it is about, as far as they have one.
    """

    outcomes: Outcomes
    feeds: tuple[int, ...] = ()

    def given(self, done: Sequence[bool | None]) -> Self:
        """What remains possible when that much is known."""

        def possible(which: tuple[bool, ...]) -> bool:
            return all(known in (None, was) for known, was in zip(done, which, strict=True))

        left = {which: state for which, state in self.outcomes.items() if possible(which)}
        return replace(self, outcomes=left)

    def fitting(self, seen: Seen) -> list["Outcome"]:
        """The outcomes that fit what is seen. One has to: none means half of the change."""
        feeds, hidden, pending = self.about(seen)
        fitting = []
        for which, state in self.outcomes.items():
            posts = _matched(state.posts, feeds, seen.digests)
            kept = _matched(state.hidden, hidden, seen.digests)
            images = _matched(state.pending, pending, seen.digests)
            if posts is not None and kept is not None and images is not None:
                fitting.append(Outcome(any(which), posts, kept, images))
        return fitting

    def known(self) -> set[int]:
        """The ids of the images that it is about, as far as they have one."""
        images = [image for state in self.outcomes.values() for image in state.images()]
        return {image.id for image in images if image.id is not None}

    def uploaded(self, seen: Seen) -> set[int]:
        """The pending images that only this can have brought."""
        images = [image for state in self.outcomes.values() for image in state.pending]
        alts = {image.alt for image in images if image.id is None}
        return {number for number, image in seen.pending.items() if image["alt"] in alts}

    def about(self, seen: Seen) -> tuple[dict[int, Json], dict[int, Json], dict[int, Json]]:
        """The feeds, the hidden ones and the pending images, of what is seen, that are its
        business."""
        titles = {post.title for state in self.outcomes.values() for post in state.posts}
        ids, pending = self.known() | self.uploaded(seen), seen.pending.items()

        def own(feeds: dict[int, Json]) -> dict[int, Json]:
            found = feeds.items()
            return {i: feed for i, feed in found if i in self.feeds or feed["title"] in titles}

        images = {i: image for i, image in pending if i in ids}
        return own(seen.feeds), own(seen.hidden), images


@dataclass(frozen=True)
class Outcome:
    """How a change turned out: whether anything was done, and what is there now, by id."""

    done: bool
    posts: dict[int, Post]
    hidden: dict[int, Post]
    pending: dict[int, Shown]


Expected = TypeVar("Expected", Post, Shown)


def _matched(
    expected: Sequence[Expected], there: dict[int, Json], digests: Digests
) -> dict[int, Expected] | None:
    """What is expected, by id, if all of it is there and nothing else."""
    matched = {
        number: found
        for each in expected
        for number, one in there.items()
        if (found := each.found(one, digests))
    }
    return matched if len(matched) == len(expected) == len(there) else None
