"""Moving out, and in again elsewhere: the other board answers as this one did."""

import io
import json
import os

import httpx
import pytest

from app.board_moves import move_out
from config.settings import SettingsError
from tests.conftest import PASSWORD, bearer, files, open_s3, own_folder, user_maker
from tests.moved import asked, miscounted, new_board, rows_of
from tests.pictures import annotated_png, camera_jpeg, photo
from tests.test_cli import Board, board  # noqa: F401 - a fixture

FILES = {
    *("users.jsonl", "avatars.jsonl", "feeds.jsonl", "comments.jsonl", "likes.jsonl"),
    *("follows.jsonl", "export.json", "images"),
}


@pytest.fixture
async def here(settings, make_database, tmp_path):
    return (await new_board(settings.replace(restore_days=7), make_database, tmp_path)).settings


@pytest.fixture
async def there(settings, make_database, tmp_path):
    """Another board, to move to."""
    return await new_board(settings.replace(restore_days=7), make_database, tmp_path)


async def fill(client):
    """A board with something of everything, also of what is deleted."""
    make = user_maker(client)
    ada, bob, cy = [await make(f"{it}@example.com", it.title()) for it in ("ada", "bob", "cy")]

    async def post(path, json, by):
        answer = await client.post(f"/api/{path}", json=json, headers=bearer(by))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def feed(by, title, *images):
        form = {"title": title, "content": f"Words of {title}\n「のり」"}
        sent = files("images", *images) or None
        answer = await client.post("/api/feed/create", data=form, files=sent, headers=bearer(by))
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    async def comment(by, feed_id, content, parent_id=None):
        body = {"feed_id": feed_id, "content": content, "parent_id": parent_id}
        return (await post("comment/create", body, by))["id"]

    first = await feed(ada, "First", annotated_png(), camera_jpeg(6, photo(700, 500)))
    gone = await feed(bob, "Gone", annotated_png())
    second = await feed(bob, "Second")
    root = await comment(bob, first, "Root")
    reply = await comment(ada, first, "Reply", root)
    deepest = await comment(bob, first, "Deepest", reply)
    await comment(cy, first, "Alone")
    deleted = await comment(cy, first, "Deleted")
    await comment(cy, gone, "Goes with its feed")
    for path in (f"feed/{first}", f"feed/{second}", f"comment/{deepest}"):
        for by in (ada, bob):
            await client.put(f"/api/like/{path}", headers=bearer(by))
    await client.put(f"/api/follow/{bob['id']}", headers=bearer(ada))
    await client.put(f"/api/follow/{ada['id']}", headers=bearer(bob))
    for path, by in (
        (f"comment/delete/{reply}", ada),
        (f"comment/delete/{deleted}", cy),
        (f"feed/delete/{gone}", bob),
    ):
        assert (await client.delete(f"/api/{path}", headers=bearer(by))).status_code == 200
    uploaded = await client.post(
        "/api/image/upload",
        files=[("images", ("a.png", io.BytesIO(annotated_png())))],
        data={"alt": "Ada herself"},
        headers=bearer(ada),
    )
    profile = {"bio": "I walk.", "avatar_id": uploaded.json()[0]["id"]}
    changed = await client.patch("/api/mypage/profile", json=profile, headers=bearer(ada))
    assert changed.status_code == 200, changed.text


async def answers(client):
    """All that the board answers to a reader, without what names things in one database."""
    log_in = {"email": "ada@example.com", "password": PASSWORD}
    ada = bearer((await client.post("/api/auth/login", json=log_in)).json())

    async def get(path):
        answer = await client.get(f"/api/{path}", headers=ada)
        assert answer.status_code == 200, answer.text
        return answer.json()

    feeds = await get("feed/list")
    by_nickname = {it["author_nickname"]: it["author_id"] for it in feeds}
    told = {"feeds": feeds, "home": await get("feed/home")}
    for it in feeds:
        told[f"tree of {it['title']}"] = await get(f"comment/feed/{it['id']}?tree=true")
        told[f"comments of {it['title']}"] = await get(f"comment/feed/{it['id']}")
        told[f"likes of {it['title']}"] = await get(f"like/feed/{it['id']}")
    for nickname, user_id in by_nickname.items():
        told[f"profile of {nickname}"] = await get(f"user/{user_id}")
        told[f"followers of {nickname}"] = await get(f"mypage/{user_id}/followers")
    return json.loads(json.dumps(told), object_hook=_unnamed)


