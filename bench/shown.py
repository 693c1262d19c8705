"""An image to ask for, of 300 kB: by the service's URL, and in the store itself."""

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
SCALE = 1.024  # 2048 x 1536 pixels
EXPIRES = 86_400  # seconds


@dataclass(frozen=True)
class Shown:
    """Requests for it, whole and by who has it already."""

    of_service: bytes
    of_store: bytes
    known: bytes


def show(service: Contender, settings: Settings, token: str) -> Shown:
    """Upload it; the service forgets it within its grace, as no feed takes it."""
    photo = photo_within(SIZE, 0, SCALE)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        uploaded = client.post(
            "/api/image/upload",
            headers={"Authorization": f"Bearer {token}"},
            files={"images": ("photo.jpg", photo)},
        ).raise_for_status()
        path = urlsplit(uploaded.json()[0]["url"]).path
        served = client.get(path).raise_for_status()
    presigned = _presigned(settings, path.removeprefix("/"))
    if httpx.get(presigned, timeout=60).raise_for_status().content != served.content:
        raise SystemExit(f"{path}: {STORE} has other bytes than the service serves.")
    target = urlsplit(presigned)
    conditional = {"If-None-Match": served.headers["etag"]}
    return Shown(
        get(path),
        get(f"{target.path}?{target.query}", {"Host": target.netloc}),
        get(path, conditional),
    )


def _presigned(settings: Settings, key: str) -> str:
    """The object's own address, signed, as anybody may ask for it (Signature Version 4)."""
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    request = AWSRequest("GET", f"{settings.s3_endpoint_url}/{settings.s3_bucket}/{key}")
    credentials = Credentials(str(settings.s3_access_key), secret)
    S3SigV4QueryAuth(credentials, "s3", settings.s3_region, expires=EXPIRES).add_auth(request)
    return str(request.url)
