"""The error tree: every way a transfer can fail, as a type.

Drivers and engine raise these and nothing else; the facade turns them into booleans. The class, never the message,
decides what happens next: :class:`TransientSinkError` is tried again, and so are, a few times, :class:`SourceChanged`
and :class:`VerificationError`.

Each error is one sentence that says what went wrong, and a ``hint`` that says what to do next.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagesink.artifacts import Receipt


class StagesinkError(Exception):
    """Base of everything stagesink raises on purpose.

    Parameters
    ----------
    message : str
        What went wrong, in one sentence, free of secrets.
    hint : str, optional
        What to do next; shown after the message.
    """

    default_hint = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders with the executors that carry sinks; keyword arguments do not survive the
        # default.
        return _rebuild, (type(self), self.__dict__)


def _rebuild(cls: type[StagesinkError], state: dict[str, object]) -> StagesinkError:
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


# -- what the caller handed over ---------------------------------------------------------------------------------------


class ConfigError(StagesinkError):
    """The configuration cannot be used: unreadable file, unknown key, wrong type or value."""


class InvalidKey(StagesinkError, ValueError):
    """A run id or artifact path that no backend should ever see (``..``, absolute, backslash, control characters)."""


class SourceError(StagesinkError):
    """What should be uploaded cannot be read."""


class SourceNotFound(SourceError):
    """The file or folder does not exist, or vanished while it was read."""


class SourceUnreadable(SourceError):
    """The operating system refuses to read it: permissions, an I/O error, or not a regular file."""


class SourceChanged(SourceError):
    """The file changed while it was read. The engine reads it again, up to a limit."""

    default_hint = "Upload it after its writer has finished, or write it to another name and rename it."


class SourceKindError(SourceError):
    """A folder where a file belongs, or the reverse."""


class EmptyTree(SourceError):
    """A folder with no file to upload."""

    default_hint = "Check the path, and that training wrote its checkpoint there."


class IncompleteCheckpoint(SourceError):
    """The folder itself says that it is not complete."""

    default_hint = "Wait until the trainer has finished writing it, or upload the previous checkpoint."


class LinkError(SourceError):
    """A symbolic link that dangles or leads round in a circle."""

    default_hint = "Mend or remove the link; nothing is left out silently."


class ShardConflict(SourceError):
    """Two ranks of one job uploaded files of one name, so that one's bytes replaced the other's.

    Parameters
    ----------
    ranks : iterable of int
        All that did so.
    """

    def __init__(self, message: str, *, ranks: Iterable[int] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.ranks = tuple(ranks)


class ArchiveError(StagesinkError):
    """An archive that cannot be written or read."""


class UnsafeArchive(ArchiveError):
    """An archive with a member that would land outside the target folder, or is not a plain file."""

    default_hint = "Do not unpack it; ask whoever made it."


class ManifestError(StagesinkError):
    """A manifest that is not one of ours, or contradicts itself."""

    default_hint = "Upload what it describes again, which writes a new one."


class RestoreError(StagesinkError):
    """The target folder cannot take what should be restored."""


class MissingExtra(StagesinkError, ImportError):
    """A package is needed that is not installed; the message names the extra that brings it."""


class UnknownScheme(StagesinkError):
    """No sink is registered for this URI."""


class DrainError(StagesinkError):
    """The drain, which lands or keeps what is under way when a signal ends the process, cannot be installed."""


class OutboxError(StagesinkError):
    """The outbox, where uploads wait that cannot land, cannot be used."""

    default_hint = "Check its disk and folder, or name another in artifacts.outbox.path (STAGESINK_OUTBOX_PATH)."


class OutboxFull(OutboxError):
    """The outbox has no room for this."""

    default_hint = "Free some space, raise artifacts.outbox.max_bytes, or upload what waits: stagesink sync."


class KeptInOutbox(OutboxError):
    """An upload did not land, and waits in the outbox. Its cause says why."""

    default_hint = "`stagesink sync` uploads it."


# -- what a backend did ------------------------------------------------------------------------------------------------


class SinkError(StagesinkError):
    """A backend refused or failed, for good: trying the same again would fail again."""


class TransientSinkError(SinkError):
    """A failure that may pass: timeout, reset connection, 429, 5xx. Tried again.

    Parameters
    ----------
    retry_after : float, optional
        Seconds the backend asked us to wait (HTTP ``Retry-After``).
    """

    default_hint = "The backend may be back soon; try again."

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class SinkAuthError(SinkError):
    """The backend does not know us or does not let us."""

    default_hint = "Check the credentials and their permissions; `stagesink doctor` tests them."


class RunNotFound(SinkError):
    """The run, or the bucket or folder that should hold it, does not exist."""


class ArtifactNotFound(SinkError):
    """There is no object under this key."""

    default_hint = "`stagesink ls` shows what is there."


class NameRefused(SinkError):
    """The backend can hold no object of this name, today or later."""

    default_hint = "Choose another file name or artifact path."


class SinkQuotaError(SinkError):
    """The backend has no room: disk full, quota reached, object too large."""

    default_hint = "Free some space or raise the quota, then try again; no object was left half-written."


class SinkConflict(SinkError):
    """Something else stands where the object should go, for example a folder."""

    default_hint = "Remove what stands in the way, or choose another artifact path."


class DeleteNotSupported(SinkError):
    """The backend cannot remove this object. The engine then goes on without: what it leaves, no manifest names."""


class VerificationError(SinkError):
    """The backend holds other bytes than those that were sent, or none."""

    default_hint = "Upload it again with STAGESINK_VERIFY=full; if it happens again, the store is at fault."


# -- what a whole transfer came to -------------------------------------------------------------------------------------


_SHOWN_FAILURES = 20  # lines; a dead store and a tree of thousands must not fill a log


class ManyFailures(StagesinkError):
    """Some objects failed; the others were carried on.

    Parameters
    ----------
    failures : mapping of str to StagesinkError
        Every failure, by artifact path; at least one. The message shows the first twenty.
    what : str
        What happened to them, as in "3 of 8 objects failed".
    """

    def __init__(self, failures: Mapping[str, StagesinkError], what: str) -> None:
        self.failures = dict(failures)
        path, first = next(iter(self.failures.items()))
        if len(self.failures) == 1:
            super().__init__(f"{path}: {first.message}", hint=first.hint)
            return
        shown = list(self.failures.items())[:_SHOWN_FAILURES]
        lines = [f"{what}:", *(f"  {where}: {error.message}" for where, error in shown)]
        if len(shown) < len(self.failures):
            lines.append(f"  and {len(self.failures) - len(shown)} more.")
        hints = dict.fromkeys(error.hint for error in self.failures.values() if error.hint)
        super().__init__("\n".join(lines), hint=" ".join(hints))

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if len(self.failures) > 1 else super().__str__()


class TransferError(ManyFailures):
    """One or more objects of a transfer failed.

    Parameters
    ----------
    receipts : iterable of Receipt
        One receipt per object, the landed ones included.
    failures : mapping of str to StagesinkError
        Every failure, by artifact path.
    """

    def __init__(self, receipts: Iterable[Receipt], failures: Mapping[str, StagesinkError]) -> None:
        self.receipts = tuple(receipts)
        super().__init__(failures, f"{len(failures)} of {len(self.receipts)} objects failed")


class RestoreFailed(ManyFailures):
    """Some files could not be restored; the others are there."""

    def __init__(self, failures: Mapping[str, StagesinkError]) -> None:
        super().__init__(failures, f"{len(failures)} files were not restored")


class TransferCancelled(StagesinkError):
    """The transfer was stopped (Ctrl-C, or another part gave up) before this object was whole."""

    default_hint = "Nothing half-written is visible; run it again to go on."


def release_frames(error: BaseException) -> None:
    """Let go of what the calls that an error went through had at hand; its trace still names them.

    Whoever keeps errors would otherwise keep the bytes of each object that failed.

    Parameters
    ----------
    error : BaseException
        With its causes, and with each failure that it stands for.
    """
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        each = found.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        found += [each.__cause__, each.__context__]
        if isinstance(each, ManyFailures):
            found += each.failures.values()
