"""The gate before real systems: what is refused, where, and what names a permission."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from metaopt.llm import Parameters, Rejected, Reply, SimulatedLM, user
from metaopt.llm.authorisation import Authorisation, endpoint, gate
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.transformers_lm import TransformersLM

DAY = timedelta(days=1)
FIELDS = {
    "owner": "Model team",
    "system": "classifier, staging",
    "scope": "calibration of a judge, at most 500 questions",
    "contact": "team@example.org",
    "expiry": "2999-12-31",
    "statement": "The owner allows these questions.",
}


def test_its_hash_is_the_sha256_of_its_fields_in_any_order() -> None:
    text = json.dumps(FIELDS, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    backwards = Authorisation(**dict(reversed(FIELDS.items())))
    assert Authorisation(**FIELDS).hash == backwards.hash == expected
    assert Authorisation(**{**FIELDS, "scope": "anything"}).hash != expected


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("blank", [None, "", "  "])
def test_each_field_is_needed(field: str, blank: str | None) -> None:
    given = {k: v for k, v in FIELDS.items() if k != field}
    with pytest.raises(ValueError, match=f"lacks {field};"):
        Authorisation.of(given if blank is None else {**given, field: blank})


def test_all_missing_fields_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="lacks owner, system, scope, contact, statement;"):
        Authorisation(expiry="2999-12-31")


@pytest.mark.parametrize("expiry", ["next year", "31.12.2999", "2999-13-01", "2999-02-30"])
def test_its_expiry_is_a_date(expiry: str) -> None:
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        Authorisation(**{**FIELDS, "expiry": expiry})


def test_it_holds_through_its_last_day() -> None:
    today = date.today()
    assert not Authorisation(**{**FIELDS, "expiry": str(today + DAY)}).expired
    with pytest.raises(ValueError, match="expired on"):
        Authorisation(**{**FIELDS, "expiry": str(today - DAY)})


def test_wrong_fields_and_types_are_named() -> None:
    with pytest.raises(ValueError, match="no field end; its fields are owner"):
        Authorisation.of({**FIELDS, "end": "never"})
    year: Any = {**FIELDS, "expiry": 2999}
    with pytest.raises(TypeError, match=r"authorisation\.expiry must be a text"):
        Authorisation.of(year)


def answer(role: str, messages: Any, key: int) -> str:
    return role


def test_a_real_target_needs_one_and_a_simulated_one_or_another_role_does_not() -> None:
    real = OpenAICompatibleLM("m", "http://127.0.0.1:9/v1", None)
    local = TransformersLM("nowhere")
    allowed = TransformersLM("nowhere", authorisation=FIELDS)
    for lm in (real, local):
        with pytest.raises(ValueError, match="'target' is played by a real model and needs"):
            gate({"judge": real, "target": lm})
    assert gate({"judge": real, "target": SimulatedLM(answer)}) == {}
    assert gate({"judge": real, "target": allowed}) == {"target": Authorisation(**FIELDS).hash}
    assert set(gate({"judge": allowed, "target": allowed}, ("judge",))) == {"judge"}


def test_a_model_that_cannot_carry_one_is_refused() -> None:
    class Other:
        model, deterministic = "other", True

        async def chat(self, *_: Any) -> Reply:
            return Reply("")

        async def close(self) -> None: ...

    with pytest.raises(ValueError, match="needs an authorisation"):
        gate({"target": Other()})


@pytest.mark.parametrize(
    "lm", [OpenAICompatibleLM("m", "http://127.0.0.1:9/v1", None), TransformersLM("nowhere")]
)
def test_a_real_model_itself_refuses_to_be_an_unauthorised_target(lm: Any) -> None:
    with pytest.raises(Rejected, match="needs an authorisation"):
        asyncio.run(lm.chat("target", user("hello"), Parameters(), 0))


def test_a_permission_that_ends_during_a_run_ends_the_questions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lm = TransformersLM(str(tmp_path), authorisation={**FIELDS, "expiry": str(date.today())})

    class Tomorrow(date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls.fromordinal(date.today().toordinal() + 1)

    monkeypatch.setattr("metaopt.llm.authorisation.date", Tomorrow)
    with pytest.raises(Rejected, match="expired on"):
        asyncio.run(lm.chat("target", user("hello"), Parameters(), 0))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://LOCALHOST./v1",
        "http://127.0.0.1/v1",
        "http://127.8.9.10:1/v1",
        "http://[::1]:8000/v1",
    ],
)
def test_this_machine_may_always_be_asked(url: str) -> None:
    assert endpoint(url + "/") == (url, True)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "https://example.org.evil.com/v1",
        "https://sub.example.org/v1",
        "http://localhost.evil.com/v1",
        "http://127.0.0.1.evil.com/v1",
        "http://0.0.0.0:8000/v1",
        "http://192.168.0.5/v1",
        "http://2130706433/v1",
    ],
)
def test_another_host_must_be_listed_exactly(url: str) -> None:
    with pytest.raises(ValueError, match="is not in hosts="):
        endpoint(url, ["example.org"])


def test_a_listed_host_is_accepted() -> None:
    url = "https://Example.org:8443/v1"
    assert endpoint(url, ["example.ORG"]) == (url, False)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret-word@localhost/v1",
        "https://localhost@evil.com/v1",
        "https://localhost/v1?api_key=secret-word",
        "https://evil.com#@localhost",
        "https://evil.com\\@localhost/v1",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="base_url must hold no user") as caught:
        endpoint(url, ["evil.com"])
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost/v1", "http:///v1", ""])
def test_a_url_needs_a_scheme_and_a_host(url: str) -> None:
    with pytest.raises(ValueError, match="must be http"):
        endpoint(url)


def test_hosts_is_a_list() -> None:
    with pytest.raises(TypeError, match="hosts must be a list"):
        endpoint("https://a", "a")
