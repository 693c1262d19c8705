"""A laptop's own PostgreSQL and object store, under DATA_DIR, each for as long as a block runs."""

import http.client
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from filelock import FileLock, Timeout

from app.servers import EmbeddedFailed, Server, launch, running, uninterrupted, write_private
from config.dumps import packaged_programs

logger = logging.getLogger(__name__)

_PORT_ATTEMPTS = 3
_SEAWEEDFS_SERVERS = ("master", "volume", "filer", "s3", "admin")
# Paths are relative to its folder: a comma would make two of one, and a socket's must be short.
# A lone master needs no memory of its election, and a torn one could keep it from starting.
_SEAWEEDFS_OPTIONS = """
    -dir=. -s3.config=../seaweedfs-s3.json -filer.localSocket=filer.sock -s3.localSocket=s3.sock
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -admin.ui=false -webdav=false -master.telemetry=false
    -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0
    -master.resumeState=false -master.volumeSizeLimitMB=128 -volume.preStopSeconds=0
""".split()


class DataDirInUse(Exception):
    """Another process has DATA_DIR."""


@dataclass(frozen=True)
class ObjectStore:
    endpoint_url: str
    access_key: str
    secret_key: str


@contextmanager
def hold(data_dir: Path) -> Generator[None]:
    """Keep DATA_DIR to this process, making it (mode 0700) if it is missing.

    Raises DataDirInUse at once if another process has it, EmbeddedFailed if it cannot be written.
    The kernel frees it however this process ends.
    """
    folder = data_dir.resolve()
    path = folder / "lock"
    lock = FileLock(path, timeout=0, mode=0o600, fallback_to_soft=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(str(os.getpid()))
    except Timeout:
        holder = f"process {pid}" if (pid := path.read_text()) else "another process"
        raise DataDirInUse(
            f"{folder} is in use by {holder}; stop it, or set DATA_DIR to another folder."
        ) from None
    except OSError as error:
        raise EmbeddedFailed(
            f"{folder} cannot be used ({error}); set DATA_DIR to a folder that can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def postgres(data_dir: Path) -> AsyncGenerator[str]:
    """Run PostgreSQL, on a Unix socket only, and yield its DATABASE_URL.

    Raises EmbeddedFailed. Waits for up to five minutes, as it may have to recover from a crash.
    """
    server = Server("PostgreSQL", "postgres", "-D", SIGINT, 300, 30, _inside(data_dir, "postgres"))
    with server.explains():
        programs = _postgres_programs()
        await uninterrupted(server.end)
        await uninterrupted(_prepare_cluster, server, programs)
        sockets = _socket_folder(server.folder)
    command = [str(programs / "postgres"), "-D", str(server.folder), "-k", str(sockets)]
    command += ["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700"]
    # Nothing replicates from here, and a laptop's disk is small.
    command += ["-c", "wal_level=minimal", "-c", "max_wal_senders=0", "-c", "max_wal_size=256MB"]
    try:
        async with running(server, command, {}, lambda pid: _accepts(server.folder, pid)):
            # With the port, as PGPORT in the environment would name another.
            where = f"host={quote(str(sockets))}&port=5432"
            yield f"postgresql+asyncpg://postgres@/postgres?{where}"
    finally:
        if sockets != server.folder:
            shutil.rmtree(sockets, ignore_errors=True)


@asynccontextmanager
async def object_store(data_dir: Path) -> AsyncGenerator[ObjectStore]:
    """Run SeaweedFS on loopback, and yield where its S3 is once an object was written there.

    Raises EmbeddedFailed. Waits for up to a minute: after a crash it may take writes late.
    """
    # It stops in a second, but now and then waits thirty for an idle connection, all being written.
    server = Server("SeaweedFS", "weed", "mini", SIGTERM, 60, 3, _inside(data_dir, "seaweedfs"))
    with server.explains():
        program = _seaweedfs_program()
        await uninterrupted(server.end)
        server.folder.mkdir(mode=0o700, exist_ok=True)
        access_key, secret_key = _key_pair(server.folder.with_name("seaweedfs-s3.json"))
    async with AsyncExitStack() as stack:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            with server.explains():
                record = server.folder.with_name("seaweedfs-ports.json")
                ports = _choose_ports(record, anew=attempt > 1)
            store = ObjectStore(f"http://127.0.0.1:{ports['s3']}", access_key, secret_key)
            try:
                await stack.enter_async_context(_seaweedfs(server, program, ports, store))
                break
            except EmbeddedFailed as error:
                snatched = re.search("not available on|address already in use", str(error))
                if not snatched or attempt == _PORT_ATTEMPTS:
                    raise
        yield store


def _inside(data_dir: Path, name: str) -> Path:
    return data_dir.resolve() / name


def _postgres_programs() -> Path:
    programs = packaged_programs()
    if programs is None or not (programs / "postgres").exists():
        raise EmbeddedFailed(
            "PostgreSQL is not installed; install feedboard[local] or set DATABASE_URL."
        )
    return programs


def _seaweedfs_program() -> Path:
    program = Path(sysconfig.get_path("scripts")) / "weed"
    if not program.exists():
        raise EmbeddedFailed(
            "SeaweedFS is not installed; install feedboard[local] or set S3_BUCKET."
        )
    return program


def _prepare_cluster(server: Server, programs: Path) -> None:
    """Make the data folder on the first start, and forget the server of the last one."""
    if os.geteuid() == 0:
        _open_ways(server.folder, programs / "postgres")
    for unfinished in server.folder.parent.glob("postgres-*.new"):
        shutil.rmtree(unfinished)
    if not server.folder.exists():
        # It gets its name when it is whole, so that a start which was cut short leaves no trap.
        new = Path(tempfile.mkdtemp(prefix="postgres-", suffix=".new", dir=server.folder.parent))
        if os.geteuid() == 0:
            account = _unprivileged_account()
            os.chown(new, account.pw_uid, account.pw_gid)
        command = [str(programs / "initdb"), "-D", str(new), "-U", "postgres", "--auth=trust"]
        # The builtin locale sorts alike on every system, whatever its C library.
        command += "--encoding=UTF8 --locale=C --locale-provider=builtin".split()
        command += ["--builtin-locale=C.UTF-8"]
        if launch(server.log, command, new, {}).wait() != 0:
            raise server.failed("its data folder could not be made")
        new.rename(server.folder)
    # No server is left (DATA_DIR is ours, and its processes were ended), but the pid in here may
    # belong to another process by now, and PostgreSQL would take that for a server.
    (server.folder / "postmaster.pid").unlink(missing_ok=True)
    (server.folder / ".s.PGSQL.5432.lock").unlink(missing_ok=True)


def _unprivileged_account() -> pwd.struct_passwd:
    """Return the account that runs PostgreSQL for root, whom it refuses; make it if need be."""
    name = "embedded_postgres"
    with suppress(KeyError):
        return pwd.getpwnam(name)
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return pwd.getpwnam(name)


def _open_ways(*paths: Path) -> None:
    """Let everybody pass through the folders above some paths, but not list them.

    The account that runs PostgreSQL for root has to; what is inside keeps its own modes.
    """
    for folder in {parent for path in paths for parent in path.parents}:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            logger.warning("%s now lets everybody pass (o+x), as PostgreSQL needs it.", folder)
            folder.chmod(mode | stat.S_IXOTH)


def _socket_folder(folder: Path) -> Path:
    """Return the data folder, or one in /tmp if that does not fit into a Unix socket's address."""
    if len(os.fsencode(folder / ".s.PGSQL.5432")) < 104 and not set(str(folder)) & set(',"'):
        return folder
    sockets, owner = tempfile.mkdtemp(prefix="feedboard-"), folder.stat()
    os.chown(sockets, owner.st_uid, owner.st_gid)
    return Path(sockets)


def _accepts(folder: Path, pid: int) -> bool:
    with suppress(OSError):
        lines = (folder / "postmaster.pid").read_text().split("\n")
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


@asynccontextmanager
async def _seaweedfs(
    server: Server, program: Path, ports: dict[str, int], store: ObjectStore
) -> AsyncGenerator[None]:
    command = [str(program), "-logtostderr=true", "mini", *_SEAWEEDFS_OPTIONS]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    # Without these its inner servers take anybody's requests.
    uses = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
    environment = {f"WEED_JWT_{use}_KEY": secrets.token_hex(32) for use in uses}
    environment["HOME"] = str(server.folder)
    try:
        async with running(server, command, environment, lambda _: _writes(store)):
            yield
    finally:
        _remove_sockets(ports)


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove what SeaweedFS leaves behind in a place that no option changes."""
    for name, port in ports.items():
        with suppress(OSError):
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10_000}.sock").unlink()  # noqa: S108


def _key_pair(path: Path) -> tuple[str, str]:
    """Return the access key and the secret key that SeaweedFS reads from a file; make both once."""
    if not path.exists():
        pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
        identity = {"name": "feedboard", "credentials": [pair], "actions": ["Admin"]}
        write_private(path, json.dumps({"identities": [identity]}))
    pair = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return pair["accessKey"], pair["secretKey"]


def _choose_ports(path: Path, *, anew: bool) -> dict[str, int]:
    """Return a free port for each server, the ones of the last start if they still are.

    SeaweedFS takes a second port, 10 000 higher, for each; both are below the ephemeral range.
    """
    with suppress(OSError, ValueError):
        ports: dict[str, int] = json.loads(path.read_text())
        if not anew and all(map(_is_free, ports.values())):
            return ports
    shuffled = secrets.SystemRandom().sample(range(10_240, 20_240), 10_000)
    ports = dict(zip(_SEAWEEDFS_SERVERS, filter(_is_free, shuffled), strict=False))
    write_private(path, json.dumps(ports))
    return ports


def _is_free(port: int) -> bool:
    for number in (port, port + 10_000):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True


def _writes(store: ObjectStore) -> bool:
    """Write an object and delete it; its bucket is made with it."""
    signer = S3SigV4Auth(Credentials(store.access_key, store.secret_key), "s3", "us-east-1")
    address = urlsplit(f"{store.endpoint_url}/readiness-probe/object")
    try:
        for method, body in (("PUT", b"ready"), ("DELETE", b"")):
            request = AWSRequest(method, address.geturl(), data=body)
            signer.add_auth(request)
            with closing(http.client.HTTPConnection(address.netloc, timeout=5)) as connection:
                connection.request(method, address.path, body, dict(request.headers))
                if connection.getresponse().status not in (200, 204):
                    return False
    except (OSError, http.client.HTTPException):
        return False
    return True
