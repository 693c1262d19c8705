"""The environment: what is taken, what stops the start, and that every setting is documented."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import Settings, SettingsError
from tests.conftest import SECRET, make_settings

ROOT = Path(__file__).parent.parent


def load(monkeypatch, tmp_path, **environment):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def test_nothing_set_means_embedded_parts_and_the_defaults_that_clients_rely_on(
    monkeypatch, tmp_path
):
    settings = load(monkeypatch, tmp_path)

    assert settings.embeds_database
    assert settings.embeds_store
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.s3_region == "ap-northeast-2"
    assert settings.data_dir == Path("data")
    assert settings.base_url == "http://localhost:8000"


def test_the_environment_wins_over_the_env_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PORT=9001\nHOST=0.0.0.0\n")

    settings = load(monkeypatch, tmp_path, PORT="9002")

    assert (settings.host, settings.port) == ("0.0.0.0", 9002)
    assert settings.base_url == "http://localhost:9002"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql://u:p@h:5433/n", "postgresql+asyncpg://u:p@h:5433/n"),
        ("postgres://u@h/n", "postgresql+asyncpg://u@h/n"),
        ("postgresql+asyncpg://u:p%40@h/n", "postgresql+asyncpg://u:p%40@h/n"),
        ("postgresql://u@h/n?sslmode=require", "postgresql+asyncpg://u@h/n?ssl=require"),
        ("postgresql://u@/n?host=/run/pg", "postgresql+asyncpg://u@/n?host=%2Frun%2Fpg"),
    ],
)
def test_a_database_url_is_taken_in_any_usual_spelling(given, taken):
    assert make_settings(database_url=given).database_url == taken


FAULTS = {
    "PORT": [{"PORT": "http"}, {"PORT": "0"}, {"PORT": "70000"}],
    "WORKERS": [{"WORKERS": "0"}],
    "DATABASE_URL": [
        {"DATABASE_URL": "mysql://u@h/n"},
        {"DATABASE_URL": "nonsense"},
        {"DATABASE_POOLER": "true"},
    ],
    "DATABASE_POOLER": [{"DATABASE_POOLER": "perhaps"}],
    "DATABASE_DIRECT_URL": [
        {"DATABASE_DIRECT_URL": "nonsense"},
        {"DATABASE_DIRECT_URL": "postgresql://u@h/n"},
    ],
    "SECRET_KEY": [{"SECRET_KEY": "short"}, {"DATABASE_URL": "postgresql://u@h/n"}],
    "FORMER_SECRET_KEYS": [
        {"FORMER_SECRET_KEYS": "short"},
        {"FORMER_SECRET_KEYS": "x" * 32 + ",y"},
    ],
    "REFRESH_TOKEN_DAYS": [{"REFRESH_TOKEN_DAYS": "0"}, {"REFRESH_TOKEN_DAYS": "a month"}],
    "PUBLIC_URL": [{"PUBLIC_URL": "feeds.example.com"}],
    "S3_PUBLIC_URL": [{"S3_PUBLIC_URL": "ftp://cdn.example.com"}],
    "S3_ENDPOINT_URL": [{"S3_ENDPOINT_URL": "localhost:9000", "S3_BUCKET": "b"}],
    "S3_SECRET_KEY": [{"S3_BUCKET": "b", "S3_ACCESS_KEY": "k"}],
    "S3_ACCESS_KEY": [{"S3_BUCKET": "b", "S3_SECRET_KEY": "k"}],
    "S3_BUCKET": [{"S3_ENDPOINT_URL": "http://localhost:9000"}],
    "MAX_IMAGE_BYTES": [{"MAX_IMAGE_BYTES": "10 MB"}],
    "S3_UPLOAD_URL": [{"S3_UPLOAD_URL": "store.example.com"}],
    "S3_KEY_PREFIX": [{"S3_KEY_PREFIX": "/board"}, {"S3_KEY_PREFIX": "a b"}],
    "IMAGE_WIDTHS": [{"IMAGE_WIDTHS": "320;960"}, {"IMAGE_WIDTHS": "wide"}],
    "COMMENT_DEPTH": [{"COMMENT_DEPTH": "0"}],
    "RESTORE_DAYS": [{"RESTORE_DAYS": "-1"}, {"RESTORE_DAYS": "a week"}],
    "RATE_LIMITS": [
        {"RATE_LIMITS": text}
        for text in ("on", "read", "read=", "read=0/minute", "read=5/week", "post=5/minute")
    ]
    + [{"RATE_LIMITS": "read=1/day,read=2/day"}, {"RATE_LIMITS": "read=5/minute;6/hour"}],
    "REDIS_URL": [
        {"REDIS_URL": url}
        for url in ("localhost:6379", "http://h", "redis://", "redis://h:port", "redis://a:1,b:2")
    ],
    "TRUSTED_PROXIES": [
        {"TRUSTED_PROXIES": text} for text in ("proxy", "10.0.0.1/8", "10.0.0.0/33", "*")
    ],
    "SMTP_URL": [
        {"SMTP_URL": "mail.example.com", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "https://mail.example.com", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "smtp://", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "smtp://user@host", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "smtp://host:0", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "smtp://user:pa/ss@host", "MAIL_FROM": "a@example.com"},
        {"SMTP_URL": "smtp://user:pa#ss@host", "MAIL_FROM": "a@example.com"},
    ],
    "MAIL_FROM": [
        {"SMTP_URL": "smtp://host"},
        {"MAIL_FROM": "The Board"},
        {"MAIL_FROM": "board@"},
        {"MAIL_FROM": "board@example.com\nBcc: all@example.com"},
    ],
    "RESET_URL": [{"RESET_URL": "https://example.com/reset"}, {"RESET_URL": "/reset#{token}"}],
    "VERIFY_URL": [{"VERIFY_URL": "https://example.com/{token}/{token}"}],
    "LOG_LEVEL": [{"LOG_LEVEL": "loud"}],
}


@pytest.mark.parametrize(
    ("name", "environment"), [(name, e) for name, faults in FAULTS.items() for e in faults]
)
def test_a_missing_or_malformed_setting_stops_the_start_and_is_named(
    monkeypatch, tmp_path, name, environment
):
    with pytest.raises(SettingsError, match=rf"^{name}\b.*\.$"):
        load(monkeypatch, tmp_path, **environment)


@pytest.mark.parametrize(
    "url", ["smtp://host", "smtps://host:465", "smtp://u:p%2Fw@host:587/", "smtp://[::1]:25"]
)
def test_a_mail_server_is_taken_in_any_usual_spelling(url):
    settings = make_settings(smtp_url=url, mail_from="The Board <board@example.com>")

    assert settings.smtp_url.get_secret_value() == url


def test_widths_of_variants_are_numbers_by_commas_and_0_is_none():
    assert make_settings(image_widths="960,320,320").widths == (320, 960)
    assert make_settings(image_widths="0").widths == ()


def test_keys_are_the_present_one_and_then_the_former_ones():
    former = f"{'a' * 32}, {'b' * 32},"

    assert make_settings(former_secret_keys=former).keys == [SECRET, "a" * 32, "b" * 32]
    assert make_settings().keys == [SECRET]


def test_a_secret_is_never_repeated_in_what_is_said():
    settings = make_settings(s3_secret_key="hidden", s3_access_key="k", s3_bucket="b")

    assert "hidden" not in repr(settings)
    with pytest.raises(ValidationError) as malformed:
        make_settings(smtp_url="smtp://user:hid/den@host")
    assert "hid" not in str(malformed.value.errors()[0]["msg"])
    assert "hidden" not in repr(
        make_settings(smtp_url="smtp://user:hidden@host", mail_from="a@b.cc")
    )
    assert SECRET not in repr(settings)


def test_every_setting_is_described_and_documented():
    documented = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.M)
    )

    assert all(field.description for field in Settings.model_fields.values())
    assert documented == {name.upper() for name in Settings.model_fields}


def test_no_secret_has_a_default():
    secrets = {"secret_key", "former_secret_keys", "s3_secret_key", "s3_access_key"}
    secrets |= {"smtp_url", "database_url", "database_direct_url"}

    assert all(Settings.model_fields[name].default is None for name in secrets)
