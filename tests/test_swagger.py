"""Swagger UI as a newcomer meets it: a real browser, the `feedboard serve` process, real clicks."""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page

from config.settings import Settings
from tests.browser import serving
from tests.conftest import PASSWORD, SECRET, bearer, empty_bucket, files
from tests.pictures import photo

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
async def service(
    browser: Browser,
    make_database: Callable[..., Any],
    store: dict[str, Any],
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[str]:
    """The URL of `feedboard serve`, which has a database and a bucket of its own."""
    own = store | {"s3_bucket": f"{settings.s3_bucket}-swagger"}
    given = own | {"database_url": await make_database(), "secret_key": SECRET}
    async with serving(tmp_path_factory.mktemp("swagger"), given) as url:
        yield url
    await empty_bucket(own, remove=True)


@pytest.fixture
async def page(browser: Browser, service: str) -> AsyncIterator[Page]:
    """Swagger UI, just opened; whatever a test does in it, it asks only us and meets no error."""
    requested, errors = [], []
    async with await browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(20_000)
        context.on("request", lambda request: requested.append(request.url))
        context.on("console", lambda said: said.type == "error" and errors.append(said.text))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = await context.new_page()
        await page.goto(f"{service}/docs")
        yield page
    assert [url for url in requested if not url.startswith((f"{service}/", "blob:"))] == []
    # An image may do nothing (its Content-Security-Policy), so the browser's viewer of images,
    # opened on one, may not style itself. Swagger UI keeps to its own policy.
    assert [error for error in errors if not error.startswith("Applying inline style")] == []


@pytest.fixture
async def user(service: str) -> dict[str, str]:
    """Signed up and logged in."""
    account = {"email": f"user{next(_numbers)}@example.com", "password": PASSWORD}
    async with httpx.AsyncClient(base_url=service) as client:
        await client.post("/api/auth/signup", json=account | {"nickname": account["email"]})
        return account | (await client.post("/api/auth/login", json=account)).json()


@pytest.fixture
async def feed(service: str, user: dict[str, str]) -> dict[str, Any]:
    """Posted by the user, with two photos."""
    photos = files("images", *[photo(seed=n).jpegsave_buffer() for n in (1, 2)])
    words = {"title": "Two days in Jeonju", "content": "Bibimbap."}
    async with httpx.AsyncClient(base_url=service, headers=bearer(user)) as client:
        return (await client.post("/api/feed/create", data=words, files=photos)).json()


async def authorize(page: Page, user: dict[str, str]) -> None:
    await page.locator(".auth-wrapper").get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    await dialog.get_by_label("username").fill(user["email"])
    await dialog.get_by_label("password").fill(user["password"])
    await dialog.get_by_role("button", name="Apply given OAuth2 credentials").click()
    await dialog.get_by_text("Authorized", exact=True).wait_for()
    await dialog.get_by_role("button", name="Close").click()


async def unfold(page: Page, path: str) -> Locator:
    """Open a route's form."""
    route = page.locator(".opblock", has=page.locator(f'[data-path="{path}"]'))
    await route.locator(".opblock-summary-control").click()
    await route.get_by_role("button", name="Execute").wait_for()
    return route


def field(route: Locator, name: str) -> Locator:
    return route.locator(f'[data-property-name="{name}"], [data-param-name="{name}"]')


async def write(route: Locator, name: str, *texts: Any) -> None:
    """Type into a field; an array's has as many as one asks for."""
    adding = field(route, name).get_by_role("button", name="Add string item")
    for n, text in enumerate(texts):
        if await adding.count():
            await adding.click()
        await field(route, name).locator("input:not([type=checkbox])").nth(n).fill(str(text))


async def choose(route: Locator, name: str, *photos: Path | None) -> None:
    """Ask for a file picker for each photo, and choose it there; None leaves one untouched."""
    for n, chosen in enumerate(photos):
        await field(route, name).get_by_role("button", name="Add string item").click()
        if chosen is not None:
            async with route.page.expect_file_chooser() as opened:
                await field(route, name).locator("input[type=file]").nth(n).click()
            await (await opened.value).set_files(chosen)


async def execute(route: Locator) -> tuple[str, Any]:
    """Press Execute; gives the status and the body that the page then shows."""
    await route.get_by_role("button", name="Execute").click()
    shown = route.locator(".live-responses-table .response")
    status = await shown.locator(".response-col_status").inner_text()
    return status.split()[0], json.loads(await shown.locator("code").first.inner_text())


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "old town.jpg", tmp_path / "garden.jpg"]
    for n, path in enumerate(paths):
        photo(640, 480, seed=n).jpegsave(str(path))
    return paths


async def test_a_newcomer_signs_up_authorizes_posts_two_photos_and_finds_them(page, photos):
    newcomer = {"email": "newcomer@example.com", "password": PASSWORD, "nickname": "Ada"}
    route = await unfold(page, "/api/auth/signup")
    await route.locator("textarea").fill(json.dumps(newcomer))
    assert (await execute(route))[0] == "200"
    await authorize(page, newcomer)

    route = await unfold(page, "/api/feed/create")
    await write(route, "title", "A walk")
    await write(route, "content", "Through the old town.")
    await choose(route, "images", *photos)
    status, feed = await execute(route)

    assert (status, feed["title"], len(feed["image_urls"])) == ("200", "A walk", 2)
    assert (await execute(await unfold(page, "/api/feed/list"))) == ("200", [feed])
    for url in feed["image_urls"]:
        await page.goto(url)
        assert await page.evaluate("document.images[0].naturalWidth") == 640


async def test_photos_are_added_to_a_feed_and_what_is_left_empty_stays(page, user, feed, photos):
    await authorize(page, user)
    route = await unfold(page, "/api/feed/update/{feed_id}")
    await write(route, "feed_id", feed["id"])
    await choose(route, "new_images", *photos, None)

    status, changed = await execute(route)

    kept = {"title": feed["title"], "content": feed["content"]}
    assert (status, changed) == ("200", changed | kept)
    assert changed["image_urls"][:2] == feed["image_urls"]
    assert len(changed["image_urls"]) == 4


async def test_several_photos_are_taken_from_a_feed_while_one_is_added(page, user, feed, photos):
    await authorize(page, user)
    route = await unfold(page, "/api/feed/update/{feed_id}")
    await write(route, "feed_id", feed["id"])
    await write(route, "title", "Three days in Jeonju")
    await choose(route, "new_images", photos[0])
    await write(route, "target_image_urls", *feed["image_urls"])

    status, changed = await execute(route)

    assert (status, changed["title"]) == ("200", "Three days in Jeonju")
    assert changed["content"] == feed["content"]
    assert len(changed["image_urls"]) == 1
    assert not set(changed["image_urls"]) & set(feed["image_urls"])


async def test_a_form_in_which_nothing_was_filled_changes_nothing(page, user, feed):
    await authorize(page, user)
    route = await unfold(page, "/api/feed/update/{feed_id}")
    await write(route, "feed_id", feed["id"])
    await choose(route, "new_images", None, None)
    await write(route, "target_image_urls", "")

    status, changed = await execute(route)

    assert (status, changed) == ("200", feed)
