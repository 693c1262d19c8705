"""Images to ask for, of 300 kB each: by the service's URLs, and in the store itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from bench.contenders import STORE, Contender
from bench.load import get
from bench.pictures import photo_within
from config.settings import Settings

SIZE = 300_000
# So many that they do not stay in a processor's cache, as a single one would.
IMAGES = 40
SCALE = 1.024  # 2048 x 1536 pixels
EXPIRES = 86_400  # seconds


@dataclass(frozen=True)
class Shown:
    """Requests for them, whole and by who has them already."""

    of_service: Sequence[bytes]
    of_store: Sequence[bytes]
    known: Sequence[bytes]


def show(service: Contender, settings: Settings, token: str) -> Shown:
    """Upload them; the service forgets them within its grace, as no feed takes them."""
    photo = photo_within(SIZE, 0, SCALE)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        paths = [_uploaded(client, photo, token) for _ in range(IMAGES)]
        served = client.get(paths[0]).raise_for_status()
    presigned = [_presigned(settings, path.removeprefix("/")) for path in paths]
    if httpx.get(presigned[0], timeout=60).raise_for_status().content != served.content:
        raise SystemExit(f"{paths[0]}: {STORE} has other bytes than the service serves.")
    tags = [path.removeprefix("/images/").partition(".")[0] for path in paths]
    return Shown(
        [get(path) for path in paths],
        [_directly(url) for url in presigned],
        [get(path, {"If-None-Match": f'"{tag}"'}) for path, tag in zip(paths, tags, strict=True)],
    )


def _uploaded(client: httpx.Client, photo: bytes, token: str) -> str:
    """Store a copy of its own; gives its path."""
    answer = client.post(
        "/api/image/upload",
        headers={"Authorization": f"Bearer {token}"},
        files={"images": ("photo.jpg", photo)},
    )
    return urlsplit(answer.raise_for_status().json()[0]["url"]).path


def _directly(url: str) -> bytes:
    target = urlsplit(url)
    return get(f"{target.path}?{target.query}", {"Host": target.netloc})


def _presigned(settings: Settings, key: str) -> str:
    """The object's own address, signed, as anybody may ask for it (Signature Version 4)."""
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    request = AWSRequest("GET", f"{settings.s3_endpoint_url}/{settings.s3_bucket}/{key}")
    credentials = Credentials(str(settings.s3_access_key), secret)
    S3SigV4QueryAuth(credentials, "s3", settings.s3_region, expires=EXPIRES).add_auth(request)
    return str(request.url)
