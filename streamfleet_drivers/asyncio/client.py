"""The client for asyncio."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from streamfleet_protocol import ClientMachine
from streamfleet_protocol.effects import (
    Accepted,
    ClientClosed,
    Confirmed,
    Effect,
    FaultCleared,
    Faulted,
    Flushed,
    Rejected,
    Settled,
)
from streamfleet_protocol.inputs import ClientInput, CloseClient, Enqueue, Flush, TaskOptions, Withdraw
from streamfleet_protocol.replies import ErrorReply, refusal

from .. import identity
from ..facade import CloseReport, OnEvent, close_report, rejection_error, settled_result
from ..options import ClientOptions, Duration, Options, client_settings, duration_ms, payload, task_options
from .runtime import Connector, Runtime

Data = bytes | bytearray | memoryview | str

_ENQUEUE_AT_ONCE = 1000
_CLOSE_TIMEOUT = 10.0


class TaskHandle:
    """A tracked task. Any number may wait on it; giving up a wait changes nothing else."""

    def __init__(self, client: Client, task_id: str) -> None:
        self._client = client
        self._task_id = task_id
        self._settled: Settled | None = None
        self._confirmed = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self._task_id

    def done(self) -> bool:
        """Whether its outcome is there."""
        return self._settled is not None

    async def wait(self, timeout: Duration | None = None) -> bytes | None:
        """The handler's result.

        Raises TaskFailed, TaskExpired, TaskCanceled or OutcomeUnknown where it ended otherwise, TimeoutError where
        `timeout` is over first (the handle stays open), and ServerRefused while Redis refuses the client.
        """
        await self._until(lambda: self._settled is not None, timeout)
        assert self._settled is not None
        return settled_result(self._settled)

    async def confirmed(self, timeout: Duration | None = None) -> None:
        """Return once the task is in Redis (or has ended). Raises as `wait` for a timeout or a refusal."""
        await self._until(lambda: self._confirmed or self._settled is not None, timeout)

    async def _until(self, condition: Any, timeout: Duration | None) -> None:
        async with asyncio.timeout(None if timeout is None else duration_ms("timeout", timeout) / 1000):
            while not condition():
                self._client._raise_fault()
                future = asyncio.get_running_loop().create_future()
                self._waiters.add(future)
                try:
                    await future
                finally:
                    self._waiters.discard(future)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __repr__(self) -> str:
        return f"<TaskHandle {self._task_id}, {'done' if self.done() else 'open'}>"


class Client:
    """Enqueues tasks. Needs no Redis to be made: while there is none, it buffers up to its bounds.

    Use it in one event loop, as a context manager or with `close`. Options: see `ClientOptions`; `on_event` is called
    with each `events.Note`. Raises InvalidOption, InvalidQueueName or NoQueues.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        queues: Iterable[str],
        on_event: OnEvent | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        settings = client_settings(queues, options)
        self._runtime: Runtime[ClientInput] = Runtime(
            ClientMachine(settings), Connector(url, settings.connect_timeout_ms), self._perform, self._fail, on_event
        )
        self.client_id = settings.client_id
        self._calls = itertools.count(1)
        self._answers: dict[int, Effect] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._handles: dict[str, TaskHandle] = {}
        self._fault: ErrorReply | None = None
        self._bug: Exception | None = None
        self._report: CloseReport | None = None
        self._closed: asyncio.Future[None] | None = None

    # Enqueueing.

    async def enqueue_and_forget(self, queue: str, data: Data, *, wait: bool = True, **options: Unpack[Options]) -> str:
        """Accept one task; its id. From then on it is not lost while this process lives, or once it is confirmed.

        Waits for room in the local queue; with `wait=False` raises QueueFull instead. Raises UnknownQueue, Closed,
        InvalidOption, and ServerRefused while Redis refuses for a reason that waiting does not cure.
        """
        task_id = identity.uuid7()
        await self._enqueue(queue, (task_id,), (payload(data),), task_options(options), False, wait)
        return task_id

    async def enqueue_and_track(
        self, queue: str, data: Data, *, wait: bool = True, **options: Unpack[Options]
    ) -> TaskHandle:
        """As `enqueue_and_forget`; the handle tells how the task ends."""
        task_id = identity.uuid7()
        chosen = task_options(options)
        handle = self._handles[task_id] = TaskHandle(self, task_id)
        try:
            await self._enqueue(queue, (task_id,), (payload(data),), chosen, True, wait)
        except BaseException:
            self._handles.pop(task_id, None)
            raise
        return handle

    @overload
    async def enqueue_many(
        self,
        queue: str,
        data: Iterable[Data],
        *,
        track: Literal[False] = False,
        wait: bool = True,
        **options: Unpack[Options],
    ) -> list[str]: ...
    @overload
    async def enqueue_many(
        self, queue: str, data: Iterable[Data], *, track: Literal[True], wait: bool = True, **options: Unpack[Options]
    ) -> list[TaskHandle]: ...
    async def enqueue_many(
        self, queue: str, data: Iterable[Data], *, track: bool = False, wait: bool = True, **options: Unpack[Options]
    ) -> list[str] | list[TaskHandle]:
        """Accept many tasks with the same options; their ids or handles in order.

        They go in as room comes; the attribute `accepted` of an error says how many are in. With `wait=False` all are
        accepted at once, or none.
        """
        chosen = task_options(options)
        all_data = [payload(item) for item in data]
        ids = [identity.uuid7() for _ in all_data]
        step = _ENQUEUE_AT_ONCE if wait else max(1, len(ids))
        if track:
            self._handles.update((task_id, TaskHandle(self, task_id)) for task_id in ids)
        handles = [self._handles[task_id] for task_id in ids] if track else []
        done = 0
        try:
            for at in range(0, len(ids), step):
                if at:
                    # Tasks are sent, and others run, while a long list is accepted.
                    await asyncio.sleep(0)
                await self._enqueue(
                    queue, tuple(ids[at : at + step]), tuple(all_data[at : at + step]), chosen, track, wait
                )
                done = at + step
        except BaseException as error:
            accepted = done + getattr(error, "accepted", 0)
            error.accepted = accepted  # type: ignore[attr-defined]
            for task_id in ids[accepted:]:
                self._handles.pop(task_id, None)
            raise
        return handles if track else ids

    async def flush(self, timeout: Duration | None = None) -> None:
        """Return once all that was accepted so far is confirmed by Redis.

        Raises TimeoutError, Closed, and ServerRefused as for enqueueing. Nothing is lost by a timeout.
        """
        call = next(self._calls)
        async with asyncio.timeout(None if timeout is None else duration_ms("timeout", timeout) / 1000):
            await self._answer(call, Flush(call))

    async def close(self, timeout: Duration = _CLOSE_TIMEOUT) -> CloseReport:
        """Confirm within `timeout` what was accepted, then end; what became of the tasks. May be called again.

        Handles that are still open settle: as TaskCanceled where the task was never sent, else as OutcomeUnknown.
        """
        self._runtime.check_loop()
        if self._report is None:
            if self._closed is None:
                self._closed = asyncio.get_running_loop().create_future()
                self._runtime.feed(CloseClient(duration_ms("timeout", timeout)))
            # Each caller may give up waiting; the closing goes on.
            await asyncio.shield(self._closed)
        assert self._report is not None
        return self._report

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Client {self.client_id}{', closed' if self._report else ''}>"

    # The machine's side.

    async def _enqueue(
        self,
        queue: str,
        task_ids: tuple[str, ...],
        data: tuple[bytes, ...],
        options: TaskOptions,
        tracked: bool,
        wait: bool,
    ) -> None:
        call = next(self._calls)
        await self._answer(call, Enqueue(call, queue, task_ids, data, options, tracked, wait))

    async def _answer(self, call: int, request: Enqueue | Flush) -> None:
        self._runtime.check_loop()
        if isinstance(request, Flush):
            self._raise_fault()
        self._runtime.feed(request)
        answer = self._answers.pop(call, None)
        if answer is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[call] = future
            try:
                await future
            except BaseException as error:
                self._waiting.pop(call, None)
                self._runtime.feed(Withdraw(call))
                # The machine has told, now or before, how many tasks were accepted; these are kept.
                error.accepted = self._accepted(call)  # type: ignore[attr-defined]
                raise
            answer = self._answers.pop(call)
        if isinstance(answer, Rejected):
            raise rejection_error(answer)

    def _accepted(self, call: int) -> int:
        answer = self._answers.pop(call, None)
        if isinstance(answer, Accepted):
            return answer.count
        return answer.accepted if isinstance(answer, Rejected) else 0

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Accepted | Rejected | Flushed):
            self._answers[effect.call] = effect
            future = self._waiting.pop(effect.call, None)
            if future is not None and not future.done():
                future.set_result(None)
        elif isinstance(effect, Settled):
            handle = self._handles.pop(effect.task_id, None)
            if handle is not None:
                handle._settled = effect
                handle._wake()
        elif isinstance(effect, Confirmed):
            for task_id in effect.task_ids:
                handle = self._handles.get(task_id)
                if handle is not None:
                    handle._confirmed = True
                    handle._wake()
        elif isinstance(effect, Faulted):
            self._on_fault(effect.error)
        elif isinstance(effect, FaultCleared):
            self._fault = None
        elif isinstance(effect, ClientClosed):
            self._on_closed(effect)

    def _on_fault(self, error: ErrorReply) -> None:
        self._fault = error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(refusal(error))
        for handle in self._handles.values():
            handle._wake()

    def _fail(self, error: Exception) -> None:
        """A bug has stopped the machine."""
        self._bug = error
        waiting = [*self._waiting.values(), *([self._closed] if self._closed is not None else [])]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        for handle in self._handles.values():
            handle._wake()

    def _on_closed(self, closed: ClientClosed) -> None:
        self._report = close_report(closed)
        self._runtime.stop()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _raise_fault(self) -> None:
        if self._bug is not None:
            raise self._bug
        if self._fault is not None:
            raise refusal(self._fault)
