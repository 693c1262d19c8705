"""What operators see: Prometheus' figures, OpenTelemetry's traces, and the ids in log lines."""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from models.base import NOW
from models.image import Image, ImageState
from services import reaper
from tests.conftest import SECRET, bearer, own_folder, user_maker
from tests.crash_parts import Service, lasting_port
from tests.otlp import collecting
from tests.pictures import annotated_png

ROOT = Path(__file__).parent.parent
DASHBOARD = json.loads((ROOT / "deploy/grafana/feedboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
PNG = annotated_png()
# Prometheus' own: what it knows of a target, and of a histogram's bucket.
ITS_OWN = {"job", "instance", "le"}


@asynccontextmanager
async def serving(make_database, store, *, workers=1, **environment):
    """A service in processes of its own, and a client of it."""
    given = {"database_url": await make_database(), "secret_key": SECRET} | store
    named = {name.upper(): str(value) for name, value in given.items()}
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(own_folder())
        service = Service(folder, **named)
        service.environment |= {"ACCESS_LOG": "true", "LOG_FORMAT": "json"} | environment
        service.serve_with(workers)
        stack.callback(service.close)
        await service.start()
        yield service, await stack.enter_async_context(httpx.AsyncClient(base_url=service.url))


async def figures(port):
    """Values by name and labels, as Prometheus reads them."""
    async with httpx.AsyncClient() as client:
        told = await client.get(f"http://127.0.0.1:{port}/metrics")
    found = defaultdict(dict)
    for family in text_string_to_metric_families(told.text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def until(true, port):
    """The figures, as soon as something holds for them."""
    async with asyncio.timeout(20):
        while not true(found := await figures(port)):
            await asyncio.sleep(0.1)
    return found


def total(series, **labels):
    return sum(v for k, v in series.items() if labels.items() <= dict(k).items())


def selectors():
    """Each metric that the dashboard or an alert names, with the labels that it picks by."""
    expressions = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    for panel in DASHBOARD["panels"]:
        expressions += [target["expr"] for target in panel["targets"]]
    found = []
    for expression in expressions:

        def note(part, seen):
            if isinstance(part, promql_parser.VectorSelector):
                seen["metrics"].append(part)
            if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
                seen["labels"] |= set(part.modifier.labels)

        seen = {"metrics": [], "labels": set()}
        tree = promql_parser.parse(expression.replace("$__rate_interval", "1m"))
        promql_parser.walk(tree, lambda part, seen=seen: note(part, seen))
        for metric in seen["metrics"]:
            matched = {matcher.name for matcher in metric.matchers.matchers}
            found.append((metric.name, matched | seen["labels"]))
    return found


async def test_all_processes_are_counted_and_what_is_drawn_or_watched_is_there(
    make_database, store
):
    port = lasting_port()
    async with serving(make_database, store, workers=2, METRICS_PORT=str(port)) as (
        service,
        client,
    ):
        author = await user_maker(client)()
        posted = await client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files={"images": ("a.png", PNG)},
            headers=bearer(author),
        )
        feed = posted.json()

        async def read(path):
            # A connection of its own, so that both processes get some.
            async with httpx.AsyncClient(base_url=service.url) as visitor:
                await visitor.get(path)

        for path in ("/api/feed/list", f"/api/feed/read/{feed['id']}", "/nowhere/1", "/nowhere/2"):
            await asyncio.gather(*(read(path) for _ in range(25)))
        requests = "http_server_request_duration_seconds_count"
        found = await until(lambda it: total(it[requests], http_route="") >= 50, port)

        assert total(found[requests], http_route="/api/feed/list") == 25
        assert total(found[requests], http_route="/api/feed/read/{feed_id}") == 25
        assert total(found[requests], http_response_status_code="404", http_route="") == 50
        assert total(found[requests], http_request_method="POST") == 3
        drawn = selectors()
        assert len(drawn) > 15
        for name, labels in drawn:
            if name != "up":
                assert found[name], name
                assert labels - ITS_OWN <= {label for key in found[name] for label, _ in key}, name

        processes = {dict(key)["pid"] for key in found["process_resident_memory_bytes"]}
        assert processes == {str(it.pid) for it in service.worker_processes()}
        await service.kill_a_worker(0)
        alive = {str(it.pid) for it in service.worker_processes()}
        memory = "process_resident_memory_bytes"
        found = await until(lambda it: {dict(k)["pid"] for k in it[memory]} == alive, port)
        # What the dead one has counted is not forgotten.
        assert total(found[requests], http_route="/api/feed/list") == 25


async def test_a_port_for_figures_that_is_taken_stops_the_start_with_a_sentence(
    make_database, store
):
    port = str(lasting_port())
    async with serving(make_database, store, METRICS_PORT=port), AsyncExitStack() as stack:
        second = serving(make_database, store, METRICS_PORT=port)
        with pytest.raises(AssertionError, match=rf"METRICS_PORT: 127.0.0.1:{port} cannot be"):
            await stack.enter_async_context(second)


async def test_who_waits_for_a_connection_is_seen(live_app):
    use = live_app.state.pools["all"]
    held = [live_app.state.sessions() for _ in range(use().limit)]
    async with AsyncExitStack() as stack:
        for db in held:
            await stack.enter_async_context(db.begin())
            await db.connection()

        async def wait():
            async with live_app.state.sessions() as db, db.begin():
                await db.connection()

        waiting = asyncio.create_task(wait())
        async with asyncio.timeout(5):
            while not use().waiting:
                await asyncio.sleep(0)
        assert (use().used, use().idle) == (use().limit, 0)
    await waiting
    for db in held:
        await db.close()
    assert use().waiting == 0


async def test_the_backlog_of_the_reaper_is_counted_by_state_and_by_age(
    db, client, make_user, make_feed
):
    await make_feed(author=await make_user(), images=[PNG])
    before = await reaper.backlog(db)
    async with db.begin():
        await db.execute(
            update(Image).values(
                state=ImageState.CONDEMNED, feed_id=None, reap_dt=NOW - timedelta(hours=1)
            )
        )
    after = await reaper.backlog(db)

    assert before.seconds == 0
    assert before.rows["condemned"] == 0
    assert after.rows["condemned"] > 0
    assert 3600 <= after.seconds < 3700


TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_request_is_traced_with_its_statements_and_its_objects(make_database, store):
    with collecting() as (url, collector):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        async with serving(make_database, store, **environment) as (service, client):
            author = await user_maker(client)()
            traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            posted = await client.post(
                "/api/feed/create",
                data={"title": "Title", "content": "sixty-one"},
                files={"images": ("a.png", PNG)},
                headers=bearer(author) | traced,
            )
            feed = posted.json()
            for path in (f"/api/feed/read/{feed['id']}", feed["image_urls"][0]):
                assert (await client.get(path, headers=traced)).status_code == 200
            service.stop()  # which sends what is left
            service.process = None
            lines = [
                json.loads(line) for line in service.log.read_text().splitlines() if line[0] == "{"
            ]
    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    names = [span.name for span in spans]
    everything = str(collector.spans)

    # The two reads have no router: the fast lane names their routes.
    roots = {"POST /api/feed/create", "GET /api/feed/read/{feed_id}", "GET /images/{name}"}
    assert roots <= set(names)
    assert {"INSERT", "SELECT", "S3 PUT", "S3 GET"} <= set(names)
    assert collector.services == {"feedboard"}
    assert "http.server.request.duration" in collector.metrics
    # Neither what users write, nor what opens a door.
    for secret in ("sixty-one", "X-Amz-Signature", author["access_token"]):
        assert secret not in everything
    ids = {span.span_id.hex() for span in spans}
    logged = [line for line in lines if line.get("trace_id") == TRACE]
    assert [line["status"] for line in logged] == [200, 200, 200]
    assert {line["span_id"] for line in logged} <= ids
    # Periodic work is nobody's request: no trace begins with a statement.
    assert not [
        span for span in collector.spans if span.name == "SELECT" and not span.parent_span_id
    ]


async def test_a_collector_that_is_not_there_changes_nothing_but_the_log(make_database, store):
    gone = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{lasting_port()}"}
    async with serving(make_database, store, **gone) as (service, client):
        answer = await client.get("/api/feed/list")
        assert answer.status_code == 200
        assert service.stop() == 0
        service.process = None
        assert "while exporting" in service.log.read_text()


def test_what_is_switched_off_is_not_even_loaded():
    script = """
import sys
from app.main import create_app
from tests.conftest import make_settings
create_app(make_settings())
heavy = "prometheus_client", "opentelemetry.sdk", "opentelemetry.instrumentation"
print(*[name for name in sys.modules if name.startswith(heavy)])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.split() == [], done.stderr
