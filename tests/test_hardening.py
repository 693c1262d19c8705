"""What no answer and no log line may do: run in a browser, forge a line, give a secret away."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from sqlalchemy import text

from app import logs
from config.settings import Settings, SettingsError
from tests.conftest import bearer, client_of, files, make_settings
from tests.live import served
from tests.pictures import annotated_png
from tests.test_bad_input import _multipart, _part

PNG = annotated_png()
ROOT = Path(__file__).parent.parent
DATA = "default-src 'none'; frame-ancestors 'none'"
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/api/feed/list"),
        ("GET", "/api/feed/read/1"),
        ("POST", "/api/auth/login"),
        ("GET", "/nowhere"),
        ("BREW", "/api/feed/list"),
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/assets/swagger-ui.css"),
        ("GET", "/images/none.jpg"),
    ],
)
async def test_every_answer_tells_browsers_what_to_refuse(client, method, url):
    headers = (await client.request(method, url)).headers

    assert {name: headers.get(name) for name in ALWAYS} == ALWAYS
    if url != "/docs":
        assert headers["content-security-policy"] == DATA
    shared = "cross-origin" if url.startswith("/images/") else "same-origin"
    assert headers["cross-origin-resource-policy"] == shared
    assert "server" not in headers
    assert "strict-transport-security" not in headers


async def test_an_image_may_be_shown_by_others_and_runs_nothing(client, make_user, make_feed):
    feed = await make_feed(author=await make_user(), images=[PNG])

    headers = (await client.get(feed["image_urls"][0])).headers

    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["content-security-policy"] == "default-src 'none'"
    assert headers.get_list("x-content-type-options") == ["nosniff"]


async def test_swagger_ui_runs_its_own_files_and_no_other_script(client):
    policy = (await client.get("/docs")).headers["content-security-policy"]
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/=]+'", allowed["script-src"])
    assert allowed["default-src"] == allowed["frame-ancestors"] == "'none'"


async def test_https_is_demanded_where_the_public_url_has_it(make_app):
    async with client_of(await make_app(public_url="https://board.example.com")) as client:
        answer = await client.get("/api/feed/list")

    assert answer.headers["strict-transport-security"] == "max-age=31536000"


async def test_what_fails_is_guarded_too(app):
    async def fail() -> None:
        raise RuntimeError("fault")

    app.add_api_route("/api/fault", fail)
    async with client_of(app) as client:
        failed = await client.get("/api/fault")

    assert failed.status_code == 500
    assert failed.headers["content-security-policy"] == DATA
    assert failed.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000,
        b"GET /api/feed/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad\rHeader: x\r\n\r\n",
    ],
    ids=["no HTTP", "a huge head", "a request", "a bare CR in a header"],
)
async def test_over_the_wire_nothing_tells_which_server_it_is(live_server, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", live_server)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nserver:" not in head.lower()
    if b" 400 " in head.splitlines()[0]:
        assert b"application/problem+json" in head
        assert json.loads(body)["type"] == "/problems/malformed-request"
    else:
        assert b"uvicorn" not in answer.lower()


async def test_any_page_may_call_without_credentials_and_with_origins_only_those(make_app):
    origin = {"Origin": "https://board.example.com"}
    other = {"Origin": "https://other.example.com"}
    async with client_of(await make_app()) as client:
        anybody = (await client.get("/healthz", headers=other)).headers
    named = await make_app(cors_origins="https://board.example.com, http://localhost:3000")
    async with client_of(named) as client:
        ours = (await client.get("/api/feed/list", headers=origin)).headers
        theirs = (await client.get("/api/feed/list", headers=other)).headers
        asked = other | {"Access-Control-Request-Method": "DELETE"}
        refused = await client.options("/api/feed/delete/1", headers=asked)

    assert anybody["access-control-allow-origin"] == "*"
    assert ours["access-control-allow-origin"] == "https://board.example.com"
    assert {"Origin", "Authorization"} <= {it.strip() for it in ours["vary"].split(",")}
    assert "access-control-allow-origin" not in theirs
    assert refused.status_code == 400
    for headers in (anybody, ours, theirs):
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", value)
        for value in (
            "board.example.com",
            "https://board.example.com/",
            "https://board.example.com/x",
            "https://*.example.com",
            "*,https://board.example.com",
            "https://a.example.com,,",
            "null",
            "https://Board.example.com",
            "https://a b",
        )
    ]
    + [
        ("allowed_hosts", value)
        for value in ("https://x", "x:80", "x/y", "*,x", "a,,b", "*.", "x*", "a b", "*x.com")
    ],
)
def test_a_list_of_origins_or_hosts_that_is_none_stops_the_start(monkeypatch, name, value):
    monkeypatch.setenv(name.upper(), value)

    with pytest.raises(SettingsError, match=rf"^{name.upper()} is not valid: it must be \*"):
        Settings.load()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("board.example.com", 200),
        ("Board.Example.COM:8000", 200),
        ("board.example.com.", 200),
        ("a.b.example.org", 200),
        ("[::1]:8000", 200),
        ("example.org", 400),
        ("badexample.org", 400),
        ("other.example.com", 400),
        ("board.example.com.evil.net", 400),
        ("board.example.com:80@evil.net", 400),
        ("evil.net:board.example.com", 400),
        ("", 400),
        ("[::1", 400),
    ],
)
async def test_only_hosts_that_are_named_are_answered(make_app, host, status):
    names = "board.example.com, *.example.org,[::1]"
    async with client_of(await make_app(allowed_hosts=names)) as client:
        answer = await client.get("/api/feed/list", headers={"Host": host})
        probe = await client.get("/healthz", headers={"Host": host})
        document = (await client.get("/openapi.json", headers={"Host": "[::1]"})).json()

    assert (answer.status_code, probe.status_code) == (status, 200)
    if status == 400:
        assert answer.json()["type"] == "/problems/unknown-host"
    assert "400" in document["paths"]["/api/feed/list"]["get"]["responses"]


SECRET_WORDS = "my-secret-passphrase-8812"
NASTY = "x\r\nforged: line\n\x1b[31mred\x1b[0m\x85\u2028\u202e\x00"


@contextmanager
def logged(settings: Settings) -> Generator[None]:
    """Log as the service does with these settings; pytest's own handlers stand aside meanwhile."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        logs.configure(settings)
        # What is logged later keeps no way of writing of this one.
        structlog.configure(cache_logger_on_first_use=False)
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.configure(**before)


