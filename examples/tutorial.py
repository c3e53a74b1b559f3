"""The tutorial that many users of Prefect began with. Only its imports are changed.

    from prefect import flow, task                          ->  from turnout import flow, task
    from prefect.task_runners import SequentialTaskRunner   ->  from turnout_runners.sequential import ...

Run all of it, or one flow:

    python examples/tutorial.py
    turnout run examples/tutorial.py:api_flow -p url=https://catfact.ninja/fact

The page is fetched with the standard library, so nothing needs to be installed.
"""

import json
import logging
import time
import urllib.request
from typing import Any

from turnout import flow, task
from turnout_runners.sequential import SequentialTaskRunner

# A task that may fail, and a flow that calls it.


@task(
    name="My Example Task",
    description="An example task for a tutorial.",
    retries=5,
    retry_delay_seconds=60,
)
def call_api(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as response:
        print(response.status)
        body: dict[str, Any] = json.load(response)
        return body


@task
def parse_fact(response: dict[str, Any]) -> str:
    fact: str = response["fact"]
    print(fact)
    return fact


@flow(name="My Example Flow", description="An example flow for a tutorial.")
def api_flow(url: str = "https://catfact.ninja/fact") -> str:
    return parse_fact(call_api(url))


# Two submitted tasks. The default runner runs them at the same time, so their lines mix.


@task
def print_values(values: list[str]) -> None:
    for value in values:
        time.sleep(0.5)
        print(value, end="\r")


@flow
def my_flow() -> None:
    print_values.submit(["AAAA"] * 15)
    print_values.submit(["BBBB"] * 10)


# The same, one after the other.


@task(name="Sequential Task")
def print_in_order(values: list[str]) -> None:
    for value in values:
        time.sleep(0.5)
        print(value, end="\r")


@flow(name="Sequential Flow", task_runner=SequentialTaskRunner())
def my_sequential_flow() -> None:
    print_in_order.submit(["AAAA"] * 15)
    print_in_order.submit(["BBBB"] * 10)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)-7s | %(message)s")
    my_flow()
    my_sequential_flow()
    api_flow()
