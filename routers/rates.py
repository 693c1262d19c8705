"""Which class of rate limits each route is of."""

import re

from config.rates import RouteClass

# What is not here is a read if it only reads (GET, HEAD), else a write. None is not counted.
CLASSES: dict[tuple[str, str], RouteClass | None] = {
    ("POST", "/api/auth/login"): "log-in",
    ("POST", "/api/auth/token"): "log-in",
    ("POST", "/api/auth/password/forgot"): "log-in",
    ("POST", "/api/auth/password/reset"): "log-in",
    ("POST", "/api/auth/password/change"): "log-in",
    ("POST", "/api/auth/email/send"): "log-in",
    ("POST", "/api/auth/email/verify"): "log-in",
    ("POST", "/api/auth/refresh"): "write",
    ("POST", "/api/auth/logout"): "write",
    ("POST", "/api/auth/signup"): "sign-up",
    ("POST", "/api/feed/create"): "upload",
    ("PATCH", "/api/feed/update/{feed_id}"): "upload",
    ("POST", "/api/image/upload"): "upload",
    ("POST", "/api/image/presign"): "upload",
    ("POST", "/api/image/{image_id}/complete"): "upload",
    # Whoever watches over the service must not be refused.
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}
# Who has no account yet is no user, and a token must not open a second way to guess passwords.
BY_ADDRESS: frozenset[RouteClass] = frozenset({"log-in", "sign-up"})
_READING = frozenset({"GET", "HEAD"})
_TEMPLATES = [
    (method, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), found)
    for (method, path), found in CLASSES.items()
    if "{" in path
]


def class_of(method: str, path: str) -> RouteClass | None:
    """The class of a request, or of a route by its template; None is not counted."""
    if (method, path) in CLASSES:
        return CLASSES[method, path]
    for its_method, template, found in _TEMPLATES:
        if method == its_method and template.fullmatch(path):
            return found
    return "read" if method in _READING else "write"
