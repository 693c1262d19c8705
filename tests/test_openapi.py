"""The OpenAPI document: true, complete, and fit for tools."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import httpx
import pytest
import schemathesis
from email_validator import EmailNotValidError, validate_email
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData

from config.s3 import open_s3
from models.base import MAX_ID
from models.feed import SortBy
from services.cursors import Cursor
from tests import pictures
from tests.conftest import PASSWORD, Json, bearer
from tests.live import served

# Examples per operation and phase. Unset: a few, always the same ones, so that no run of the suite
# fails by chance; set (`make fuzz`): that many, new ones each time.
FUZZ = int(os.environ.get("FEEDBOARD_FUZZ", "0"))

# What a schema cannot say: fields that must fit each other, or what is stored. A 422 for valid
# single values is right where it names one of these.
BEYOND_SCHEMAS = {
    # A cursor carries its own order and its own place.
    ("GET /api/feed/list", "/sort_by"),
    ("GET /api/feed/list", "/skip"),
    # Only an image that this feed shows can be removed from it.
    ("PATCH /api/feed/update/{feed_id}", "/target_image_urls"),
    # The limit counts the images that the feed has already.
    ("PATCH /api/feed/update/{feed_id}", "/new_images"),
}


def _is_address(text: str) -> bool:
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _register_formats() -> None:
    """Make valid what the document's formats stand for: addresses, pictures, cursors."""
    domains = st.sampled_from(["example.com", "mail.example.org", "xn--bcher-kva.example.com"])
    names = st.text("aZ09!#$%&'*+-/=?^_`{|}~é한", min_size=1, max_size=20)
    addresses = st.builds("{}@{}".format, names, domains).filter(_is_address)
    schemathesis.openapi.format("email", addresses)
    files = [pictures.png(), pictures.jpeg(), pictures.avif(), pictures.camera_jpeg()]
    schemathesis.openapi.format("binary", st.sampled_from(files))
    times = st.datetimes(timezones=st.just(UTC))
    cursors = st.builds(Cursor, st.sampled_from(SortBy), times, st.integers(0, MAX_ID))
    schemathesis.openapi.format("cursor", cursors.map(Cursor.encode))


def _keep_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    if isinstance(failure, RejectedPositiveData) and response.status_code == 422:
        named = {error["pointer"] for error in response.json()["errors"]}
        return not all((case.operation.label, pointer) in BEYOND_SCHEMAS for pointer in named)
    # Of some mutations schemathesis does not see that what is sent fits the schema after all.
    return not (isinstance(failure, AcceptedNegativeData) and _body_fits(case))


def _body_fits(case: Any) -> bool:
    """Whether the body fits its schema as it is read: forms carry text, files, and no emptiness."""
    document = case.operation.schema.raw_schema
    operation = document["paths"][case.operation.path][case.operation.method]
    if not isinstance(case.body, dict):
        return False
    reference = operation["requestBody"]["content"][case.media_type]["schema"]["$ref"]
    shape = document["components"]["schemas"][reference.rpartition("/")[2]]
    body = case.body if case.media_type == "application/json" else _as_form(case.body, shape)
    return Draft202012Validator(shape).is_valid(body)


def _as_form(body: Json, shape: Json) -> Json:
    read = {}
    for name, value in body.items():
        values = value if isinstance(value, list) else [value]
        sent = [getattr(item, "data", item) for item in values]  # A file's bytes are its data.
        texts = [str(item) for item in sent if item not in (None, "", b"")]
        is_array = shape["properties"].get(name, {}).get("type") == "array"
        if texts:
            read[name] = texts if is_array else texts[-1]
    return read


@dataclass
class Findings:
    cases: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0


def _fuzz(url: str, headers: dict[str, str]) -> Findings:
    """Run schemathesis' engine: examples, boundaries, random values and chains of calls."""
    generation: Json = {"max-examples": FUZZ or 3, "deterministic": not FUZZ}
    config = SchemathesisConfig.from_dict(
        {
            "headers": headers,
            "continue-on-failure": True,
            "generation": generation,
            "phases": {"coverage": {"generate-duplicate-query-parameters": True}},
        }
        | ({} if FUZZ else {"seed": 1})
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    schema.hooks.register_hook_with_name(_keep_failure, "filter_failure")
    found = Findings()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                found.cases[event.phase.value] += len(event.recorder.cases)
                _collect(found, event.recorder)
                print(
                    event.phase.value,
                    event.label,
                    len(event.recorder.cases),
                    round(event.elapsed_time, 2),
                )
            case events.NonFatalError():
                found.faults.append(event.info.format())
            case events.FatalError():
                raise event.exception
            case events.EngineFinished():
                found.seconds = event.running_time
    return found


def _collect(found: Findings, recorder: Any) -> None:
    for case_id, checks in recorder.checks.items():
        call = recorder.interactions.get(case_id)
        if call and call.response:
            label = recorder.cases[case_id].value.operation.label
            found.statuses[label, call.response.status_code] += 1
        for check in checks:
            found.checks[check.name] += 1
            if check.failure_info:
                failure = check.failure_info.failure
                found.faults.append(
                    f"{failure.operation}: {failure.title}. {failure.message}\n"
                    f"{check.failure_info.code_sample}\n"
                    f"{call.response.status_code} {call.response.content[:500]!r}"
                )


@pytest.fixture
async def live_url(make_database: Any, settings: Any) -> Any:
    """The service on a database of its own, with a user, and an image of the documented name."""
    live = settings.model_copy(
        update={"database_url": await make_database(), "access_log": False, "max_images": 4}
    )
    async with served(live) as url, open_s3(live) as s3:
        key = "images/DmqkLjB9nV0aXjMzV0yq3A.jpg"
        await s3.put_object(
            Bucket=live.s3_bucket, Key=key, Body=pictures.jpeg(), ContentType="image/jpeg"
        )
        yield url
        await s3.delete_object(Bucket=live.s3_bucket, Key=key)


async def _log_in(url: str) -> dict[str, str]:
    account = {"email": "fuzz@example.com", "password": PASSWORD, "nickname": "Fuzz"}
    async with httpx.AsyncClient(base_url=url) as client:
        (await client.post("/api/auth/signup", json=account)).raise_for_status()
        account.pop("nickname")
        return bearer((await client.post("/api/auth/login", json=account)).json())


async def test_schemathesis_finds_nothing(live_url):
    _register_formats()
    found = await asyncio.to_thread(_fuzz, live_url, await _log_in(live_url))

    print(found.seconds, found.cases, found.checks)
    for k, v in sorted(found.statuses.items()):
        print(k, v)
    assert not found.faults, "\n\n".join(dict.fromkeys(found.faults))