both_formats = pytest.mark.parametrize("log_format", ["console", "json"])


@both_formats
def test_what_is_logged_stays_in_its_line(log_format, capfd):
    with logged(make_settings(log_format=log_format)):
        structlog.get_logger().info(NASTY, path=NASTY, items=[NASTY], text=NASTY.encode())
        logging.getLogger("a.library").warning("said %s", NASTY)
        try:
            raise ValueError(NASTY)
        except ValueError:
            structlog.get_logger().exception("failed")

    text = capfd.readouterr().err
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", text)  # as the console colours by itself
    assert "\x1b[31mred" not in text
    assert not re.search("[\r\x00\x1b\x7f-\x9f\u2028\u202e]", coloured)
    lines = coloured.rstrip("\n").split("\n")
    own = [line for line in lines if line and not line.startswith("  ")]
    assert len(own) == 3
    assert not any(line.startswith("forged") for line in lines)


@both_formats
async def test_no_request_can_forge_a_line(app, log_format, make_user, capfd):
    user = await make_user()
    odd = {"User-Agent": b"a\x1b[2Jb", "X-Request-ID": b"x\x1b[31m", "Referer": b"\x85"}
    capfd.readouterr()
    with logged(make_settings(log_format=log_format)):
        async with client_of(app) as client:
            await client.get("/no%0d%0aforged:%20line%1b%5b31m%e2%80%a8", headers=odd)
            await client.get("/images/%0aforged.jpg", headers=odd)
            name = ("images", ('a%0d%0aforged\x1b[31m.png"\r\n', b"no image"))
            posted = {"title": NASTY[:-1], "content": "C"}
            headers = {**bearer(user), **odd}
            await client.post("/api/feed/create", data=posted, files=[name], headers=headers)

    lines = [
        line for line in re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().err).split("\n") if line
    ]
    assert len(lines) == 3
    assert all("request" in line and not re.search("[\r\x1b\x85\u2028]", line) for line in lines)


