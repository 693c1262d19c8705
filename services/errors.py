"""What a service raises when it declines a request; `app/problems.py` turns it into RFC 9457."""

import re
from http import HTTPStatus
from typing import ClassVar


class Refusal(Exception):
    """A request that is not carried out.

    `detail` is the sentence that the client reads. `pointer` names the offending input (a
    JSON Pointer, RFC 6901, such as `/images/0`). `retry_after` is in seconds.
    """

    status: ClassVar[HTTPStatus]
    default: ClassVar[str]
    retry_after: int | None = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        pointer: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.detail = detail or self.default
        self.pointer = pointer
        self.retry_after = retry_after or self.retry_after
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """The kind in words: "Feed not found" for FeedNotFound."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).capitalize()

    @classmethod
    def type(cls) -> str:
        """The stable path that names the kind (RFC 9457, section 3.1.1)."""
        return "/problems/" + cls.title().lower().replace(" ", "-")


class MalformedBody(Refusal):
    """The body is not what its content type says, so nothing in it could be read."""

    status = HTTPStatus.BAD_REQUEST
    default = "The body cannot be parsed as its Content-Type says."


class MalformedRequest(Refusal):
    """What came is no HTTP/1.1, or a head that is too large; there is no request to speak of."""

    status = HTTPStatus.BAD_REQUEST
    default = "Invalid HTTP request received."


class UnknownHost(Refusal):
    """The request is for a host that this instance does not answer to (`ALLOWED_HOSTS`)."""

    status = HTTPStatus.BAD_REQUEST
    default = "This instance does not answer to the name in the header Host."


class RequestTimeout(Refusal):
    """The client took too long to send its request."""

    status = HTTPStatus.REQUEST_TIMEOUT
    default = "The request took too long to arrive; nothing was changed."


class UnsupportedMediaType(Refusal):
    """The body is of a kind that this route does not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    default = "The route does not read a body of this Content-Type."


class NotAuthenticated(Refusal):
    """No access token came, or it is malformed, expired or its user is gone."""

    status = HTTPStatus.UNAUTHORIZED
    default = "Not Authenticated"


class InvalidCredentials(Refusal):
    """E-mail and password do not belong together."""

    status = HTTPStatus.UNAUTHORIZED
    default = "Invalid Credentials"


class InvalidRefreshToken(Refusal):
    """A refresh token is unknown, or it has expired, or its session has ended."""

    status = HTTPStatus.UNAUTHORIZED
    default = "The refresh token is not good any more; log in again."


class RefreshTokenReused(Refusal):
    """A refresh token came a second time: somebody else may have it, so its session has ended."""

    status = HTTPStatus.UNAUTHORIZED
    default = (
        "This refresh token was used before, so its session has been ended: somebody else may "
        "have it. Log in again."
    )


class Forbidden(Refusal):
    """The caller is known and may not do this."""

    status = HTTPStatus.FORBIDDEN
    default = "Permission Denied"


class EmailNotVerified(Refusal):
    """Who writes here has to have confirmed their e-mail address, and this user has not."""

    status = HTTPStatus.FORBIDDEN
    default = (
        "Confirm your e-mail address first: open the link in the mail that you were sent, or ask "
        "for another one with POST /api/auth/email/send."
    )


class LinkNotFound(Refusal):
    """No link that is still good has this token: it was used, expired, or replaced by a newer."""

    status = HTTPStatus.NOT_FOUND
    default = (
        "This link is not good any more: it was used, or is too old, or a newer one was sent. "
        "Ask for a new mail."
    )


class FeedNotFound(Refusal):
    """No feed has this id."""

    status = HTTPStatus.NOT_FOUND
    default = "Feed Not Found"


class CommentNotFound(Refusal):
    """No comment has this id."""

    status = HTTPStatus.NOT_FOUND
    default = "Comment Not Found"


class ImageNotFound(Refusal):
    """No image has this name."""

    status = HTTPStatus.NOT_FOUND
    default = "Image Not Found"


class UserNotFound(Refusal):
    """No account has this id, nickname or e-mail address."""

    status = HTTPStatus.NOT_FOUND
    default = "User Not Found"


class SessionNotFound(Refusal):
    """No session has this id, or it has ended."""

    status = HTTPStatus.NOT_FOUND
    default = "Session Not Found"


class ExportRunning(Refusal):
    """An export of the caller's is under way; there is one at a time."""

    status = HTTPStatus.CONFLICT
    default = "An export of yours is under way; wait for its end, or break it off, then ask again."


