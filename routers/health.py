"""Health over HTTP, for load balancers and `docker compose`."""

from typing import Literal

from fastapi import APIRouter

from models.base import Shape
from routers.dependencies import STRICT, Db, Draining, Images
from routers.problems import refuses
from services import health
from services.errors import ContentTooLarge, InvalidInput, NotReady

router = APIRouter(
    tags=["Health"],
    dependencies=STRICT,
    responses=refuses(ContentTooLarge, InvalidInput),
)


class Health(Shape):
    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Answers as long as the process does; asks nobody else."""
    return Health()


@router.get("/readyz", summary="Can it serve?", responses=refuses(NotReady))
async def readyz(db: Db, images: Images, draining: Draining) -> Health:
    """The database answers `SELECT 1` and the bucket can be reached; else 503 says what failed.

    So it does while the service is being stopped, and still serves (`DRAIN_SECONDS`).
    """
    if draining:
        raise NotReady("The service is being stopped.")
    failing = await health.failing(db, images)
    if failing:
        raise NotReady("; ".join(f"{part}: {error}" for part, error in failing.items()))
    return Health()