def _unnamed(found):
    named = {"url", "image_urls"}
    # Feeds keep their ids on an empty board; people, comments and images get new ones.
    if "title" not in found:
        named |= {"id"}
    named |= {"user_id", "author_id", "parent_id"}
    return {name: value is not None if name in named else value for name, value in found.items()}


async def test_a_board_that_moved_out_and_in_answers_as_it_did(here, there, tmp_path):
    async with asked(here) as client:
        await fill(client)
        before = await answers(client)
        await move_out(here, str(tmp_path / "out"))

    said = await there.folder(tmp_path / "out")

    assert said == {}
    async with asked(there.settings) as client:
        assert await answers(client) == before
    assert [it["deleted"] for it in before["tree of First"]] == [False, False, True, False]
    assert await miscounted(there.settings) == []
    # What was deleted, and holds no place, stayed behind.
    assert await rows_of(here) == {
        "users": 3,
        "feeds": 3,
        "comments": 6,
        "feed_likes": 4,
        "comment_likes": 2,
        "follows": 2,
    }
    assert await rows_of(there.settings) == {
        "users": 3,
        "feeds": 2,
        "comments": 4,
        "feed_likes": 4,
        "comment_likes": 2,
        "follows": 2,
    }


async def test_a_second_import_of_an_export_changes_nothing(here, there, tmp_path):
    async with asked(here) as client:
        await fill(client)
    await move_out(here, str(tmp_path / "out"))
    assert await there.folder(tmp_path / "out", dry_run=True) == {}
    assert (await rows_of(there.settings))["users"] == 0
    await there.folder(tmp_path / "out")
    before = await rows_of(there.settings)

    assert await there.folder(tmp_path / "out") == {}

    assert await rows_of(there.settings) == before


async def test_a_board_moves_over_a_bucket_as_well(here, there):
    async with asked(here) as client:
        await fill(client)
        before = await answers(client)
    async with open_s3(here) as s3:
        await s3.create_bucket(
            Bucket="moves", CreateBucketConfiguration={"LocationConstraint": here.s3_region}
        )
    await move_out(here, "s3://moves/one")

    assert await there.folder("s3://moves/one") == {}

    async with asked(there.settings) as client:
        assert await answers(client) == before


async def test_nobody_else_reads_an_export_and_each_file_can_be_proven(here, tmp_path):
    async with asked(here) as client:
        await fill(client)
    out = tmp_path / "out"
    mask = os.umask(0o022)
    try:
        await move_out(here, str(out))
    finally:
        os.umask(mask)

    assert {path.name for path in out.iterdir()} == FILES
    assert {path.stat().st_mode & 0o077 for path in out.rglob("*")} == {0}
    told = json.loads((out / "export.json").read_text())
    assert {name: file["records"] for name, file in told["files"].items()} == {
        "users.jsonl": 3,
        "avatars.jsonl": 1,
        "feeds.jsonl": 2,
        "comments.jsonl": 4,
        "likes.jsonl": 6,
        "follows.jsonl": 2,
    }
    assert (told["images"], told["missing_images"]) == (3, [])
    assert "$argon2id$" in (out / "users.jsonl").read_text()


async def test_an_image_whose_object_is_gone_is_named_and_the_rest_is_exported(here, tmp_path):
    async with asked(here) as client:
        await fill(client)
        feed = (await client.get("/api/feed/list?sort_by=create_dt_asc")).json()[0]
    async with open_s3(here) as s3:
        name = feed["image_urls"][0].rpartition("/")[2]
        await s3.delete_object(Bucket=here.s3_bucket, Key=f"images/{name}")

    await move_out(here, str(tmp_path / "out"))

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (told["images"], len(told["missing_images"])) == (2, 1)


