"""Who allowed a real system to be tested, and which hosts a model may be asked at."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from metaopt.llm.chat import LM
from metaopt.llm.errors import Rejected
from metaopt.llm.simulated import SimulatedLM

GATED = ("target",)
"""Roles that only a simulated model may play without an authorisation."""


@dataclass(frozen=True)
class Authorisation:
    """The permission to test a system, as its owner gave it; every field is needed.

    Args:
        owner: who owns the system and gave the permission.
        system: what may be tested.
        scope: what may be done to it, and what not.
        contact: whom to tell when something goes wrong.
        expiry: last day of the permission, as YYYY-MM-DD.
        statement: the permission itself, in a sentence.

    Raises:
        TypeError: a field is not a text.
        ValueError: a field is missing or blank, `expiry` is not a date, or it has passed.
    """

    owner: str = ""
    system: str = ""
    scope: str = ""
    contact: str = ""
    expiry: str = ""
    statement: str = ""

    def __post_init__(self) -> None:
        fields = asdict(self)
        for name, value in fields.items():
            if not isinstance(value, str):
                raise TypeError(f"authorisation.{name} must be a text in quotes; got {value!r}.")
        missing = [name for name, value in fields.items() if not value.strip()]
        if missing:
            raise ValueError(
                f"The authorisation lacks {', '.join(missing)}; it needs each of "
                f"{', '.join(fields)}."
            )
        try:
            if len(self.expiry) != len("YYYY-MM-DD"):
                raise ValueError
            day = date.fromisoformat(self.expiry)
        except ValueError:
            raise ValueError(
                f"authorisation.expiry must be a date YYYY-MM-DD; got {self.expiry!r}."
            ) from None
        if day < date.today():
            raise ValueError(
                f"The authorisation of {self.system!r} expired on {day}; ask {self.owner} "
                f"({self.contact}) to renew it."
            )

    @classmethod
    def of(cls, fields: Authorisation | Mapping[str, str] | None) -> Authorisation | None:
        """Return the authorisation of these fields, as a config holds them; none of none.

        Raises:
            ValueError: an unknown field, or as the constructor.
        """
        if fields is None or isinstance(fields, Authorisation):
            return fields
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"The authorisation has no field {', '.join(unknown)}; its fields are "
                f"{', '.join(cls.__dataclass_fields__)}."
            )
        return cls(**fields)

    @property
    def expired(self) -> bool:
        """Whether its last day has passed."""
        return date.fromisoformat(self.expiry) < date.today()

    @property
    def hash(self) -> str:
        """The sha256 of its fields: names the permission in results without repeating it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@runtime_checkable
class Authorisable(Protocol):
    """A model that carries the permission to ask it."""

    authorisation: Authorisation | None


def gate(lms: Mapping[str, LM], roles: Collection[str] = GATED) -> dict[str, str]:
    """Return {role: hash of its authorisation} for the gated roles that are not simulated.

    Args:
        lms: who plays each role.
        roles: roles that need an authorisation.

    Raises:
        ValueError: a model of such a role has none.
    """
    hashes = {}
    for role, lm in lms.items():
        if role in roles and not isinstance(lm, SimulatedLM):
            authorisation = lm.authorisation if isinstance(lm, Authorisable) else None
            if authorisation is None:
                raise ValueError(_missing(role))
            hashes[role] = authorisation.hash
    return hashes


def permit(role: str, authorisation: Authorisation | None) -> None:
    """Refuse one request of a gated role: the last check before a real model is asked.

    Raises:
        Rejected: there is no authorisation, or it expired while the run went on.
    """
    if role in GATED and authorisation is None:
        raise Rejected(_missing(role), role, sent=False)
    if role in GATED and authorisation is not None and authorisation.expired:
        words = f"The authorisation expired on {authorisation.expiry}."
        raise Rejected(words, role, sent=False)


def endpoint(base_url: str, hosts: Collection[str] = ()) -> tuple[str, bool]:
    """Return the URL without a final slash, and whether its host is this machine.

    Args:
        base_url: http or https, a host, a port or not, a path or not; no credentials, no query.
        hosts: host names that may be asked in addition to this machine: exact names, no ports.

    Raises:
        TypeError: `hosts` is one text.
        ValueError: `base_url` is not of that form, or its host is not listed.
    """
    if isinstance(hosts, str):
        raise TypeError(f"hosts must be a list of host names; got the text {hosts!r}.")
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "base_url must hold no user, password, query or fragment; give a key by the name of "
            "its environment variable."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be http(s)://host[:port][/path]; got {base_url!r}.")
    host = parts.hostname.rstrip(".").lower()
    local = _loopback(host)
    if not local and host not in {name.rstrip(".").lower() for name in hosts}:
        raise ValueError(
            f"The host {host!r} of base_url is not in hosts={sorted(hosts)}; only this machine "
            "(localhost, 127.0.0.1, ::1) may be asked without being listed."
        )
    return base_url.rstrip("/"), local


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _missing(role: str) -> str:
    return (
        f"The role {role!r} is played by a real model and needs an authorisation with owner, "
        "system, scope, contact, expiry (YYYY-MM-DD) and statement; a simulated model needs none."
    )
