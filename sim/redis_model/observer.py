"""What happens to the data, told to whoever judges a run: a checker's view that no client has."""

from __future__ import annotations


class Observer:
    """Told of each change that matters to a queue, as it is applied; every method does nothing here.

    Set it as `ModelServer.observer`. Ids are texts (`b"5-1"`). A method is called in the midst of a command: it must
    not call the server, and what it raises leaves the model in an undefined state. Not told: keys that go as a whole
    (DEL, expiry, FLUSHALL, `restore`), trimming, groups made or destroyed, reads of a consumer's own history.
    """

    def appended(self, key: bytes, entry_id: bytes, fields: tuple[bytes, ...]) -> None:
        """XADD put an entry into a stream; `fields` are names and values in turn."""

    def deleted(self, key: bytes, entry_id: bytes) -> None:
        """XDEL removed an entry that was there."""

    def delivered(self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None) -> None:
        """XREADGROUP with `>` gave an entry to a consumer, at once or after a wait, with NOACK too.

        `previous` is the owner of a pending record that there was already, which only XCLAIM FORCE can have made.
        """

    def claimed(
        self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None, just_id: bool
    ) -> None:
        """XCLAIM made `consumer` the owner; `previous` may be the same, or None where FORCE made the record."""

    def acknowledged(self, key: bytes, group: bytes, entry_id: bytes, owner: bytes) -> None:
        """XACK removed a pending record, or XCLAIM did because its entry is gone."""

    def consumer_deleted(self, key: bytes, group: bytes, consumer: bytes, entry_ids: list[bytes]) -> None:
        """XGROUP DELCONSUMER removed a consumer, and with it the pending records of `entry_ids`, in order."""

    def member_added(self, key: bytes, member: bytes, score: float) -> None:
        """ZADD put a new member into a sorted set, or moved one to another score."""

    def member_removed(self, key: bytes, member: bytes) -> None:
        """ZREM removed a member that was there."""