async def test_no_secret_is_in_any_line_or_answer(
    make_database, settings, store, capfd, monkeypatch
):
    """All kinds of requests, good and bad and failing; then all that was said is searched."""
    said: list[str] = []
    database_url = await make_database()
    secrets = {
        "password": SECRET_WORDS,
        "wrong password": "my-wrong-passphrase-4471",
        "key": "a-key-that-signs-tokens-and-is-told-to-nobody",
        "database password": httpx.URL(database_url).password or "no-password-at-all",
    }
    changed = settings.replace(
        database_url=database_url, secret_key=secrets["key"], log_level="debug", log_format="json"
    )
    s3 = changed.s3_secret_key
    secrets["store"] = s3.get_secret_value() if s3 and len(s3.get_secret_value()) > 6 else "unset-x"
    with logged(changed):
        async with served(changed) as url, httpx.AsyncClient(base_url=url) as client:
            account = {
                "email": "a@example.com",
                "password": secrets["password"],
                "nickname": "Ada",
            }

            async def ask(method: str, path: str, **sent: object) -> httpx.Response:
                answer = await client.request(method, path, **sent)
                # What the log-in gives is for its owner; everything else is searched.
                if answer.status_code != 200 or not path.endswith(("login", "token")):
                    said.append(f"{answer.headers} {answer.text}")
                return answer

            await ask("POST", "/api/auth/signup", json=account)
            await ask("POST", "/api/auth/signup", json=account)
            await ask("POST", "/api/auth/signup", json=account | {"password": "short"})
            await ask("POST", "/api/auth/signup", json=account | {"x": secrets["password"][:0]})
            grant = {"username": account["email"], "password": secrets["wrong password"]}
            await ask("POST", "/api/auth/token", data=grant | {"grant_type": "password"})
            await ask("POST", "/api/auth/login", json=account)  # a field too many
            log_in = {k: account[k] for k in ("email", "password")}
            await ask("POST", "/api/auth/login", json=log_in | {"password": grant["password"]})
            await ask("POST", "/api/auth/login", content=json.dumps(log_in)[:-1].encode())
            user = (await ask("POST", "/api/auth/login", json=log_in)).json()
            secrets["token"] = user["access_token"]
            signed = bearer(user)
            bad = {"Authorization": f"Bearer {user['access_token']}x"}
            image = files("images", PNG)
            words = {"title": "T", "content": "C"}
            posted = await ask("POST", "/api/feed/create", data=words, files=image, headers=signed)
            feed = posted.json()
            await ask("GET", feed["image_urls"][0].replace("http://localhost:8000", url))
            await ask("GET", f"/api/feed/read/{feed['id']}", headers=signed)
            await ask("GET", "/api/feed/list", headers=bad)
            await ask("GET", "/api/feed/list?x=1", headers=signed)
            await ask("GET", "/api/feed/list?cursor=x", headers=signed)
            await ask("DELETE", f"/api/feed/delete/{feed['id']}", headers=bad)
            await ask("PATCH", "/api/mypage/profile", json={"bio": "B"}, headers=signed)
            await ask("GET", "/readyz")

            async def fault() -> None:
                raise RuntimeError("fault")

            monkeypatch.setattr("services.profiles.read", lambda *rest: fault())
            await ask("GET", "/api/mypage/profile", headers=signed)
            monkeypatch.setattr("services.showing.one", lambda *rest: wrong(rest[0]))
            await ask("GET", f"/api/feed/read/{feed['id']}", headers=signed)
    log = capfd.readouterr().err

    assert log.count('"request"') > 15
    assert "unhandled error" in log
    assert "Traceback" in log
    for name, secret in secrets.items():
        assert secret not in log, name
        assert not [text for text in said if secret in text], name


async def wrong(db):
    await db.execute(text("SELECT :secret FROM nowhere"), {"secret": SECRET_WORDS})