class FollowingOneself(Refusal):
    """Somebody wants to follow themselves, or not to any more."""

    status = HTTPStatus.BAD_REQUEST
    default = "You cannot follow yourself."


class RouteNotFound(Refusal):
    """Nothing is served at this path."""

    status = HTTPStatus.NOT_FOUND
    default = "Nothing is served at this path; /docs lists what is."


class MethodNotAllowed(Refusal):
    """The path is served, but not for this method; the header Allow says for which."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    default = "The path does not take this method."


class EmailTaken(Refusal):
    """Another account has this e-mail address, compared without regard to case."""

    status = HTTPStatus.CONFLICT
    default = "An account with this e-mail address exists already; log in instead."


class NicknameTaken(Refusal):
    """Another account has this nickname, or one that is read alike."""

    status = HTTPStatus.CONFLICT
    default = "Somebody has this nickname, or one that looks like it; choose another."


class PreconditionFailed(Refusal):
    """Somebody has edited it since the version that `If-Match` names; nothing was changed."""

    status = HTTPStatus.PRECONDITION_FAILED
    default = "Somebody has changed this meanwhile; read it again, and edit what is there now."


class ContentTooLarge(Refusal):
    """The body has more bytes than this route takes; it is not read to its end."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default = "The request body is larger than this route takes."


class ImageTooLarge(Refusal):
    """An image has more bytes or more pixels than this instance takes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default = "The image is too large."


class NothingUploaded(Refusal):
    """An upload is to be completed of which there is no file, or not any more."""

    status = HTTPStatus.CONFLICT
    default = "No file has come yet; send it by the form that came with this id, then ask again."


class QuotaExceeded(Refusal):
    """The user keeps as many images, or bytes of images, as this instance lets a user keep."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default = "You keep as many images as this instance lets you; delete some first."


class RangeNotSatisfiable(Refusal):
    """The requested byte range lies outside the image."""

    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    default = "The requested range lies outside the image."


class UnsupportedImage(Refusal):
    """A file is no image of a format that this instance takes, whatever it is declared as."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    default = "The file is not a JPEG, PNG, GIF, WebP or AVIF image."


class DamagedImage(Refusal):
    """A file starts as an image and cannot be decoded to its end."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    default = "The image is damaged or cut off."


class InvalidInput(Refusal):
    """Input of the right shape that makes no sense here; `pointer` names it."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    default = "The input is not valid."


class TooManyRequests(Refusal):
    """A user, or an address, asks more often than this instance lets them."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    default = "More requests came than are taken; wait as long as Retry-After says."
    retry_after = 60


class TooManyAttempts(Refusal):
    """Too many wrong passwords came lately: of this account, or from this address."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    default = "Too many wrong passwords; try again when Retry-After says."
    retry_after = 60


class IdempotencyKeyReused(Refusal):
    """The Idempotency-Key has come with another request before; a key is one request's."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    default = "This Idempotency-Key came with another request; send this one under a new key."


class RequestOutstanding(Refusal):
    """The request that came under this Idempotency-Key before is not answered yet."""

    status = HTTPStatus.CONFLICT
    default = (
        "The same request is still under way; send it again, under the same key, for its answer."
    )
    retry_after = 2


class InternalError(Refusal):
    """A fault of ours; the log has it under the request's id, which is `instance` here."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    default = "Something went wrong on our side; report it with this problem's `instance`."


class StorageUnavailable(Refusal):
    """The object store does not answer, or refuses."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "The image store cannot be reached; nothing was changed. Try again shortly."
    retry_after = 5


class DatabaseUnavailable(Refusal):
    """The database does not answer, or all its connections are in use."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "The database cannot be reached. Try again shortly."
    retry_after = 5


class TookTooLong(Refusal):
    """The request was given up on; it may have been carried out all the same."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "It took too long. Look whether it was done, and try again shortly."
    retry_after = 5


class TooManyConnections(Refusal):
    """As many connections are at work as the process serves."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "Too many connections are open. Try again shortly."
    retry_after = 2


class Overloaded(Refusal):
    """As many such requests are at work as the process takes on at a time."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "More is asked of the service than it can do; nothing was changed. Try again shortly."
    retry_after = 2


class NotReady(Refusal):
    """A part that the service needs does not answer; `detail` says which."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default = "The service is not ready."
    retry_after = 2
