"""Passwords and tokens: hidden in every shape in which users give them, and nothing else is."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from turnout import RunnerStartError, TaskRunner, flow, task
from turnout._secrets import secrets_in, without_secrets
from turnout.errors import RunnerError, RunnerOptionError
from turnout.registry import resolve
from turnout.runner import Batch, Host

SECRET = "hunter2-sesame"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"tls://user:{SECRET}@host:8786", "tls://***@host:8786"),
        (f"tls://{SECRET}@host:8786", "tls://***@host:8786"),
        (f"tls://user:p@ss@{SECRET}@host:8786", "tls://***@host:8786"),
        (f"user:{SECRET}@host:8786", "***@host:8786"),
        (f"ray://head:10001?token={SECRET}&num_cpus=4", "ray://head:10001?token=***&num_cpus=4"),
        (f"Runner(address='tcp://a:1', password='{SECRET}')", "Runner(address='tcp://a:1', password='***')"),
        (f"Runner(init_kwargs={{'_redis_password': '{SECRET}'}})", "Runner(init_kwargs={'_redis_password': '***'})"),
        (f'{{"api_key": "{SECRET}", "n": 4}}', '{"api_key": "***", "n": 4}'),
        (f"{{'auth_token': b'{SECRET}'}}", "{'auth_token': '***'}"),
        (f"{{'tokens': ['{SECRET}', 'b'], 'n': 4}}", "{'tokens': ***, 'n': 4}"),
        (f"{{'password': 'it\\'s {SECRET}'}}", "{'password': '***'}"),
        (f"word?secret={SECRET}", "word?secret=***"),
        (f"word:client_secret={SECRET},n=4", "word:client_secret=***,n=4"),
        (f"AWS_SECRET_ACCESS_KEY={SECRET}", "AWS_SECRET_ACCESS_KEY=***"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (
            f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
        (repr(f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n"), "'-----BEGIN PRIVATE KEY-----***"),
    ],
    ids=lambda text: text[:24],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "tcp://10.0.0.7:8786",
        "ray://[::1]:10001?num_cpus=4",
        "Runner(security={'tls_ca_file': 'ca.pem', 'tls_client_key': 'key.pem'})",
        "Runner(n_workers=2, key='value')",
        "Runner(password=None, token='')",
        "Ray wants a token: RAY_AUTH_MODE=token",
        "thread:max_workers=4,thread_name_prefix=x",
        "Mail to somebody@example.org, at 12:30",
        "OSError: [Errno 111] Connect call failed ('127.0.0.1', 8786)",
    ],
)
def test_nothing_else_is_hidden(text: str) -> None:
    assert without_secrets(text) == text


def test_secrets_of_settings_are_hidden_wherever_they_stand() -> None:
    settings = {
        "address": f"tls://user:{SECRET}@host:8786",
        "client_kwargs": {"security": {"auth": [{"password": "open-sesame"}]}, "token": ["first-token"], "name": "x"},
    }
    assert secrets_in(settings) == {SECRET, "open-sesame", "first-token"}
    assert without_secrets("WRONGPASS open-sesame", secrets_in(settings)) == "WRONGPASS ***"


class Locked(TaskRunner):
    """Wants a password, and doesn't start."""

    def __init__(self, address: str = "", options: Any = None, password: str = "") -> None:
        if address.startswith("nowhere"):
            raise RunnerOptionError(f"There is no {address}.")
        self._address = address
        self._options = options

    @classmethod
    def from_url(cls, url: str) -> Locked:
        return cls(url)

    def start(self, host: Host) -> None:
        try:
            raise ConnectionError(f"{self._address} refuses {SECRET}")
        except ConnectionError as error:
            raise RuntimeError("no way in") from error

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        raise AssertionError("it never starts")

    def stop(self) -> None: ...


@task
def nothing() -> None: ...


def test_repr_hides_secrets() -> None:
    runner = Locked(f"tls://user:{SECRET}@host:1", options=[{"token": SECRET}], password=SECRET)
    assert repr(runner) == "Locked(address='tls://***@host:1', options=[{'token': '***'}], password='***')"


def test_a_runner_that_does_not_start_hides_secrets() -> None:
    """In its own text, and in what Python prints of the causes behind it."""
    runner = Locked(f"tls://user:{SECRET}@host:1", password=SECRET)

    @flow(task_runner=runner)
    def main() -> None:
        nothing.submit()

    with pytest.raises(RunnerStartError, match=r"Locked\(address='tls://\*\*\*@host:1'.*no way in") as caught:
        main()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_cause_without_secrets_is_kept() -> None:
    class Broken(Locked):
        def start(self, host: Host) -> None:
            raise ConnectionError("no way in")

    @flow(task_runner=Broken(password=SECRET))
    def main() -> None:
        nothing.submit()

    with pytest.raises(RunnerStartError) as caught:
        main()
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize(
    "word",
    [
        f"nothing-here?password={SECRET}",
        f"nothing://user:{SECRET}@host:1",
        f"{__name__}:Locked?pasword=1&token={SECRET}",
        f"{__name__}:Locked?address=nowhere://user:{SECRET}@host",
        f"{__name__}:Locked:address=a,token={SECRET}",
    ],
)
def test_words_that_are_refused_hide_secrets(word: str) -> None:
    with pytest.raises(RunnerError) as caught:
        resolve(word)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