PATHS = [
    "..",
    "../",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//",
    "..%5c..%5cwindows",
    "..\\..\\x",
    "%252e%252e%252f",
    "..%c0%af",
    "a%00.jpg",
    "incoming%2fx",
    "../incoming/x",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    ".%0d%0a.jpg",
    "http:%2f%2fevil.net%2fx.jpg",
    "{key}/",
    "{key}%00",
    "{key}%0a",
    "{key};x",
    "./{key}",
    "x/../{key}",
    "x%2f..%2f{key}",
    "%2e/{key}",
    "{key}.",
    "{key}%20",
]


async def test_no_path_leads_out_of_the_images(live_server, live_client, make_feed_live):
    """Over a socket: clients like httpx mend a path before they send it."""
    key = (await make_feed_live())["image_urls"][0].rpartition("/")[2]
    assert (await live_client.get(f"/images/{key}")).status_code == 200
    for path in PATHS:
        reader, writer = await asyncio.open_connection("127.0.0.1", live_server)
        line = f"GET /images/{path.format(key=key)} HTTP/1.1\r\n"
        writer.write(line.encode() + b"Host: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

        if path.endswith("/"):
            assert answer.split()[1] in {b"307", b"404"}, (path, answer)
        else:
            assert answer.split()[1] in {b"400", b"404"}, (path, answer)
            assert b"application/problem+json" in answer, path


@pytest.fixture
def make_feed_live(live_client):
    from tests.conftest import user_maker

    async def make():
        author = await user_maker(live_client)()
        posted = await live_client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", PNG),
            headers=bearer(author),
        )
        return posted.json()

    return make


TITLE, CONTENT = _part(b"title", b"T"), _part(b"content", b"C")
DOUBLED = {
    "a title twice": (_multipart(TITLE, TITLE, CONTENT), 422, "/title"),
    "a content twice": (_multipart(TITLE, CONTENT, CONTENT), 422, "/content"),
    "one name, in and out of an array": (
        _multipart(TITLE, CONTENT, _part(b"title[]", b"X")),
        422,
        "/title[]",
    ),
    "CRLF in a name": (_multipart(TITLE, CONTENT, _part(b"x%0d%0ay", b"X")), 422, None),
    "an unknown part": (_multipart(TITLE, CONTENT, _part(b"author_id", b"2")), 422, "/author_id"),
}


@pytest.mark.parametrize(("body", "status", "pointer"), DOUBLED.values(), ids=DOUBLED)
async def test_a_part_that_is_doubled_or_unknown_is_refused(
    client, make_user, body, status, pointer
):
    headers = bearer(await make_user()) | {"Content-Type": "multipart/form-data; boundary=b"}

    refused = await client.post("/api/feed/create", content=body, headers=headers)

    assert refused.status_code == status, refused.text
    if pointer:
        assert pointer in [error["pointer"] for error in refused.json()["errors"]]
    assert (await client.get("/api/feed/list")).json() == []


@pytest.mark.parametrize(
    ("advisories", "code"), [("none", 2), ("clean", 0), ("found", 1), ("unknown", 1)]
)
def test_the_audit_of_dependencies_fails_when_it_should(tmp_path, advisories, code):
    """With a stand-in for pip-audit, since the advisories are elsewhere."""
    program = tmp_path / "pip-audit"
    program.write_text(
        "#!/bin/sh\n"
        f"case {advisories}$* in\n"
        "none*) exit 1;;\n"
        "*--strict*) ;;\n"
        "*) echo PYSEC-2019-217; exit 1;;\n"
        "esac\n"
        f"test {advisories} = clean\n"
    )
    program.chmod(0o755)

    done = subprocess.run(["sh", "deploy/audit.sh", program], cwd=ROOT, capture_output=True)

    assert done.returncode == code
    assert (b"NOT AUDITED" in done.stderr) == (code == 2)


def test_linting_for_security_is_on():
    done = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--stdin-filename", "services/x.py", "-"],
        input=b"import subprocess\nsubprocess.run('ls', shell=True)\n",
        cwd=ROOT,
        capture_output=True,
    )

    assert b"S602" in done.stdout + done.stderr or b"S605" in done.stdout
