"""The census as spans of OpenTelemetry: one for each flow and call, a line of JSON each.

    python examples/spans.py process spans.jsonl 200

The first word names the runner; the second, the file for the spans; the third, if there is one, how many files of the
library are counted. The table goes into a folder beside the spans. A service would send its spans to a collector: only
what ``main`` sets up would be another exporter.
Needs ``pip install "turnout[otel]" opentelemetry-sdk``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from census import census
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from turnout import otel


def main(runner: str, path: str, limit: str | None = None) -> None:
    """Count the library on a runner, and write the spans of that."""
    with Path(path).open("w", encoding="utf-8") as file:
        provider = TracerProvider(resource=Resource({"service.name": "census"}))
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n")
        # Nothing waits for it, and it loses nothing: spans are made in a thread of their own.
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with otel.instrument(provider):
            output = Path(path).with_suffix(".census")
            census.with_options(task_runner=runner)(str(output), None if limit is None else int(limit))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
