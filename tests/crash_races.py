"""Requests of one client that get into each other's way: sent at once, of which some may lose."""

from dataclasses import replace
from itertools import product

from tests.crash_clients import Client, Request
from tests.crash_memory import Outcomes, Post, Shown, State

# What a request may be told that came too late.
INVALID, GONE = 422, 404


def deleting(feed_id: int) -> Request:
    return Request("DELETE", f"/api/feed/delete/{feed_id}")


def deleted(client: Client, post: Post) -> State:
    """What is left of a feed then."""
    return State(hidden=(post,)) if client.situation.restorable else State()


def altering(image: Shown, altered: Shown | None, *may_be: int) -> Request:
    """Give an image other words, or delete it."""
    path = f"/api/image/{image.id}"
    if altered is None:
        return Request("DELETE", path, may_be=may_be)
    return Request("PATCH", path, json={"alt": altered.alt}, may_be=may_be)


async def two_posts(client: Client) -> None:
    """An image goes into one of two feeds, never into both."""
    (image,) = client.take_pending(1, 1)
    (first, one), (second, other) = _posting(client, image), _posting(client, image)
    outcomes: Outcomes = {
        (False, False): State((), (image,)),
        (True, False): State((one,)),
        (False, True): State((other,)),
    }
    await client.race("two_posts", [first, second], outcomes)


async def post_and_remove(client: Client) -> None:
    (image,) = client.take_pending(1, 1)
    posting, post = _posting(client, image)
    outcomes: Outcomes = {
        (False, False): State((), (image,)),
        (True, False): State((post,)),
        (False, True): State(),
        (True, True): State((post.altered(image, None),)),
    }
    await client.race("post_and_remove", [posting, altering(image, None)], outcomes)


async def post_and_describe(client: Client) -> None:
    (image,) = client.take_pending(1, 1)
    altered = replace(image, alt=client.says("Image"))
    posting, post = _posting(client, image)
    outcomes: Outcomes = {
        (False, False): State((), (image,)),
        (True, False): State((post,)),
        (False, True): State((), (altered,)),
        (True, True): State((post.altered(image, altered),)),
    }
    await client.race("post_and_describe", [posting, altering(image, altered)], outcomes)


async def describe_and_remove(client: Client) -> None:
    """Several who say the same of an image, and one who deletes it."""
    (image,) = client.take_pending(1, 1)
    altered = replace(image, alt=client.says("Image"))
    requests = [altering(image, altered, GONE)] * 3 + [altering(image, None)]
    outcomes: Outcomes = {}
    for *said, removed in product([False, True], repeat=4):
        left = () if removed else (altered if any(said) else image,)
        outcomes[*said, removed] = State((), left)
    await client.race("describe_and_remove", requests, outcomes)


async def arrange_and_remove(client: Client) -> None:
    """An order of a feed's images, and one of them goes."""
    if not (feed := client.take_feed_with_images()):
        return
    feed_id, before = feed
    image, order = client.random.choice(before.images), list(before.images)
    client.random.shuffle(order)
    words = client.words()
    after = Post(**words, images=tuple(order))
    form = words | {"image_ids": [image.id for image in order]}
    arranging = Request("PATCH", f"/api/feed/update/{feed_id}", form, may_be=(INVALID,))
    outcomes: Outcomes = {
        (False, False): State((before,)),
        (True, False): State((after,)),
        (False, True): State((before.altered(image, None),)),
        (True, True): State((after.altered(image, None),)),
    }
    requests = [arranging, altering(image, None)]
    await client.race("arrange_and_remove", requests, outcomes, feed_id)


async def delete_and_remove(client: Client) -> None:
    """A feed goes, and one of its images at the same time."""
    if not (feed := client.take_feed_with_images()):
        return
    feed_id, before = feed
    image = client.random.choice(before.images)
    without = before.altered(image, None)
    outcomes: Outcomes = {
        (False, False): State((before,)),
        (True, False): deleted(client, before),
        (False, True): State((without,)),
        (True, True): deleted(client, without),
    }
    requests = [deleting(feed_id), altering(image, None, GONE)]
    await client.race("delete_and_remove", requests, outcomes, feed_id)


def _posting(client: Client, image: Shown) -> tuple[Request, Post]:
    words = client.words()
    form = words | {"image_ids": [image.id]}
    request = Request("POST", "/api/feed/create", form, may_be=(INVALID,))
    return request, Post(**words, images=(image,))
