"""Nicknames: each one is one user's, and so is what is read like it."""

import asyncio

import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import migrations
from models.nickname import nickname_key
from tests.conftest import PASSWORD, user_maker
from tests.test_profiles import change


async def sign_up(client, email, nickname):
    account = {"email": email, "password": PASSWORD, "nickname": nickname}
    return await client.post("/api/auth/signup", json=account)


ALIKE = {
    "case": ("Straße", "STRASSE"),
    "another case": ("ΝΙΚΟΣ", "νικος"),
    "encoding": ("Jose\u0301", "José"),
    "width": ("Ada", "Ａｄａ"),
    "style": ("Ada", "𝓐𝓭𝓪"),
    "what is not seen": ("Ada", "A\u200bd\u00ada\ufe0f"),
    "fillers": ("한글", "한\u3164글"),
    "spaces": ("Ada L", "Ada\u00a0 L"),
    "a Cyrillic letter": ("Ada", "Аda"),
    "all Cyrillic": ("ace", "асе"),
    "Cyrillic capitals": ("HELEN", "НЕLЕN"),
    "a Greek capital": ("Nina", "Νina"),
    "Greek capitals": ("NINA", "ΝΙΝΑ"),
    "a small Greek letter": ("vera", "νera"),
    "Cherokee": ("JADE", "ᎫᎪᎠᎬ"),
    "digits": ("Bob10", "BoblO"),
    "i and l": ("Ian", "lan"),
    "r and n": ("Barney", "Bamey"),
}
APART = {
    "letters": ("Ada", "Ida"),
    "marks": ("Jose", "José"),
    "a space": ("Ada L", "AdaL"),
    "Korean": ("지은", "지운"),
    "Russian": ("Иван", "Ивана"),
    "Japanese": ("さくら", "サクラ"),
    "emoji": ("👍", "👎"),
    "numbers": ("user12", "user13"),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
async def test_nicknames_that_are_read_alike_are_one(client, make_user, one, other):
    await make_user(nickname=one)

    signed_up = await sign_up(client, "new@example.com", other)
    changed = await change(client, await make_user(), nickname=other)

    for refused in (signed_up, changed):
        assert refused.status_code == 409, refused.text
        assert refused.json()["type"] == "/problems/nickname-taken"


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART)
async def test_nicknames_that_differ_are_two(client, make_user, one, other):
    await make_user(nickname=one)

    assert (await sign_up(client, "new@example.com", other)).status_code == 200


async def test_the_key_of_any_nickname_fits_into_its_index():
    assert len(nickname_key("\ufdfa" * 50).encode()) < 2700


async def test_a_refused_nickname_leaves_all_as_it_was(client, make_user):
    ada, grace = await make_user(nickname="Ada"), await make_user(nickname="Grace")

    refused = await change(client, grace, nickname="ADA", bio="I am Ada.")

    assert refused.status_code == 409
    assert (await client.get(f"/api/user/{grace['id']}")).json()["bio"] == ""
    assert (await change(client, ada, nickname="ADA")).json()["nickname"] == "ADA"


async def test_a_taken_address_is_said_before_a_taken_nickname(client, make_user):
    await make_user("ada@example.com", nickname="Ada")

    refused = await sign_up(client, "ada@example.com", "Ada")

    assert refused.json()["type"] == "/problems/email-taken"


async def test_of_many_who_want_one_nickname_at_once_one_gets_it(live_client):
    make = user_maker(live_client)
    users = [await make() for _ in range(5)]

    answers = await asyncio.gather(
        *(sign_up(live_client, f"rush{n}@example.com", "Rush") for n in range(5)),
        *(change(live_client, user, nickname="RUSH") for user in users),
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9


async def test_who_had_the_same_nickname_before_keeps_it(make_database):
    """The first one has its key; the others get keys of their own, until they choose another."""
    engine = create_async_engine(await make_database())
    await migrations.upgrade(engine)
    names = ["Ada", "ADA", "Аda", "\u3164", "Grace"]
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(migrations.config(sync), "0004"))
        for name in names:
            add = text(
                "INSERT INTO users (email, email_key, password_hash, nickname)"
                " VALUES (:name, :name, '', :name)"
            )
            await connection.execute(add, {"name": name})
        await connection.execute(text("INSERT INTO follows VALUES (1, 2), (3, 2), (2, 1)"))

    await migrations.upgrade(engine)

    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT nickname, nickname_key, follower_count, following_count"
                " FROM users ORDER BY id"
            )
        )
        found = rows.all()
    await engine.dispose()
    assert [row.nickname for row in found] == names
    keys = [row.nickname_key for row in found]
    assert keys == ["ada", "ada\t2", "ada\t3", "\t4", "grace"]
    counts = [(row.follower_count, row.following_count) for row in found]
    assert counts == [(1, 1), (2, 1), (0, 1), (0, 0), (0, 0)]
