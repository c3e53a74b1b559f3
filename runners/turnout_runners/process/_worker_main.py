"""What runs in a worker process: it receives batches, has them run in its main thread, and sends what comes of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from turnout._failures import encode as encode_failure
from turnout._streams import Streams
from turnout._version import __version__
from turnout.runner import Outcome, OutcomeKind

from ._claims import Claims
from ._memory import Descriptor, fill_standard
from ._wire import Channel, Frame, Message, Unreadable, encode

__all__ = ["CONTROL", "Setup", "main"]

CONTROL: Final = 0
"""The number of messages that are not about a batch: functions for the worker; to the driver, how the start went."""

Run = Callable[..., None]


class Setup(NamedTuple):
    """What a worker is told first."""

    argv: tuple[str, ...]
    run: Run
    """What runs a batch: :func:`turnout.worker.run_batch`."""
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]


def main(connection: int, lifeline: int, claims: int, stderr: int) -> None:
    """Be a worker, until the driver wants no more.

    Parameters
    ----------
    connection, lifeline, claims, stderr
        Inherited descriptors: the socket to the driver, a pipe that ends with the driver, the file of
        :class:`Claims`, and what ``sys.stderr`` is from here on.
    """
    fill_standard()
    for number in (connection, lifeline, claims):
        # What a task starts must hold nothing that tells the driver or this worker of the other's end.
        os.set_inheritable(number, False)
    _end_with(lifeline)
    # Not ignored: that would be inherited by what tasks start.
    signal.signal(signal.SIGINT, lambda *_: None)
    outbox = _Outbox(Channel(socket.socket(fileno=connection), forwards=False))
    os.register_at_fork(after_in_child=outbox.forget)
    page = Claims(Descriptor(claims))
    # Until here, what goes wrong is kept for the driver to read.
    os.dup2(stderr, 2)
    os.close(stderr)
    _serve(outbox, page)


def _end_with(lifeline: int) -> None:
    """Have this process, and what it started, end as soon as the driver does."""
    if not hasattr(fcntl, "F_SETSIG"):
        threading.Thread(target=_exit_at_end_of, args=(lifeline,), name="turnout-lifeline", daemon=True).start()
        return
    # The kernel does it, and so needs no cooperation of C code that holds the interpreter's lock.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | fcntl.FASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        # It sends no signal for what happened before.
        _exit_at_end_of(lifeline)


def _exit_at_end_of(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def _serve(outbox: _Outbox, claims: Claims) -> None:
    messages = outbox.messages()
    setup = _set_up(next(messages, None), outbox)
    if setup is None:
        return
    functions: dict[bytes, bytes] = {}
    for message in messages:
        if message.number == CONTROL:
            functions.update(message.content)
        elif claims.begin(message.number):
            _run(message, setup.run, functions, outbox, claims)
            # The task may have closed them.
            fill_standard()


def _set_up(message: Message | None, outbox: _Outbox) -> Setup | None:
    """Do what the driver wants done first, and answer how it went."""
    if message is None:
        return None
    try:
        setup = _loaded(message.content)
        sys.argv[:] = setup.argv
        if setup.initializer is not None:
            setup.initializer(*setup.initargs)
    except BaseException as error:
        last_line = traceback.format_exception_only(error)[-1].strip()
        raised = f"its initializer raised {last_line}\n{traceback.format_exc()}"
        text = str(error) if isinstance(error, _UnfitError) else raised
        outbox.send(encode(CONTROL, 0, text))
        return None
    outbox.send(encode(CONTROL, 0, None))
    return setup


class _UnfitError(Exception):
    """What this interpreter lacks to be a worker of that driver."""


def _loaded(content: Any) -> Setup:
    version, parcel = content
    if version != __version__:
        raise _UnfitError(f"it has Turnout {__version__}, and the driver has Turnout {version}")
    setup = parcel.load()
    assert isinstance(setup, Setup)
    return setup


def _run(message: Message, run: Run, functions: Mapping[bytes, bytes], outbox: _Outbox, claims: Claims) -> None:
    reporter = _Reporter(message.number, outbox)
    if isinstance(message.content, Unreadable):
        # Its index says how many calls there are.
        for index in range(message.index):
            reporter.fail(Outcome(index, OutcomeKind.VALUE), message.content.error, "receive this call's arguments")
        return
    body, upstream = message.content
    with outbox.streams.text_to(reporter.text):
        if message.index == 1:
            run(body, functions, upstream, reporter.emit)
        else:
            run(body, functions, upstream, reporter.emit, ledger=claims.ledger(message.number))


class _Outbox:
    """The way to the driver, for any thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._sender = 0
        self._frames: list[Frame] = []
        self.streams = Streams()

    def messages(self) -> Iterator[Message]:
        """Yield what the driver sends, until it has no more to send or is gone."""
        while not self._channel.ended:
            yield from self._channel.receive()

    def send(self, frame: Frame) -> None:
        """Send a frame; when this returns, the driver can read it, even if this process dies."""
        self._frames.append(frame)
        if self._sender == threading.get_ident():
            # A destructor or signal handler came in between, and prints or logs: no frame may begin inside another.
            return
        with self._lock:
            self._sender = threading.get_ident()
            try:
                while self._frames:
                    self._channel.send(self._frames.pop(0))
            finally:
                self._sender = 0

    def forget(self) -> None:
        """Leave the driver to the parent, in a process that a task forked."""
        self._lock, self._frames, self._sender = threading.Lock(), [], 0
        self.streams.forget()
        self._channel.close()


class _Reporter:
    """Tells the driver what becomes of the calls of one batch."""

    def __init__(self, number: int, outbox: _Outbox) -> None:
        self._number = number
        self._outbox = outbox
        self._index = 0

    def emit(self, outcomes: Sequence[Outcome]) -> None:
        """Send outcomes."""
        ends = False
        for outcome in outcomes:
            if outcome.kind == OutcomeKind.STARTED:
                self._index = outcome.index
            elif outcome.kind >= OutcomeKind.VALUE:
                ends = True
        if ends:
            # What a call has written is told before its end.
            self._outbox.streams.flush()
        try:
            frame = self._frame(outcomes)
        except Exception as error:
            self._emit_apart(outcomes, error)
        else:
            self._outbox.send(frame)

    def text(self, stream: str, text: str) -> None:
        """Send what was written to a standard stream."""
        self.emit([Outcome(self._index, OutcomeKind.RECORD, (stream, text))])

    def fail(self, outcome: Outcome, error: Exception, what: str) -> None:
        """Send a failure in the place of an outcome that can't be had."""
        error.add_note(f"The worker had no room to {what}.")
        failure = outcome._replace(kind=OutcomeKind.FAILURE, data=encode_failure(error), size=0)
        self._outbox.send(self._frame([failure]))

    def _frame(self, outcomes: Sequence[Outcome]) -> Frame:
        # As plain tuples: they are half as long, and unpickled three times as fast.
        return encode(self._number, outcomes[0].index, [(o[0], int(o[1]), *o[2:]) for o in outcomes])

    def _emit_apart(self, outcomes: Sequence[Outcome], error: Exception) -> None:
        if len(outcomes) > 1:
            for outcome in outcomes:
                self.emit([outcome])
        elif outcomes[0].kind >= OutcomeKind.VALUE:
            self.fail(outcomes[0], error, "send this call's result")
