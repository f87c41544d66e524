"""Who may do what: principals, their roles, and where a write may come from.

What every face of a queue for operators asks before it answers: the JSON routes and the pages. Nothing is let in that
an ``auth`` dependency did not let in, and no role is guessed at.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from fastapi import Depends, Header, HTTPException, Request
from fastapi.params import Depends as DependsMarker
from fastapi.security.base import SecurityBase

from durableq.errors import ConfigurationError
from durableq.redaction import one_line

Role = Literal["read", "operate", "admin"]
"""``read`` looks; ``operate`` also retries, cancels and pauses; ``admin`` also edits arguments and deletes."""

Allowed = Callable[..., Coroutine[Any, Any, "Principal"]]
"""A dependency that gives who asks, or refuses them."""

NAME_CHARACTERS: Final = 200
"""Longest name of a principal."""
_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_OWN_SITE: Final = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request, and what they may do: what an ``auth`` dependency returns.

    ``name`` is what the audit trail shows, at most 200 characters; control characters are left out of it. Raises
    `ConfigurationError`.
    """

    name: str
    role: Role = "admin"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", one_line(self.name).strip())  # it may come from a header
        if not 1 <= len(self.name) <= NAME_CHARACTERS:
            raise ConfigurationError(
                f"expected a principal's name of 1 to {NAME_CHARACTERS} characters, got {len(self.name)}"
            )
        if self.role not in _ROLES:
            raise ConfigurationError(f"expected role to be one of {', '.join(_ROLES)}; got {self.role!r}")

    def may(self, role: Role) -> bool:
        """Whether this role includes ``role``."""
        return _ROLES.index(self.role) >= _ROLES.index(role)


def checked_auth(auth: Any) -> DependsMarker:
    """Return ``auth`` when it is a dependency that can check somebody. Raises `ConfigurationError`."""
    if not isinstance(auth, DependsMarker) or auth.dependency is None:
        raise ConfigurationError(f"expected auth to be a dependency, as in auth=Depends(current_admin), got {auth!r}")
    if isinstance(auth.dependency, SecurityBase):
        raise ConfigurationError(
            f"auth=Depends({type(auth.dependency).__name__}(...)) only reads a credential and checks nothing, so "
            "anybody would be an administrator; pass a dependency that checks it and returns a name or a Principal"
        )
    return auth


def principal_of(auth: DependsMarker) -> Allowed:
    """Return the dependency that makes a `Principal` of what ``auth`` returns.

    A text is the name of an administrator, None an administrator named "admin". It raises `ConfigurationError` for
    anything else, so that the request fails.
    """

    async def principal(returned: Annotated[Any, auth]) -> Principal:
        if returned is None:
            return Principal("admin")
        if isinstance(returned, str):
            return Principal(returned)
        if isinstance(returned, Principal):
            return returned
        # Whatever it is (False, a credential, a user without a role), it does not say what this person may do.
        raise ConfigurationError(
            "expected the auth dependency to return a Principal, a name or None, got a "
            f"{type(returned).__name__}; return Principal(name, role)"
        )

    return principal


def at_least(role: Role, principal: Allowed) -> Allowed:
    """Return the dependency that gives the principal when the role includes ``role``, and answers 403 else."""

    async def allowed(who: Annotated[Principal, Depends(principal)]) -> Principal:
        if not who.may(role):
            raise HTTPException(403, {"message": f"this needs the role {role!r}; {who.name!r} has {who.role!r}"})
        return who

    return allowed


async def refuse_other_sites(request: Request) -> None:
    """Refuse a write that a page of another site makes a browser send along with this site's cookies."""
    sites = request.headers.getlist("sec-fetch-site")
    if not (_OWN_SITE.issuperset(sites) if sites else _is_own_origin(request)):
        raise HTTPException(403, {"message": "requests that change something are not taken from other sites"})


def _is_own_origin(request: Request) -> bool:
    """What a browser says that is too old for ``Sec-Fetch-Site``. What is no browser says nothing, and is let in."""
    hosts = [host.lower() for host in request.headers.getlist("host")]
    return all([_host_of(origin)] == hosts for origin in request.headers.getlist("origin"))


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


async def require_json(content_type: Annotated[list[str] | None, Header(include_in_schema=False)] = None) -> None:
    """Refuse a body that is not declared as JSON: only such a one makes a browser ask before it crosses sites.

    FastAPI alone depends on its version, and on the application's ``strict_content_type``.
    """
    media_types = [one.partition(";")[0].strip().lower() for one in content_type or ()]
    if media_types != ["application/json"]:  # of two, whoever reads the body may go by the other
        raise HTTPException(415, {"message": "expected the header 'Content-Type: application/json'"})


WRITE: Final = [Depends(refuse_other_sites)]
"""What a route asks that changes something; and one that takes JSON."""
WRITE_WITH_BODY: Final = [Depends(refuse_other_sites), Depends(require_json)]
