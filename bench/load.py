"""Load by wrk: requests that were written before are sent in a circle, by kept connections."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender

# A thread's requests begin at a place of its own in the circle; what was measured is one line.
SCRIPT = """
local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for text in file:read("*a"):gmatch("[^%z]+") do requests[#requests + 1] = text end
  file:close()
  at = tonumber(args[2]) % #requests
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local wrong = summary.errors
  io.write(string.format("measured %d %d %d %d %d\\n", summary.requests, summary.duration,
    wrong.status + wrong.connect + wrong.read + wrong.write + wrong.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Measured:
    """Requests a second; milliseconds; microseconds of the server's processor time a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Requests:
    """What is sent, in a file that wrk reads."""

    def __init__(self, folder: Path, texts: Sequence[bytes]) -> None:
        self.first = texts[0]
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(b"\0".join(texts))
        self.path = file.name


def get(path: str, headers: Mapping[str, str] | None = None) -> bytes:
    lines = "".join(
        f"{k}: {v}\r\n" for k, v in ({"Host": "localhost"} | dict(headers or {})).items()
    )
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


def post(path: str, form: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(form)}\r\n\r\n{form}"
    ).encode()


def require_wrk() -> None:
    """Install it where that can be done without asking; ends with a sentence where it cannot."""
    if shutil.which("wrk"):
        return
    apt = shutil.which("apt-get")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if apt and (not sudo or shutil.which("sudo")):
        subprocess.run([*sudo, apt, "update", "-qq"])  # noqa: S603
        subprocess.run([*sudo, apt, "install", "-qq", "-y", "--no-install-recommends", "wrk"])  # noqa: S603
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: install it (Debian, Ubuntu, Homebrew: wrk), then run this again.")


def measure(
    contender: Contender, requests: Requests, *, connections: int, seconds: int, start: int
) -> Measured:
    """Ask one contender, all others idle; ends with a sentence if any answer is not a 200."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s", "--latency"]
        command += ["-s", script.name, contender.url, "--", requests.path, str(start)]
        before = contender.cpu()
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        spent = contender.cpu() - before
    _settle(contender)
    line = next(line for line in done.stdout.splitlines() if line.startswith("measured "))
    count, duration, wrong, p50, p99 = map(int, line.split()[1:])
    if not wrong and not count and seconds < 60:
        # An answer takes longer than that.
        return measure(
            contender, requests, connections=connections, seconds=2 * seconds, start=start
        )
    if wrong or not count:
        sys.exit(
            f"{contender.name}: {wrong} of {count} requests went wrong. The first, sent again:\n"
            f"{requests.first.decode()}\n{_answer(contender, requests.first)}\n"
            f"Its log: {contender.log.read_text()[-1000:]}"
        )
    return Measured(count / duration * 1e6, p50 / 1e3, p99 / 1e3, spent / count * 1e6)


def _settle(contender: Contender) -> None:
    """Wait until what wrk did not wait for is over, so that it is in nobody else's way."""
    for _ in range(50):
        before = contender.cpu()
        time.sleep(0.1)
        if contender.cpu() - before < 0.02:
            break


def _answer(contender: Contender, request: bytes) -> str:
    with socket.create_connection(("127.0.0.1", contender.port), timeout=30) as connection:
        connection.sendall(request)
        return connection.recv(2000).decode(errors="replace")
