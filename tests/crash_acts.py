"""What clients do. One more kind of act is one more function here, and its line in `ACTS`."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tests.conftest import Json
from tests.crash_clients import Client, Request
from tests.crash_facts import Fact
from tests.crash_memory import Picture, Post, Shown, State, digest_of
from tests.crash_races import (
    GONE,
    altering,
    arrange_and_remove,
    delete_and_remove,
    deleted,
    deleting,
    describe_and_remove,
    post_and_describe,
    post_and_remove,
    two_posts,
)

MOST = 9  # images that a client gives a feed
DEEPEST = 8  # replies to replies, as the service has it


async def work(client: Client) -> None:
    """Write and read until the traffic ends."""
    acts = list(ACTS)
    while not client.situation.ending:
        weights = [weight(client) for weight in ACTS.values()]
        await client.random.choices(acts, weights)[0](client)


async def create(client: Client, *, least: int = 0) -> bool | None:
    """Post a feed with images uploaded before, and with files."""
    words, earlier, fresh = client.words(), client.take_pending(0, 2), client.choose(least, 2)
    post = Post(**words, images=(*earlier, *map(Shown, fresh)))
    form = words | {"image_ids": [image.id for image in earlier]}
    request = Request("POST", "/api/feed/create", form, files=("images", fresh))
    return await client.write("create", request, State((), earlier), State((post,)))


async def change(client: Client) -> None:
    """Write a feed anew, take images off it by their URLs, and add files."""
    feed_id, before = client.take_feed()
    words, fresh = client.words(), client.choose(0, 2)
    kept = tuple(i for i in before.images if client.random.random() < 0.6)[: MOST - 2]
    after = Post(**words, images=(*kept, *map(Shown, fresh)))
    form = words | {"target_image_urls": [i.urls[0] for i in before.images if i not in kept]}
    await _update(client, "change", feed_id, before, after, form, fresh)


async def arrange(client: Client) -> None:
    """Give a feed a whole new order: of its images, of some uploaded before, and of files."""
    feed_id, before = client.take_feed()
    words, earlier = client.words(), client.take_pending(0, 2)
    kept = [image for image in before.images if client.random.random() < 0.8][: MOST - 4]
    order = [*kept, *earlier]
    client.random.shuffle(order)
    # No ids at all would be no new order: the images stay.
    shown = tuple(order) or before.images
    fresh = client.choose(0, 2)[: MOST - len(shown)]
    after = Post(**words, images=(*shown, *map(Shown, fresh)))
    form = words | {"image_ids": [image.id for image in order]}
    await _update(client, "arrange", feed_id, before, after, form, fresh, earlier)


async def _update(
    client: Client,
    kind: str,
    feed_id: int,
    before: Post,
    after: Post,
    form: Json,
    fresh: list[Picture],
    earlier: tuple[Shown, ...] = (),
) -> None:
    path = f"/api/feed/update/{feed_id}"
    request = Request("PATCH", path, form, files=("new_images", fresh))
    await client.write(kind, request, State((before,), earlier), State((after,)), feed_id)


async def delete(client: Client) -> None:
    feed_id, post = client.take_feed()
    after = deleted(client, post)
    await client.write("delete", deleting(feed_id), State((post,)), after, feed_id)


async def hide(client: Client) -> None:
    """Have a feed with images to restore."""
    if await create(client, least=1):
        await delete(client)


async def restore(client: Client) -> bool | None:
    """Bring a feed back, with all that it had."""
    feed_id = client.random.choice(list(client.hidden))
    post = client.hidden.pop(feed_id)
    request = Request("POST", f"/api/feed/restore/{feed_id}")
    before, after = State(hidden=(post,)), State((post,))
    return await client.write("restore", request, before, after, feed_id)


async def upload(client: Client) -> None:
    """Store images for later, each with words of its own."""
    fresh = client.choose(1, 3)
    images = tuple(Shown(picture, client.says("Image")) for picture in fresh)
    form = {"alt": [image.alt for image in images]}
    request = Request("POST", "/api/image/upload", form, files=("images", fresh))
    await client.write("upload", request, State(), State(pending=images))


async def upload_directly(client: Client) -> None:
    """Ask for a form, send a file to the store by it, and have it made an image."""
    (picture,) = client.choose(1, 1)
    alt = client.says("Image")
    asked = {"type": "image/png", "bytes": len(picture.sent), "alt": alt}
    _, answer = await client.send(Request("POST", "/api/image/presign", json=asked))
    if answer and await client.send_form(form := answer.json(), picture.sent):
        request = Request("POST", f"/api/image/{form['id']}/complete")
        image = Shown(picture, alt, form["id"])
        await client.write("upload_directly", request, State(), State(pending=(image,)))


async def describe(client: Client) -> None:
    """Give an image other words, pending or in a feed."""
    await _alter(client, "describe", lambda image: replace(image, alt=client.says("Image")))


async def remove(client: Client) -> None:
    """Delete an image, pending or out of its feed."""
    await _alter(client, "remove", lambda image: None)


async def _alter(client: Client, kind: str, alter: Callable[[Shown], Shown | None]) -> None:
    if client.pending and client.random.random() < 0.5:
        (image,) = client.take_pending(1, 1)
        altered = alter(image)
        before, after = State(pending=(image,)), State(pending=(altered,) if altered else ())
        await client.write(kind, altering(image, altered), before, after)
    elif feed := client.take_feed_with_images():
        feed_id, post = feed
        image = client.random.choice(post.images)
        altered = alter(image)
        after = State((post.altered(image, altered),))
        await client.write(kind, altering(image, altered), State((post,)), after, feed_id)


async def like(client: Client) -> None:
    """Like somebody's feed or comment, or no longer."""
    feeds = _everybodys_feeds(client)
    things = [(f"feed/{feed_id}", feed_id) for feed_id in feeds]
    comments = client.situation.comments.items()
    things += [(f"comment/{number}", of) for number, of in comments if of in feeds]
    if things:
        path, feed_id = client.random.choice(things)
        await _say_whether(client, "like", f"/api/like/{path}", "liked", feed_id)


