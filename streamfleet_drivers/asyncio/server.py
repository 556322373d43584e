"""The server (worker) for asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from streamfleet_protocol import ServerMachine
from streamfleet_protocol.effects import CancelHandler, Effect, Faulted, ServerStopped, StartHandler
from streamfleet_protocol.errors import Closed, InvalidOption, StreamfleetError
from streamfleet_protocol.inputs import (
    CloseServer,
    HandlerCanceled,
    HandlerDone,
    ServerInput,
    StartServer,
)
from streamfleet_protocol.keys import check_queue_name
from streamfleet_protocol.replies import ErrorReply, refusal

from ..facade import OnEvent, Task, raised, returned
from ..options import Duration, ServerOptions, duration_ms, server_settings
from .runtime import Connector, Runtime

Handler = Callable[[Task], Any]
AnyHandler = TypeVar("AnyHandler", bound=Handler)


class Server:
    """Consumes queues: runs a handler for each task.

    Coroutine functions run as tasks of the event loop, plain functions in threads. Register the handlers first, then
    `await run()`, or use it as a context manager, which runs it in the background. Options: see `ServerOptions`;
    `on_event` is called with each `events.Note`. Raises InvalidOption.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        grace: Duration = 30.0,
        on_event: OnEvent | None = None,
        **options: Unpack[ServerOptions],
    ) -> None:
        self._url = url
        self._grace_ms = duration_ms("grace", grace)
        self._on_event = on_event
        self._options = options
        _check(url, options)
        self._handlers: dict[str, Handler] = {}
        self._coroutines: set[str] = set()
        """Queues whose handlers are coroutine functions."""
        self._timeouts: dict[str, Duration | None] = {}
        self._runtime: Runtime[ServerInput] | None = None
        self._runs: dict[int, tuple[Task, asyncio.Task[None] | None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._fault: ErrorReply | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._body: asyncio.Task[Any] | None = None
        self._body_canceled = False

    def handler(self, queue: str, timeout: Duration | None = None) -> Callable[[AnyHandler], AnyHandler]:
        """Register the decorated function as the handler of a queue.

        It is called with the Task. What it returns (bytes, str or None) is the result; what it raises is a failure,
        retried by the task's own policy; `Retry` and `Reject` steer. Longer than `timeout`, it is canceled, which is a
        failure. Raises InvalidQueueName, and InvalidOption where the queue has a handler or the server has started.
        """
        check_queue_name(queue)
        if timeout is not None:
            duration_ms("timeout", timeout, least=1)
        if queue in self._handlers:
            raise InvalidOption(f"the queue {queue!r} has a handler already")
        if self._runtime is not None:
            raise InvalidOption(f"the server has started: register the handler of {queue!r} before that")

        def register(function: AnyHandler) -> AnyHandler:
            self._handlers[queue] = function
            if is_coroutine_function(function):
                self._coroutines.add(queue)
            self._timeouts[queue] = timeout
            return function

        return register

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that have a handler, in the order of their registration."""
        return tuple(self._handlers)

    def configure(
        self, url: str | None = None, *, grace: Duration | None = None, **options: Unpack[ServerOptions]
    ) -> None:
        """Replace what the constructor was given; the rest stays. Only before the start.

        Raises InvalidOption, also where the server has started; nothing is changed then.
        """
        if self._runtime is not None:
            raise InvalidOption("the server has started: configure it before that")
        merged: ServerOptions = {**self._options, **options}
        new_url = self._url if url is None else url
        grace_ms = self._grace_ms if grace is None else duration_ms("grace", grace)
        _check(new_url, merged)
        self._url, self._grace_ms, self._options = new_url, grace_ms, merged

    async def run(self) -> None:
        """Consume until `close`. Raises ServerRefused where Redis refuses for a reason that waiting does not cure.

        Canceling it closes the server with its grace, then raises CancelledError.
        """
        self._start()
        assert self._stopped is not None
        try:
            await asyncio.shield(self._stopped)
        except asyncio.CancelledError:
            await self.close()
            raise
        self._raise_fault()

    async def close(self, grace: Duration | None = None) -> None:
        """Take nothing new, let handlers finish within `grace` (seconds; that of the constructor), hand back the rest.

        May be called again, with a shorter grace too.
        """
        if self._runtime is None or self._stopped is None:
            return
        self._runtime.check_loop()
        grace_ms = self._grace_ms if grace is None else duration_ms("grace", grace)
        if not self._stopped.done():
            self._runtime.feed(CloseServer(grace_ms))
        # A caller may give up waiting; the closing goes on.
        await asyncio.shield(self._stopped)

    async def __aenter__(self) -> Self:
        self._body = asyncio.current_task()
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        if self._body_canceled and body is not None:
            body.uncancel()
        await self.close()
        if self._fault is not None and (kind is None or (self._body_canceled and kind is asyncio.CancelledError)):
            raise refusal(self._fault) from error

    def __repr__(self) -> str:
        state = "new" if self._runtime is None else "closed" if self._stopped and self._stopped.done() else "running"
        return f"<Server of {', '.join(map(repr, self._handlers)) or 'no queue'}, {state}>"

    # The machine's side.

    def _start(self) -> None:
        if self._runtime is not None:
            if self._stopped is not None and self._stopped.done():
                raise Closed("the server was closed; make a new one")
            raise StreamfleetError("the server is running already")
        settings = server_settings(self._timeouts, self._options)
        connector = Connector(self._url, settings.connect_timeout_ms)
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="streamfleet-handler")
        self._runtime = Runtime(ServerMachine(settings), connector, self._perform, self._fail, self._on_event)
        self._runtime.feed(StartServer())

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, StartHandler):
            self._start_handler(effect)
        elif isinstance(effect, CancelHandler):
            run = self._runs.get(effect.run)
            if run is not None:
                task, coroutine = run
                task._cancel(effect.reason)
                if coroutine is not None:
                    coroutine.cancel()
        elif isinstance(effect, Faulted):
            self._fault = effect.error
            if self._body is not None and not self._body_canceled:
                self._body_canceled = True
                self._body.cancel()
        elif isinstance(effect, ServerStopped):
            self._on_stopped()

    def _start_handler(self, start: StartHandler) -> None:
        task = Task(start)
        function = self._handlers[start.queue]
        loop = self._loop
        assert loop is not None
        if start.queue in self._coroutines:
            self._runs[start.run] = (task, loop.create_task(self._run_coroutine(start.run, function, task)))
            return
        self._runs[start.run] = (task, None)
        assert self._threads is not None
        context = contextvars.copy_context()
        future = loop.run_in_executor(self._threads, context.run, _call, start.run, function, task)
        future.add_done_callback(lambda done: None if done.cancelled() else self._done(start.run, done.result()))

    async def _run_coroutine(self, run: int, function: Callable[[Task], Awaitable[object]], task: Task) -> None:
        try:
            answer = returned(run, task, await function(task))
        except asyncio.CancelledError as error:
            answer = HandlerCanceled(run) if task.canceled else raised(run, task, error)
        except Exception as error:
            answer = raised(run, task, error)
        except BaseException as error:
            # KeyboardInterrupt and SystemExit end the program; the task is retried by its policy.
            self._done(run, raised(run, task, error))
            raise
        self._done(run, answer)

    def _done(self, run: int, answer: HandlerDone) -> None:
        self._runs.pop(run, None)
        assert self._runtime is not None
        self._runtime.feed_together(answer)

    def _on_stopped(self) -> None:
        assert self._runtime is not None
        assert self._stopped is not None
        assert self._threads is not None
        self._runtime.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _fail(self, error: Exception) -> None:
        """A bug has stopped the machine: `run` and `close` raise it."""
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(error)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._body is not None:
            self._body.cancel()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise refusal(self._fault)


def _check(url: str, options: ServerOptions) -> None:
    """Raise InvalidOption here and not at the start; the queue is only there because a server needs one."""
    Connector(url, server_settings({"check": None}, options).connect_timeout_ms)


def is_coroutine_function(function: Handler) -> bool:
    """Whether calling it gives a coroutine: a coroutine function, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )


def _call(run: int, function: Handler, task: Task) -> HandlerDone:
    """Run a plain function, in its thread."""
    try:
        return returned(run, task, function(task))
    except BaseException as error:
        return raised(run, task, error)
