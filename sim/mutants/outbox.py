"""Mutants of the client's way out: admission, batches, armed WATCH, sequence, retention, heartbeat."""

from __future__ import annotations

from .patching import Edit, Mutant

_ARMED = Edit(
    "client.outbox",
    """\
            commands.watch(*self._connection_keys()),
            commands.exists(*self._connection_keys()),
""",
    """\
            commands.UNWATCH,
            commands.exists(*self._connection_keys()),
""",
)
_SET = """\
            *(commands.set_for_a_day(key, epoch) for key in self._connection_keys()),
"""
_BATCH = """\
            write.middle.append(transaction_section(("outbox", "on_batch"), batch, tuple(shape)))
            write.middle.append(self.watch_again())
"""

_ABSENT_IS_FINE = (
    Edit("client.outbox", "        if found != len(self.queues):\n", "        if found is None:\n"),
    Edit("client.outbox", " or tuple(outcome.values[1:]) != expected:\n", ":\n"),
)

OUTBOX = (
    Mutant(
        "batch-without-a-watch",
        "finding 1; design 4.2",
        "No WATCH guards a batch: bytes that an old connection still has in the pipes are applied after the resend.",
        (
            _ARMED,
            Edit(
                "client.outbox",
                "        watch = [commands.watch(*keys), commands.exists(*keys)]\n",
                "        watch = [commands.UNWATCH, commands.exists(*keys)]\n",
            ),
        ),
    ),
    Mutant(
        "connection-key-set-only-once",
        "finding 1; design 4.2",
        "A new connection does not set the key that it watches, so that a late batch of the old one passes.",
        (
            Edit(
                "client.outbox",
                _SET,
                """\
            *(
                commands.set_for_a_day(key, epoch) if self.epoch == 1 else commands.get(key)
                for key in self._connection_keys()
            ),
""",
            ),
            Edit(
                "client.outbox",
                """\
        if found != len(self.queues):
""",
                """\
        if found != len(self.queues):
            self.epoch = 0
""",
            ),
        ),
    ),
    Mutant(
        "connection-key-never-set",
        "finding 2; design 4.2",
        "The watched key does not exist, and what does not exist is not touched by a flush: the next batch is applied "
        "on top of it, and its sequence hides the loss.",
        (
            Edit("client.outbox", _SET, "            *(commands.get(key) for key in self._connection_keys()),\n"),
            *_ABSENT_IS_FINE,
        ),
    ),
    Mutant(
        "loss-before-the-watch-not-seen",
        "finding 2; design 4.2",
        "A flush or a rollback just before a WATCH is not noticed: the WATCH guards nothing, or not what it should.",
        _ABSENT_IS_FINE,
    ),
    Mutant(
        "rollback-before-the-watch-not-seen",
        "finding 2; design 4.2",
        "A rollback between a batch and the WATCH behind it is not noticed, since the watched key is there.",
        (
            Edit(
                "client.outbox",
                "tuple(outcome.values[1:]) != expected:\n",
                "tuple(outcome.values[1:2]) != expected[:1]:\n",
            ),
        ),
    ),
    Mutant(
        "watch-in-the-batch-itself",
        "finding 1; finding 2; design 4.2",
        "The WATCH stands in the same write as its EXEC instead of one round trip earlier: it has seen nothing.",
        (
            Edit(
                "client.outbox",
                _BATCH,
                """\
            write.middle.append(self.watch_again())
            write.middle.append(transaction_section(("outbox", "on_batch"), batch, tuple(shape)))
""",
            ),
        ),
    ),
    Mutant(
        "batch-without-multi",
        "design 4.1",
        "A batch and its sequence are plain commands: where only the first of them are executed, they go out again.",
        (
            Edit(
                "client.outbox",
                _BATCH,
                """\
            write.middle.append(Section(("outbox", "on_batch"), tuple(batch), tuple(shape)))
            write.middle.append(self.watch_again())
""",
            ),
        ),
    ),
    Mutant(
        "refused-batch-is-dropped",
        "go g; go N11; design 4.13",
        "A refused batch is given up; the tasks were accepted, and are lost.",
        (
            Edit(
                "client.outbox",
                "                queue.put_back(queue.in_flight.tasks)\n",
                "                self.admission.left(queue.in_flight.tasks)\n",
            ),
        ),
    ),
    Mutant(
        "put-back-at-the-tail",
        "go N11",
        "What goes out again queues up behind what came later: the order is lost, and a flush is answered too early.",
        (
            Edit(
                "client.records",
                "        self.waiting = deque(sorted([*tasks, *self.waiting], key=lambda task: task.ordinal))\n",
                "        self.waiting.extend(tasks)\n",
            ),
        ),
    ),
    Mutant(
        "resent-without-asking",
        "go l; style M9; finding 1; design 4.2",
        "A batch without an answer is sent again, whatever the sequence says: a lost reply doubles its tasks.",
        (Edit("client.outbox", "            if batch.number <= sequence:\n", "            if batch.number <= 0:\n"),),
    ),
    Mutant(
        "unanswered-batch-taken-for-applied",
        "design 4.13",
        "A batch without an answer is called confirmed: where it was never executed its tasks are lost.",
        (
            Edit(
                "client.outbox",
                "            if batch.number <= sequence:\n",
                "            if batch.number <= queue.sequence:\n",
            ),
        ),
    ),
    Mutant(
        "missing-tasks-under-old-numbers",
        "finding 2; design 4.9",
        "What is missing goes out under the numbers it had: an older state with the same number, restored later, hides "
        "that it is missing again.",
        (
            Edit(
                "client.outbox",
                "        queue.confirmed = max(0, sequence)\n",
                "        queue.confirmed = queue.sequence = max(0, sequence)\n",
            ),
        ),
    ),
    Mutant(
        "loss-not-repaired",
        "finding 2; design 4.9",
        "A sequence below the own one changes nothing: what Redis has lost stays lost.",
        (
            Edit(
                "client.outbox",
                "        if max(0, sequence) < queue.confirmed:\n",
                "        if max(0, sequence) < queue.confirmed - queue.sequence:\n",
            ),
        ),
    ),
    Mutant(
        "flush-not-noticed",
        "finding 2; design 4.9",
        "Where the producer's entry is gone altogether nothing is taken for lost.",
        (
            Edit(
                "client.outbox",
                "        if max(0, sequence) < queue.confirmed:\n",
                "        if 0 <= sequence < queue.confirmed:\n",
            ),
        ),
    ),
    Mutant(
        "tracked-tasks-not-resent",
        "design 4.9",
        "Only retained tasks are sent again after a loss; those that handles hold are forgotten.",
        (Edit("client.outbox", "            lost += self.tracker.lost_above(queue, sequence)\n", ""),),
    ),
    Mutant(
        "nothing-retained",
        "design 4.9",
        "A confirmed task is dropped with the next answer instead of after the retention time.",
        (
            Edit(
                "client.outbox",
                "queue.retained[0].confirmed_at + self.settings.retention_ms <= now",
                "queue.retained[0].confirmed_at <= now",
            ),
        ),
    ),
    Mutant(
        "retention-runs-while-blind",
        "finding 21; design 4.9",
        "The retention time runs on without an answer: after a long outage what it has lost was dropped already.",
        (
            Edit(
                "client.outbox",
                '            write.middle.append(Section(("outbox", "on_armed"), self._arming()))\n',
                """\
            self.forget_old(now)
            write.middle.append(Section(("outbox", "on_armed"), self._arming()))
""",
            ),
        ),
    ),
    Mutant(
        "arming-asks-for-no-types",
        "finding 2.1b",
        "The arming does not see a key of a wrong type: a batch whose ZADD failed and whose reply was lost is called "
        "confirmed, since its sequence is there.",
        (
            Edit(
                "client.outbox",
                """\
                commands.length(queue.keys.stream),
                commands.sorted_length(queue.keys.delayed),
""",
                """\
                commands.hash_get(queue.keys.producers, self._client),
                commands.hash_get(queue.keys.producers, self._client),
""",
            ),
        ),
    ),
    Mutant(
        "wrong-type-forgotten-when-cured",
        "finding 2.1b",
        "What was in flight to a key of a wrong type is called confirmed as soon as the key is gone.",
        (
            Edit(
                "client.outbox",
                "                queue.take_back(stream, delayed)\n",
                "                assert stream is not None or delayed is not None\n",
            ),
        ),
    ),
    Mutant(
        "elements-of-a-batch-not-looked-at",
        "finding 7; finding 2.1b; design 4.1",
        "EXEC is taken for all or nothing: a task whose own command failed is called confirmed, and is lost.",
        (
            Edit(
                "client.outbox",
                "failed = [task for task, reply in zip(batch.tasks, replies, strict=True) "
                "if isinstance(reply, ErrorReply)]",
                "failed: list[Outgoing] = []",
            ),
        ),
    ),
    Mutant(
        "expired-task-is-sent",
        "go N17",
        "A task whose time was over in the local queue is sent all the same, with its time counted from then, after "
        "its handle has said that it certainly never left.",
        (
            Edit(
                "client.outbox",
                """\
            if task.settled or task.over_at(clock) <= now:
                self._drop_first(queue)
                continue
            if len(task.data) > size""",
                "            if len(task.data) > size",
            ),
            Edit("client.records", "since_acceptance = now - self.accepted_at\n", "since_acceptance = 0\n"),
        ),
    ),
    Mutant(
        "refuses-instead-of-waiting",
        "go N8",
        "With the local queue full an enqueue call is refused at once, also where it wants to wait for room.",
        (
            Edit(
                "client.admission",
                "        if not request.wait and (self.calls or not",
                "        if request.data and (self.calls or not",
            ),
        ),
    ),
    Mutant(
        "refused-task-leaves-a-handle",
        "go N9",
        "A tracked task that is refused for want of room has a handle already, which nobody asked for.",
        (
            Edit(
                "client.admission",
                "            return Rejected(request.call, Rejection.QUEUE_FULL, detail, 0)\n",
                """\
            if request.tracked:
                for task_id, data in zip(request.task_ids, request.data, strict=True):
                    task = Outgoing(0, task_id, data, request.options, True, 0)
                    self.tracker.open(self.queues[request.queue], task)
            return Rejected(request.call, Rejection.QUEUE_FULL, detail, 0)
""",
            ),
        ),
    ),
    Mutant(
        "flush-ignores-the-batch-in-flight",
        "contract 1",
        "A flush is answered when the local queue is empty, though the last batch has no answer yet.",
        (
            Edit(
                "client.records",
                "        return min(oldest, self.in_flight.tasks[0].ordinal) if self.in_flight else oldest\n",
                "        return oldest\n",
            ),
        ),
    ),
    Mutant(
        "beats-only-once",
        "design 4.10",
        "A client shows life once, and is collected by others while it lives.",
        (
            Edit("client.heartbeat", "import Backoff, milliseconds\n", "import NEVER, Backoff, milliseconds\n"),
            Edit(
                "client.heartbeat",
                "        self.next_at = now + self.settings.heartbeat_ms\n",
                "        self.next_at = NEVER\n",
            ),
        ),
    ),
)
