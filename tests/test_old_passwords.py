"""Accounts whose passwords were hashed elsewhere: they tell nobody that they are there."""

import pytest
from sqlalchemy import select, update

from models.user import User
from services.passwords import UNUSABLE
from tests import ancestor
from tests.ancestor import PASSWORD as OLD
from tests.ancestor import hashed
from tests.conftest import PASSWORD
from tests.moved import asked, looked_into, new_board

ARGON2, BCRYPT = "$argon2id", "$2b$04$"
ADDRESSES = "new@example.com", "old@example.com", "reset@example.com", "nobody@example.com"


@pytest.fixture
async def people(make_user, db):
    """One who signed up here, one who came along, and one who has to set a new password first."""
    for address in ADDRESSES[:3]:
        await make_user(email=address)
    async with db.begin():
        for address, password_hash in (
            (ADDRESSES[1], hashed(PASSWORD)),
            (ADDRESSES[2], UNUSABLE),
        ):
            whose = update(User).where(User.email_key == address)
            await db.execute(whose.values(password_hash=password_hash))


@pytest.fixture
def work(capabilities, monkeypatch):
    """What passwords are verified against, by what it costs."""
    done = []
    real = capabilities.passwords._hasher.hashers
    for hasher, name in zip(real, (ARGON2, BCRYPT), strict=True):

        def verify(password, hash, hasher=hasher, name=name):  # noqa: A002
            assert hash.startswith(name)
            done.append(name)
            return type(hasher).verify(hasher, password, hash)

        monkeypatch.setattr(hasher, "verify", verify)
    return done


async def log_in(client, address, password):
    account = {"email": address, "password": password}
    return (await client.post("/api/auth/login", json=account)).status_code


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_wrong_password_costs_the_same_whoever_it_is_tried_on(
    client, people, work, address
):
    assert await log_in(client, address, "not the password") == 401

    # The work is counted, not the time: a clock on a busy machine proves nothing.
    assert sorted(work) == [BCRYPT, ARGON2]


async def test_a_right_password_costs_no_more_than_it_has_to(client, people, work):
    assert await log_in(client, ADDRESSES[0], PASSWORD) == 200
    assert work == [ARGON2]

    assert await log_in(client, ADDRESSES[1], PASSWORD) == 200
    assert work == [ARGON2, BCRYPT]


async def test_once_the_last_one_has_logged_in_nobody_pays_for_it_any_more(client, people, work):
    await log_in(client, ADDRESSES[1], PASSWORD)
    work.clear()

    for address in ADDRESSES:
        assert await log_in(client, address, "not the password") == 401

    assert work == [ARGON2] * len(ADDRESSES)


@pytest.mark.parametrize("password", ["", UNUSABLE, PASSWORD])
async def test_who_has_to_set_a_new_password_is_let_in_by_none(client, people, password):
    assert await log_in(client, ADDRESSES[2], password) == 401


async def test_a_password_of_more_than_72_bytes_is_as_good_as_it_was(client, people, db):
    long = "암호" * 15
    async with db.begin():
        whose = update(User).where(User.email_key == ADDRESSES[1])
        await db.execute(whose.values(password_hash=hashed(long)))

    assert await log_in(client, ADDRESSES[1], "x" * 128) == 401
    assert await log_in(client, ADDRESSES[1], "\0" * 73) == 401
    assert await log_in(client, ADDRESSES[1], long) == 200


@pytest.fixture
async def old(make_database):
    """The URL of the ancestor's database."""
    return await ancestor.filled(make_database)


@pytest.fixture
async def new(settings, make_database, tmp_path):
    return await new_board(settings, make_database, tmp_path)


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("ada@example.com", OLD),
        # The ancestor took no notice of what comes after 72 bytes.
        ("bob@example.com", "x" * 80),
        ("dee@example.com", OLD),
    ],
)
async def test_an_old_password_opens_the_account_and_is_hashed_anew(old, new, email, password):
    await new.ancestor(old, "none")

    async def stored():
        async with looked_into(new.settings) as db:
            return await db.scalar(select(User.password_hash).where(User.email_key == email))

    async with asked(new.settings) as client:

        async def log_in(password):
            account = {"email": email, "password": password}
            return (await client.post("/api/auth/login", json=account)).status_code

        assert (await stored()).startswith("$2")
        for wrong in ("not this one", "y" * 100, "an\0old password"):
            assert await log_in(wrong) == 401
        assert (await stored()).startswith("$2")
        assert await log_in(password) == 200
        assert (await stored()).startswith("$argon2id$")
        assert await log_in(password) == 200
        # It is all of the password that counts from now on.
        assert await log_in(f"{password}y") == 401


@pytest.mark.parametrize("password", ["", "!", "md5:1234", "1234"])
async def test_a_password_hashed_in_another_way_opens_nothing(old, new, password):
    await new.ancestor(old, "none")

    async with asked(new.settings) as client:
        account = {"email": "cy@example.com", "password": password}
        assert (await client.post("/api/auth/login", json=account)).status_code == 401


@pytest.mark.parametrize(
    "password_hash",
    [
        "$2b$31$" + "." * 53,
        "$2b$99$" + "." * 53,
        "$2x$04$" + "." * 53,
        "$2b$04$short",
        "$argon2id$v=19$m=9999999,t=99,p=1$" + "A" * 22 + "$" + "A" * 43,
    ],
)
async def test_a_hash_that_would_keep_a_core_busy_is_not_taken(old, new, password_hash):
    await ancestor.run(old, "UPDATE users SET password = $1 WHERE id = 1", password_hash)

    said = await new.ancestor(old, "none")

    assert "has to be reset" in said["users 1"][0]