async def follow(client: Client) -> None:
    """Follow somebody, or no more."""
    others = [other.id for other in client.situation.clients if other is not client]
    path = f"/api/follow/{client.random.choice(others)}"
    await _say_whether(client, "follow", path, "followed")


async def _say_whether(
    client: Client, kind: str, path: str, name: str, feed_id: int | None = None
) -> None:
    if (fact := client.facts.get(path, Fact(feed_id))).doubted:
        return
    wanted = client.random.random() < 0.6
    request = Request("PUT" if wanted else "DELETE", path, may_be=_unless_own(client, feed_id))
    answer = await client.tell(kind, request, path, fact, wanted=wanted)
    if answer and answer[name] != wanted:
        client.situation.faults.append(f"{request} was acknowledged as {answer}")


async def comment(client: Client) -> None:
    """Comment on somebody's feed, or reply to a comment."""
    if not (feeds := _everybodys_feeds(client)):
        return
    comments, feed_id = client.situation.comments, client.random.choice(feeds)
    above = [None, *(number for number, of in comments.items() if of == feed_id)]
    parent_id, words = client.random.choice(above), client.says("Comment")
    body = {"feed_id": feed_id, "content": words, "parent_id": parent_id}
    may_be = _unless_own(client, feed_id)
    request = Request("POST", "/api/comment/create", json=body, may_be=may_be)
    answer = await client.tell("comment", request, words, Fact(feed_id, parent_id))
    if answer and answer | body != answer:
        client.situation.faults.append(f"{request} was acknowledged as {answer}")
    elif answer and answer["depth"] < DEEPEST:
        comments[answer["id"]] = feed_id


def _everybodys_feeds(client: Client) -> list[int]:
    return [feed_id for other in client.situation.clients for feed_id in other.feeds]


def _unless_own(client: Client, feed_id: int | None) -> tuple[int, ...]:
    """Another's feed may go meanwhile; one's own, and whoever is followed, is there."""
    return () if feed_id in (None, *client.feeds) else (GONE,)


async def log_in(client: Client) -> None:
    """Come on one more device."""
    await client.send(Request("POST", "/api/auth/login", json=client.account))


async def read(client: Client) -> None:
    feed_id, post = client.random.choice(list(client.feeds.items()))
    _, answer = await client.send(Request("GET", f"/api/feed/read/{feed_id}"))
    if answer and not post.found(answer.json()):
        client.situation.faults.append(f"{post} is shown as {answer.text}")


async def look(client: Client) -> None:
    """Load an image, or one of its variants."""
    images = [image for post in client.feeds.values() for image in post.images]
    images += client.pending.values()
    if images:
        image = client.random.choice(images)
        url, digest = client.random.choice(
            list(zip(image.urls, image.picture.digests, strict=True))
        )
        _, answer = await client.send(Request("GET", url))
        if answer and digest_of(answer.content) != digest:
            client.situation.faults.append(f"{image} has other bytes at {url}")


async def browse(client: Client) -> None:
    await client.send(Request("GET", "/api/feed/list"))


async def own(client: Client) -> None:
    """See that what was uploaded and not posted is listed, with its words."""
    pending = dict(client.pending)
    listed: dict[int, Json] = {}
    path: str | None = "/api/image/mine?limit=50"
    while path:
        _, answer = await client.send(Request("GET", path))
        if answer is None:
            return
        listed |= {image["id"]: image for image in answer.json()}
        path = answer.links.get("next", {}).get("url")
    for number, image in pending.items():
        there = listed.get(number)
        # What has been taken meanwhile is on its way into a feed.
        if number in client.pending and not (there and is_pending(image, there)):
            client.situation.faults.append(f"{image} is listed as {there}")


def is_pending(image: Shown, listed: Json) -> bool:
    return listed["feed_id"] is None and image.found(listed) is not None


def writes(least: int, few: float, many: float) -> Callable[[Client], float]:
    """How often: with fewer feeds than `least` never, then by whether there are many."""

    def weight(client: Client) -> float:
        count = len(client.feeds)
        return 0 if count < least else few if count < 5 else many

    return weight


def with_pending(weight: float) -> Callable[[Client], float]:
    return lambda client: weight if client.pending and len(client.feeds) > 1 else 0


# How often each is done. With many feeds, more is deleted than is written.
ACTS: dict[Callable[[Client], Awaitable[object]], Callable[[Client], float]] = {
    create: writes(0, 4, 2),
    change: writes(2, 2, 2),
    arrange: writes(2, 3, 3),
    delete: writes(2, 2, 5),
    restore: lambda client: 3 if client.hidden and client.situation.restorable else 0,
    like: lambda client: 4,
    follow: lambda client: 1,
    log_in: lambda client: 1,
    comment: lambda client: 3,
    upload: lambda client: 3 if len(client.pending) < 5 else 0.5,
    upload_directly: lambda client: 2 if len(client.pending) < 5 else 0.5,
    describe: writes(2, 1, 1),
    remove: writes(2, 1, 3),
    two_posts: with_pending(1),
    post_and_remove: with_pending(1),
    post_and_describe: with_pending(1),
    arrange_and_remove: writes(2, 1, 1),
    delete_and_remove: writes(2, 0.5, 2),
    describe_and_remove: with_pending(1),
    read: writes(1, 1, 1),
    look: lambda client: 1,
    browse: lambda client: 1,
    own: lambda client: 1,
}