async def test_an_export_goes_into_an_empty_folder_alone(here, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(SettingsError, match="is not empty"):
        await move_out(here, str(tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


async def test_a_bucket_that_is_not_there_is_a_sentence(here, there):
    with pytest.raises(SettingsError, match="s3://not-there, or the bucket, cannot be used"):
        await move_out(here, "s3://not-there")
    with pytest.raises(SettingsError, match=r"There is no export\.json"):
        await there.folder("s3://not-there")


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("export.json", None, "There is no export.json"),
        ("export.json", b"{}", "does not say that its format is 'feedboard-board'"),
        ("export.json", b'{"format": "feedboard-board", "version": 2}', "of another version"),
        ("export.json", b"\xff", "is no JSON"),
        ("users.jsonl", b"", "users.jsonl is not as it was"),
    ],
)
async def test_an_export_that_is_not_whole_is_not_taken(
    here, there, tmp_path, file, change, sentence
):
    out = tmp_path / "out"
    await move_out(here, str(out))
    (out / file).unlink()
    if change is not None:
        (out / file).write_bytes(change or b"{}\n")

    with pytest.raises(SettingsError, match=sentence):
        await there.folder(out)


USER = {"id": "a", "email": "a@example.com", "nickname": "A"}
FEED = {"id": "f", "author_id": "a", "title": "T", "content": "C"}
COMMENT = {"id": "c", "feed_id": "f", "author_id": "a", "content": "C"}


async def test_what_was_written_by_hand_is_taken_and_broken_lines_are_named(there, tmp_path):
    """Ids are any text; of a record no more is needed than what it is."""
    written = {
        "users": [USER, {"id": 7, "email": "b@example.com"}, "no JSON {", [1], {"id": "x"}],
        "avatars": [{"user_id": "a", "image": {"file": "me.png"}}, {"user_id": "a"}],
        "feeds": [
            FEED | {"images": [{"file": "me.png", "alt": "Me"}, {"file": "../../etc/passwd"}]},
            FEED | {"id": "g", "author_id": "nobody"},
            FEED | {"id": "h", "colour": "red"},
            FEED | {"id": "i", "content": "with\0NUL"},
            FEED | {"id": "j", "create_dt": "9999-12-31T23:59:59-12:00"},
            FEED,
        ],
        "comments": [
            COMMENT,
            COMMENT | {"id": "d", "parent_id": "c"},
            COMMENT | {"id": "e", "parent_id": "later"},
        ],
        "likes": [{"user_id": "a", "comment_id": "d"}, {"user_id": "a", "comment_id": "e"}],
        "follows": [{"follower_id": "7", "followed_id": "a"}],
    }
    for kind, records in written.items():
        lines = [it if isinstance(it, str) else json.dumps(it) for it in records]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(lines))
    (tmp_path / "export.json").write_text('{"format": "feedboard-board", "version": 1}')
    (tmp_path / "me.png").write_bytes(annotated_png())

    said = await there.folder(tmp_path)

    reset = "the password is hashed in a way that is not known here; it has to be reset"
    assert said == {
        "users a": [reset],
        "users 7": ["the nickname cannot be one here; it is 'user' now", reset],
        "users in line 3": ["the line is no object of JSON"],
        "users in line 4": ["the line is no object of JSON"],
        "users x": ["email: field required"],
        "avatars in line 2": ["image: field required"],
        "feeds f": ["its image '../../etc/passwd' is not there"],
        "feeds g": ["its author, user nobody, is not on this board"],
        "feeds h": ["colour: extra inputs are not permitted"],
        "feeds i": ["content: must not contain the character U+0000"],
        "feeds j": ["create_dt: is no time of this world"],
        "comments e": ["comment later, which it replies to, is not on this board"],
        "likes in line 2": ["comment e is not on this board"],
    }
    assert await rows_of(there.settings) == {
        "users": 2,
        "feeds": 1,
        "comments": 2,
        "feed_likes": 0,
        "comment_likes": 1,
        "follows": 1,
    }
    assert await miscounted(there.settings) == []
    async with asked(there.settings) as client:
        feed = (await client.get("/api/feed/list")).json()[0]
        profile = (await client.get(f"/api/user/{feed['author_id']}")).json()
    assert [image["alt"] for image in feed["images"]] == ["Me"]
    assert profile["avatar"]["width"] == 96


def test_a_laptops_board_moves_out_beside_its_service_and_into_another_folder(board):  # noqa: F811
    """With nothing configured at either end: the embedded parts are shared, or started."""
    board.start()
    feed = board.post(board.sign_up("ada@example.com"))

    out = board.run("export", "out")
    again = board.run("export", "out")
    beside = board.run("import", "folder", "out", "--dry-run")

    assert (out.returncode, again.returncode, beside.returncode) == (0, 1, 0), out.stderr
    assert "out is not empty; name another folder." in again.stderr
    assert "users 1: ada@example.com has an account here, which is used." in beside.stdout
    with own_folder() as folder:
        other = Board(folder)
        refused = other.run("import", "folder", str(board.folder / "nowhere"))
        moved = other.run("import", "folder", str(board.folder / "out"))
        other.start()
        try:
            shown = httpx.get(f"{other.url}/api/feed/read/{feed['id']}").json()
            image = httpx.get(shown["image_urls"][0].replace("localhost", "127.0.0.1"))
        finally:
            other.stop()
    assert (refused.returncode, moved.returncode) == (1, 0), moved.stderr
    assert "error: There is no folder" in refused.stderr
    assert (shown["title"], shown["create_dt"]) == (feed["title"], feed["create_dt"])
    assert image.status_code == 200
