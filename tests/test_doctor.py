"""`feedboard doctor`: it finds what is amiss in real parts, says what to do, and leaves nothing."""

import json
from datetime import timedelta

import pytest
import typer
from sqlalchemy import text

import migrations
from app import checks
from app.checks import Found, Level
from app.doctor import Doctor
from config.db import open_engine
from config.s3 import open_s3, require_bucket
from tests.mail import mail_server
from tests.test_cli import free_port

OK, WARNING, FAILED = Level


async def found_by(check, settings):
    return [it async for it in check(settings)]


async def keys(settings):
    async with open_s3(settings) as s3:
        listed = await s3.list_objects_v2(Bucket=settings.s3_bucket)
    return [entry["Key"] for entry in listed.get("Contents", [])]


def assert_says_what_to_do(found):
    assert [it for it in found if (it.level is not OK) != bool(it.do)] == []


async def test_a_store_that_is_well_is_found_so_and_left_as_it_was(settings, each_store):
    own = settings.replace(**each_store | {"s3_bucket": "doctored", "s3_key_prefix": "a/b"})
    async with open_s3(own) as s3:
        await require_bucket(s3, own)
    found = await found_by(checks.store, own)

    assert [it.level for it in found] == [OK] * len(found)
    told = " | ".join(it.found for it in found)
    for what in ("reach the bucket", "put an object", "load it", "have a client put one", "delete"):
        assert f"can {what}" in told
    assert await keys(own) == []


async def test_what_is_wrong_with_a_store_is_said(settings, seaweedfs):
    own = settings.replace(**seaweedfs | {"s3_bucket": "not-there"})
    away = own.replace(s3_endpoint_url=f"http://127.0.0.1:{free_port()}")
    keyless = own.replace(s3_secret_key="wrong")

    for it, said in ((own, "makes the bucket"), (away, "can be reached"), (keyless, "Check S3_")):
        found = await found_by(checks.store, it)
        assert [each.level for each in found] == [FAILED]
        assert said in found[0].do, found


async def test_a_database_that_is_well_is_found_so(settings):
    found = await found_by(checks.database, settings)

    assert {it.part: it.level for it in found} == dict.fromkeys(
        ["database", "schema", "connections", "clock"], OK
    )


async def test_what_is_wrong_with_a_database_is_said(settings, make_database):
    away = settings.replace(database_url=f"postgresql://a:b@127.0.0.1:{free_port()}/c")
    (found,) = await found_by(checks.database, away)
    assert (found.level, found.part) == (FAILED, "database")
    assert "DATABASE_URL" in found.do

    bare = settings.replace(database_url=await make_database(), database_pool_size=100, workers=8)
    found = {it.part: it for it in await found_by(checks.database, bare)}
    assert found["schema"].level is WARNING
    assert "feedboard migrate" in found["schema"].do
    assert found["connections"].level is WARNING
    assert "873 may be wanted" in found["connections"].found

    async with open_engine(bare) as engine:
        await migrations.upgrade(engine)
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    found = {it.part: it for it in await found_by(checks.database, bare)}
    assert found["schema"].level is FAILED
    assert "newer" in found["schema"].found


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [
        (timedelta(seconds=1), OK, "1.0 s behind it"),
        (timedelta(seconds=-4), OK, "4.0 s ahead of it"),
        (timedelta(seconds=-6), WARNING, "6.0 s ahead of it"),
        (timedelta(minutes=16), FAILED, "960.0 s behind it; signatures are refused"),
    ],
)
def test_clocks_that_are_apart_are_said(ahead, level, said):
    found = checks._clock("it", ahead)

    assert (found.level, found.found) == (level, said)
    assert_says_what_to_do([found])


async def test_a_mail_server_is_asked_without_a_mail(settings):
    async with mail_server() as server:
        url = f"smtp://127.0.0.1:{server.port}"
        found = await found_by(checks.mail, settings.replace(smtp_url=url, mail_from="a@b.example"))
        assert [it.level for it in found] == [OK]
        assert server.mails == []
    found = await found_by(checks.mail, settings.replace(smtp_url=url, mail_from="a@b.example"))
    assert [it.level for it in found] == [FAILED]
    assert_says_what_to_do(found)


async def test_settings_that_could_be_better_are_said(settings):
    bad = settings.replace(public_url="http://board.example.com", workers=2, smtp_url=None)
    away = bad.replace(redis_url=f"redis://127.0.0.1:{free_port()}")

    found = [
        it for check in (checks.configuration, checks.mail) for it in await found_by(check, bad)
    ]
    found += await found_by(checks.redis, away)
    keyless = await found_by(checks.configuration, settings.replace(secret_key=None))

    assert [it.level for it in found] == [OK, WARNING, WARNING, WARNING, WARNING]
    assert [it.level for it in keyless] == [OK, FAILED]
    assert_says_what_to_do(found)


async def test_what_failed_ends_in_an_exit_code_and_all_is_looked_at(settings, capsys):
    bad = settings.replace(s3_endpoint_url=f"http://127.0.0.1:{free_port()}")
    doctor = Doctor(as_json=True)

    with pytest.raises(typer.Exit) as ended:
        await doctor.run(bad)

    assert ended.value.exit_code == 1
    found = [Found(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [it.part for it in found if it.level == "failed"] == ["bucket"]
    assert {"settings", "versions", "database", "schema", "mail"} <= {it.part for it in found}
