"""The pages that mails link to, in a real browser, with what the mails in the outbox say."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page

from tests.browser import serving
from tests.conftest import PASSWORD, SECRET, Json, bearer
from tests.mail import token_in

_numbers = itertools.count(1)
NEW = "a lighthouse at noon"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
async def service(
    browser: Browser, folder: Path, make_database: Callable[..., Any], store: Json
) -> AsyncIterator[str]:
    """The URL of `feedboard serve`, where only those write whose address is verified."""
    given = store | {"database_url": await make_database(), "secret_key": SECRET}
    async with serving(folder, given | {"require_verified_email": True}) as url:
        yield url


@pytest.fixture
async def client(service: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service) as client:
        yield client


@pytest.fixture
def link(folder: Path) -> Callable[[str], Any]:
    """Wait for the mail to an address and of a subject that begins so; gives its link."""

    async def link(email: str, subject: str) -> str:
        async with asyncio.timeout(20):
            while True:
                for path in sorted((folder / "outbox").glob("*.eml"), reverse=True):
                    mail = message_from_bytes(path.read_bytes(), policy=policy.default)
                    if mail["To"] == email and mail["Subject"].startswith(subject):
                        lines = mail.get_content().splitlines()
                        return next(line for line in lines if token_in(mail) in line)
                await asyncio.sleep(0.1)

    return link


@pytest.fixture
async def page(browser: Browser, service: str) -> AsyncIterator[Page]:
    """A page that asks only us, tells no token in any address that it asks, and meets no error."""
    requested, errors = [], []
    async with await browser.new_context(viewport={"width": 900, "height": 700}) as context:
        context.set_default_timeout(20_000)
        context.on("request", lambda request: requested.append(request))
        context.on("console", lambda said: said.type == "error" and errors.append(said.text))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = await context.new_page()
        yield page
    for request in requested:
        assert request.url.startswith(f"{service}/")
        assert "token" not in request.url.partition("#")[0]
        assert "token" not in request.headers.get("referer", "")
    # What is refused, the browser tells its console, too.
    assert [error for error in errors if "Failed to load resource" not in error] == []


@pytest.fixture
async def user(client: httpx.AsyncClient) -> Json:
    account = {"email": f"user{next(_numbers)}@example.com", "password": PASSWORD}
    await client.post("/api/auth/signup", json=account | {"nickname": account["email"]})
    return account | (await client.post("/api/auth/login", json=account)).json()


async def said(page: Page) -> str:
    status = page.locator("[role=status]:not(:empty)")
    await status.wait_for()
    return await status.inner_text()


async def test_a_forgotten_password_is_replaced_on_the_page_that_the_mail_links_to(
    page, client, user, link
):
    asked = await client.post("/api/auth/password/forgot", json={"email": user["email"]})
    assert asked.status_code == 200
    url = await link(user["email"], "Choose")
    await page.goto(url)
    assert "token" not in page.url

    await page.get_by_label("New password").fill("password1")
    await page.get_by_role("button").click()
    assert (await said(page)).startswith("This password is easily guessed.")
    await page.get_by_label("New password").fill(NEW)
    await page.get_by_role("button").click()
    await page.get_by_text("Your password is changed.").wait_for()

    account = {"email": user["email"], "password": NEW}
    assert (await client.post("/api/auth/login", json=account)).status_code == 200
    assert not await page.get_by_label("New password").is_visible()
    await page.goto("about:blank")
    await page.goto(url)
    await page.get_by_label("New password").fill(NEW)
    await page.get_by_role("button").click()
    assert "not good any more" in await said(page)


async def test_an_address_is_confirmed_on_the_page_that_the_mail_links_to(page, client, user, link):
    words = {"title": "T", "content": "C"}
    refused = await client.post("/api/feed/create", data=words, headers=bearer(user))
    assert refused.status_code == 403

    await page.goto(await link(user["email"], "Confirm"))
    still = await client.post("/api/feed/create", data=words, headers=bearer(user))
    assert still.status_code == 403  # To open a link is not to confirm.
    await page.get_by_role("button", name="Yes, it is mine").click()
    await page.get_by_text("your address is confirmed").wait_for()

    posted = await client.post("/api/feed/create", data=words, headers=bearer(user))
    assert posted.status_code == 200


@pytest.mark.parametrize("path", ["reset", "verify"])
async def test_a_page_that_no_mail_opened_says_so(page, service, path):
    await page.goto(f"{service}/account/{path}")

    assert "Open that link again" in await said(page)
    assert await page.get_by_role("button").count() == 0


@pytest.mark.parametrize("path", ["reset", "verify"])
async def test_a_page_runs_nothing_but_its_own_script(client, path):
    answer = await client.get(f"/account/{path}")

    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 's")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
