"""What Prometheus asks for: the figures of all processes, at a port of their own."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from config.settings import Settings, SettingsError


@contextmanager
def exposed(settings: Settings) -> Iterator[None]:
    """Answer Prometheus, in a thread, if that is wanted; raises SettingsError for a bad port."""
    if settings.metrics_port is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="feedboard-metrics-") as folder:
        # Where all processes keep their figures; it is read once, when the library is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _answer(settings.metrics_host, settings.metrics_port, Path(folder))
        yield


def _answer(host: str, port: int, folder: Path) -> None:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.metrics_core import Metric
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

    class Collector(MultiProcessCollector):
        """Without the states of processes that are gone."""

        def collect(self) -> Iterable[Metric]:
            for file in folder.glob("gauge_live*_*.db"):
                pid = int(file.stem.rpartition("_")[2])
                if not psutil.pid_exists(pid):
                    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
            found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
            return found

    registry = CollectorRegistry()
    Collector(registry, str(folder))  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(
            f"METRICS_PORT: {host}:{port} cannot be listened on ({error.strerror or error})."
        ) from error
