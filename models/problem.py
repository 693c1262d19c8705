"""A problem: the one shape of every error (RFC 9457)."""

from pydantic import BaseModel, Field


class ProblemError(BaseModel):
    pointer: str = Field(description="Where in the input, as a JSON Pointer (RFC 6901).")
    detail: str


class Problem(BaseModel):
    type: str = Field(description="A stable path that names the kind of problem and explains it.")
    title: str
    status: int
    detail: str = Field(description="What went wrong this time, and what to do.")
    instance: str = Field(description="The request's id, as in `X-Request-ID`.")
    errors: list[ProblemError] | None = Field(None, description="Each fault of the input.")
