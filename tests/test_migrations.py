"""The schema: equal to the models, made by one process at a time, and undone without a trace."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

import migrations
from models import metadata


async def test_the_migrations_make_just_what_the_models_say(engine):
    def differences(connection):
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return compare_metadata(context, metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


def test_each_migration_is_in_a_file_that_is_named_by_it():
    script = ScriptDirectory.from_config(migrations.config())

    assert migrations.newest() == script.get_current_head()
    for it in script.walk_revisions():
        assert Path(it.path).name.startswith(f"{it.revision}_")


async def test_many_processes_that_start_at_once_migrate_once(make_database):
    engines = [create_async_engine(await make_database())]
    engines += [create_async_engine(engines[0].url) for _ in range(5)]

    changed = await asyncio.gather(*(migrations.upgrade(engine) for engine in engines))

    assert sorted(changed) == [False] * 5 + [True]
    for engine in engines:
        await engine.dispose()


async def test_what_was_migrated_can_be_undone(make_database):
    engine = create_async_engine(await make_database())
    await migrations.upgrade(engine)

    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(migrations.config(sync), "base"))
        left = await connection.run_sync(lambda sync: inspect(sync).get_table_names())

    assert left == ["alembic_version"]
    await engine.dispose()


async def test_every_foreign_key_has_its_index(engine):
    """An index whose first column is the key's; without it a deletion reads the whole table."""
    bare = text(
        """SELECT conrelid::regclass || '.' || attname FROM pg_constraint
        JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
        WHERE contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1])"""
    )
    async with engine.connect() as connection:
        assert (await connection.scalars(bare)).all() == []


async def test_times_are_kept_with_their_zone_and_ids_are_big_identities():
    for table in metadata.tables.values():
        for column in table.columns:
            if column.name.endswith("_dt"):
                assert column.type.timezone, column
        keys = table.primary_key.columns
        assert {str(key.type) for key in keys} == {"BIGINT"}, table
        assert table.c.keys()[0] != "id" or table.c.id.identity is not None, table
