"""Mail: it goes by a real mail server or into a file, none is lost, and no line tells its link."""

import asyncio
import datetime as dt
import ipaddress
import json
import re
import ssl
import stat
from dataclasses import replace
from email import message_from_bytes, policy
from types import SimpleNamespace

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, func, select, text, update

from config.db import open_engine, session_factory
from models.base import NOW
from models.link import Link, LinkKind
from models.mail import Mail, MailKind
from services import links, postman
from services import mail as mail_
from services.mail import open_post
from tests.conftest import PASSWORD
from tests.mail import Letterbox, mail_server, token_in

ADA = {"email": "ada@example.com", "password": PASSWORD, "nickname": "Ada"}


@pytest.fixture
def lines():
    with structlog.testing.capture_logs([structlog.processors.format_exc_info]) as lines:
        yield lines


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with a certificate of localhost, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate").write_bytes(made.public_bytes(pem))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key").write_bytes(key.private_bytes(pem, *plain))
    return folder


@pytest.fixture
def tls(certificate, monkeypatch):
    """For a server whom the service trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "certificate", certificate / "key")
    return context


@pytest.fixture
async def waiting(client):
    """A mail waits: Ada has just signed up."""
    assert (await client.post("/api/auth/signup", json=ADA)).status_code == 200


def by(settings, server, scheme="smtp", user="feedboard:p%40ss%20word@"):
    url = f"{scheme}://{user}localhost:{server.port}"
    return open_post(settings.replace(smtp_url=url, mail_from="The Board <board@example.com>"))


async def count(db):
    """How many mails are still to be sent."""
    async with db.begin():
        return await db.scalar(select(func.count(Mail.id)).where(Mail.done_dt.is_(None)))


async def make_due(db):
    async with db.begin():
        await db.execute(update(Mail).values(due_dt=NOW))


async def minutes_until_due(db):
    async with db.begin():
        seconds = (await db.scalars(select(func.extract("epoch", Mail.due_dt - NOW)))).one()
    return round(float(seconds) / 60)


async def test_a_mail_reaches_its_reader_by_a_server_that_offers_tls(
    settings, db, waiting, tls, lines
):
    async with mail_server(starttls=tls) as server:
        await postman.send_one(db, by(settings, server))

    (came,) = server.mails
    assert server.recipients == ["ada@example.com"]
    assert server.credentials == [(b"feedboard", b"p@ss word")]
    assert server.encrypted == [True]
    assert (came["From"], came["To"]) == ("The Board <board@example.com>", "ada@example.com")
    assert came["Subject"] == "Confirm your e-mail address"
    assert came["Message-ID"].endswith("@example.com>")
    assert came["Date"].datetime.tzinfo
    assert f"{settings.base_url}/account/verify#token=" in came.get_content()
    assert await count(db) == 0
    assert [line["event"] for line in lines] == ["a mail was sent"]


async def test_smtps_is_encrypted_from_the_first_byte(settings, db, waiting, tls):
    async with mail_server(tls=tls) as server:
        await postman.send_one(db, by(settings, server, "smtps", user=""))

    assert (len(server.mails), server.encrypted) == (1, [True])


async def test_a_server_that_cannot_prove_its_name_gets_nothing(
    settings, db, waiting, tls, monkeypatch
):
    monkeypatch.delenv("SSL_CERT_FILE")
    async with mail_server(starttls=tls) as server:
        await postman.send_one(db, by(settings, server))

    assert (server.mails, server.credentials, await count(db)) == ([], [], 1)


async def test_a_password_does_not_cross_a_network_in_the_clear(settings, db, waiting, monkeypatch):
    monkeypatch.setattr(mail_, "_LOOPBACK", set())
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server))

    assert (server.mails, server.credentials, await count(db)) == ([], [], 1)


async def test_a_server_with_neither_password_nor_tls_is_taken_as_it_is(settings, db, waiting):
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server, user=""))

    assert (len(server.mails), server.encrypted) == (1, [False])


async def test_an_address_in_another_script_is_reached(settings, db, client):
    await client.post("/api/auth/signup", json=ADA | {"email": "한글@example.com"})
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server, user=""))

    assert server.recipients == ["한글@example.com"]


async def test_a_mail_waits_for_a_server_that_is_away_and_goes_once(settings, db, waiting, lines):
    async with mail_server() as server:
        pass
    await postman.send_one(db, by(settings, server))
    again_at_once = await postman.send_one(db, by(settings, server))

    await make_due(db)
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server))
        await make_due(db)
        last = await postman.send_one(db, by(settings, server))

    assert (again_at_once, last, len(server.mails)) == (False, False, 1)
    assert lines[0]["event"] == "a mail is tried again later"


async def test_pauses_between_attempts_grow_and_a_day_later_a_mail_is_given_up(
    settings, db, waiting, lines
):
    async with mail_server() as server:
        pass
    post, pauses = by(settings, server), []
    for _ in range(8):
        await postman.send_one(db, post)
        pauses.append(await minutes_until_due(db))
        await make_due(db)
    async with db.begin():
        await db.execute(update(Mail).values(create_dt=NOW - dt.timedelta(days=1)))
    await postman.send_one(db, post)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert await count(db) == 0
    assert (lines[-1]["event"], lines[-1]["log_level"]) == ("a mail was given up", "error")


async def test_a_recipient_who_is_refused_for_good_is_not_tried_again(settings, db, waiting, lines):
    async with mail_server() as server:
        server.refuses = "550 no such mailbox"
        await postman.send_one(db, by(settings, server))

    assert await count(db) == 0
    assert lines[-1]["event"] == "a mail cannot be delivered"
    assert lines[-1]["error"] == "SMTP 550"


async def test_a_recipient_who_is_refused_for_now_is_tried_again(settings, db, waiting):
    async with mail_server() as server:
        server.refuses = "450 come again"
        await postman.send_one(db, by(settings, server))

    assert await count(db) == 1


async def test_a_server_that_hangs_is_given_up_on(settings, db, waiting, monkeypatch, lines):
    monkeypatch.setattr(mail_, "PATIENCE", 0.2)
    async with mail_server() as server:
        server.hangs = True
        async with asyncio.timeout(10):
            await postman.send_one(db, by(settings, server))

    assert await count(db) == 1
    assert lines[-1]["error"] == "TimeoutError"


async def test_no_line_tells_a_password_an_address_or_what_the_server_says(
    settings, db, waiting, lines
):
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server, user="feedboard:a-wrong-one@"))
        server.refuses = "450 what you say about http://localhost:8000/account/verify#token=x"
        await make_due(db)
        await postman.send_one(db, by(settings, server))

    assert [line["event"] for line in lines] == ["a mail is tried again later"] * 2
    assert lines[0]["error"] == "SMTPAuthenticationError 535"
    told = json.dumps(lines)
    assert not any(secret in told for secret in ("wrong-one", "p@ss", "token", "ada@"))


async def test_without_a_server_a_mail_is_a_file_for_the_services_account_alone(
    settings, db, waiting, lines, tmp_path
):
    post = open_post(settings.replace(data_dir=tmp_path / "new"))

    await postman.send_one(db, post)

    (path,) = (tmp_path / "new/outbox").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    mail = message_from_bytes(path.read_bytes(), policy=policy.default)
    assert (path.suffix, mail["To"]) == (".eml", "ada@example.com")
    assert f"/account/verify#token={token_in(mail)}\n".encode() in path.read_bytes().replace(
        b"\r\n", b"\n"
    )
    assert lines[0]["path"] == str(path)
    assert token_in(mail) not in json.dumps(lines)


async def test_an_outbox_that_cannot_be_written_loses_no_mail(settings, db, waiting, tmp_path):
    (tmp_path / "outbox").write_text("a file")

    await postman.send_one(db, open_post(settings.replace(data_dir=tmp_path)))

    assert await count(db) == 1


async def test_a_link_goes_to_a_front_ends_own_page(settings, sessions, waiting):
    own = settings.replace(verify_url="https://보드.example.com/mine?verify={token}")

    (mail,) = await Letterbox(own, sessions).fetch()

    assert "\nhttps://보드.example.com/mine?verify=" in mail.get_content()


async def test_nothing_that_a_user_wrote_is_in_a_mail(settings, sessions, client):
    spam = "Win at https://x.example"
    await client.post("/api/auth/signup", json=ADA | {"nickname": spam})

    (mail,) = await Letterbox(settings, sessions).fetch()

    assert spam not in mail.as_string()


async def test_a_sign_up_that_is_refused_sends_nothing(settings, sessions, client, waiting):
    await client.post("/api/auth/signup", json=ADA | {"email": "other@example.com"})

    mails = await Letterbox(settings, sessions).fetch()

    assert [mail["To"] for mail in mails] == ["ada@example.com"]


async def test_who_asks_twice_before_a_mail_goes_gets_one(settings, sessions, waiting):
    letterbox = Letterbox(settings, sessions)
    for _ in range(3):
        await letterbox.ask(MailKind.RESET, "ADA@example.com")

    subjects = sorted(mail["Subject"] for mail in await letterbox.fetch())

    assert subjects == ["Choose a new password", "Confirm your e-mail address"]


async def test_who_asks_again_while_a_mail_goes_gets_another(settings, sessions, db, waiting):
    letterbox = Letterbox(settings, sessions)
    going = await postman.claim(db)
    await letterbox.ask(MailKind.VERIFY, "ada@example.com")
    await postman._note(db, going)

    assert await letterbox.fetch() == [], "not at once: nobody's post is flooded"
    assert await minutes_until_due(db) == 1
    await make_due(db)
    assert len(await letterbox.fetch()) == 1


@pytest.mark.parametrize("kind", MailKind)
@pytest.mark.parametrize("email", ["ada@example.com", "nobody@example.com"])
async def test_of_each_kind_one_mail_a_minute_goes_to_an_address(
    settings, sessions, db, waiting, kind, email
):
    """Where there is no account, no mail goes; what is kept of it is the same."""
    letterbox = Letterbox(settings, sessions)
    await letterbox.fetch()
    async with db.begin():
        await db.execute(delete(Mail))
    there = int(email == "ada@example.com")
    came = []
    for _ in range(3):
        await letterbox.ask(kind, email)
        came.append(len(await letterbox.fetch()))
        await postman.forget(db)

    assert came == [there, 0, 0]
    assert (await count(db), await minutes_until_due(db)) == (1, 1)
    await make_due(db)
    assert len(await letterbox.fetch()) == there


async def test_who_asks_on_and_on_does_not_put_the_mail_off(settings, sessions, db, waiting):
    letterbox = Letterbox(settings, sessions)
    await letterbox.fetch()
    await letterbox.ask(MailKind.VERIFY, "ada@example.com")
    async with db.begin():
        await db.execute(update(Mail).values(due_dt=NOW + dt.timedelta(seconds=20)))

    await letterbox.ask(MailKind.VERIFY, "ada@example.com")

    assert await minutes_until_due(db) == 0


async def test_a_mail_that_went_is_forgotten_a_minute_later_and_one_that_waits_is_not(
    settings, sessions, db, waiting
):
    letterbox = Letterbox(settings, sessions)
    await letterbox.fetch()
    await letterbox.ask(MailKind.RESET, "ada@example.com")
    kinds = select(Mail.kind).order_by(Mail.kind)
    left = []
    for past in (postman.SPACING - dt.timedelta(seconds=30), dt.timedelta(seconds=31)):
        later = {"done_dt": Mail.done_dt - past, "due_dt": NOW + dt.timedelta(minutes=1)}
        async with db.begin():
            await db.execute(update(Mail).values(**later))
        assert await postman._round(sessions, letterbox.post)
        async with db.begin():
            left.append((await db.scalars(kinds)).all())

    assert left == [[MailKind.RESET, MailKind.VERIFY], [MailKind.RESET]]


async def test_a_mail_that_tells_of_a_changed_password_goes_by_a_server_and_has_no_link(
    settings, sessions, db, waiting
):
    await Letterbox(settings, sessions).fetch()
    await Letterbox(settings, sessions).ask(MailKind.CHANGED, "ADA@example.com")
    async with mail_server() as server:
        await postman.send_one(db, by(settings, server, user=""))

    (came,) = server.mails
    assert (came["To"], came["Subject"]) == ("ada@example.com", "Your password was changed")
    assert 'ask for a new password, by "forgot password"' in came.get_content()
    told = re.findall(r"\S*://\S*", came.get_content())
    assert told == [settings.base_url], "which board it is, and no link to click"
    async with db.begin():
        assert (await db.scalars(select(Link.kind))).all() == [LinkKind.VERIFY]


async def test_a_mail_whose_sender_died_goes_by_another_and_both_its_links_are_good(
    settings, sessions, db, client, waiting
):
    """The server may have taken the first one: nobody knows."""
    died = await postman.claim(db)
    await make_due(db)
    token = await Letterbox(settings, sessions).token()

    for sent in (died.token, token):
        async with db.begin() as transaction:
            assert (await links.owner(db, LinkKind.VERIFY, sent)).email == "ada@example.com"
            await transaction.rollback()


async def test_no_token_is_stored(settings, sessions, db, waiting):
    token = await Letterbox(settings, sessions).token()

    async with db.begin():
        for table in ("links", "mails", "users"):
            rows = (await db.scalars(text(f"SELECT t::text FROM {table} t"))).all()
            assert not any(token in row or token.encode().hex() in row for row in rows)
        assert len((await db.scalars(select(Link.token_hash))).one()) == 32


async def test_many_postmen_send_each_mail_once(live_app, live_client, settings):
    """On real connections, while the service's own postman is at work, too."""
    sessions, kept = live_app.state.sessions, []
    letterboxes = [Letterbox(settings, sessions) for _ in range(4)]
    for letterbox in letterboxes:
        letterbox.post = replace(letterbox.post, deliver=lambda mail: _slowly(kept, mail))
    async with sessions() as db, db.begin():
        await db.execute(
            text("""INSERT INTO users (email, email_key, password_hash, nickname, nickname_key)
            SELECT k, k, '', k, k FROM (SELECT 'p' || n || '@example.com' AS k
            FROM generate_series(1, 40) n) AS names""")
        )
        await db.execute(
            text(
                "INSERT INTO mails (email_key, kind) SELECT email_key, 'verify' FROM users "
                "WHERE email LIKE 'p%@example.com'"
            )
        )

    await asyncio.gather(*(letterbox.fetch() for letterbox in letterboxes))

    async with sessions() as db, db.begin():
        made = await db.scalar(
            text(
                "SELECT count(*) FROM links JOIN users ON users.id = user_id "
                "WHERE email LIKE 'p%@example.com'"
            )
        )
    assert len(kept) == len({mail["To"] for mail in kept})
    assert made == 40


async def test_the_postman_asks_a_database_that_fails_less_and_less_often(
    settings, monkeypatch, lines
):
    dead = settings.replace(database_url="postgresql+asyncpg://a@127.0.0.1:1/a")
    pauses = []
    ours = asyncio.current_task()

    async def sleep(seconds):
        if asyncio.current_task() is not ours:  # The service's own postman goes on meanwhile.
            await asyncio.sleep(seconds)
            return
        pauses.append(seconds)
        if len(pauses) == 7:
            raise asyncio.CancelledError

    monkeypatch.setattr(postman, "asyncio", SimpleNamespace(sleep=sleep))
    async with open_engine(dead) as engine:
        with pytest.raises(asyncio.CancelledError):
            await postman.send_forever(session_factory(engine), open_post(settings))

    assert pauses == [4, 8, 16, 32, 60, 60, 60]
    assert {line["event"] for line in lines} == {"mails could not be sent"}


async def _slowly(kept, mail):
    await asyncio.sleep(0)
    kept.append(mail)
