"""Policy over the outbox: what is kept, when, and what an upload means for what already waits."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from stagesink.artifacts import Receipt
from stagesink.destination import AUTO, choose_sink, storage_options_for
from stagesink.errors import (
    ArchiveError,
    ConfigError,
    InvalidKey,
    ManifestError,
    NameRefused,
    OutboxError,
    SourceError,
    StagesinkError,
    TransferCancelled,
    TransferError,
    TransientSinkError,
)
from stagesink.outbox.settings import OutboxSettings
from stagesink.redaction import bare_uri
from stagesink.sinks import open_sink
from stagesink.sinks.protocol import ArtifactSink, host_of_sink
from stagesink.sinks.registry import scheme_of
from stagesink.transfer import Plan, TransferOptions

if TYPE_CHECKING:
    from stagesink.config import Config
    from stagesink.outbox.entry import Entry
    from stagesink.outbox.index import Row
    from stagesink.outbox.store import Outbox
    from stagesink.runs.kept import KeptRuns

# What was handed over is wrong, or was taken back: no later attempt would fare better.
_NOT_KEPT = (
    SourceError,
    ConfigError,
    InvalidKey,
    NameRefused,
    ArchiveError,
    ManifestError,
    TransferCancelled,
    OutboxError,
)

_log = logging.getLogger("stagesink")

_lock = threading.Lock()
_opened: dict[tuple[int, OutboxSettings, str], Outbox] = {}


def open_outbox(settings: OutboxSettings) -> Outbox:
    """Return the outbox; one for each process, folder and set of limits.

    Raises
    ------
    OutboxError
        It cannot be made there.
    """
    from stagesink.outbox.store import Outbox  # brings sqlite3: not for programs that never keep anything

    here = (os.getpid(), settings, "" if os.path.isabs(settings.path) else os.getcwd())
    with _lock:
        if here not in _opened:
            _opened[here] = Outbox(settings)
        return _opened[here]


def open_sink_again(config: Config, uri: str) -> ArtifactSink:
    """Open the sink that something was kept for, whose URI on the disk has no secrets.

    The one that is configured, or that the surroundings call for, is taken if it is the same store: it knows the login.

    Raises
    ------
    StagesinkError
        See :func:`stagesink.open_sink`.
    """
    settings = config.artifacts
    for candidate in dict.fromkeys((settings.sink, choose_sink(config).uri, uri)):
        if candidate == AUTO or scheme_of(candidate).partition("+")[0] != scheme_of(uri).partition("+")[0]:
            continue
        sink = open_sink(candidate, storage_options=storage_options_for(config, candidate), engine=settings.engine)
        if candidate == uri or bare_uri(sink.uri) == uri:
            return sink
        sink.close()
    raise AssertionError("the URI itself is the last candidate")


def can_wait(error: Exception) -> bool:
    """Tell whether an upload that failed like this may land later, so that it is worth keeping."""
    return not all(isinstance(each, _NOT_KEPT) for each in _failures(error))


def what_lands_it(error: Exception) -> str:
    """Say how what was kept comes to the store: of itself, or after somebody has mended something."""
    passes = all(isinstance(each, TransientSinkError) for each in _failures(error))
    return "`stagesink sync` uploads it." if passes else "once that is put right, `stagesink sync` uploads it."


def _failures(error: Exception) -> Collection[Exception]:
    return error.failures.values() if isinstance(error, TransferError) else (error,)


class Keeper:
    """The outbox as the facade uses it, for one stage and one sink.

    Parameters
    ----------
    config : Config
    stage : str or None
    """

    def __init__(self, config: Config, stage: str | None) -> None:
        self._config = config
        self._stage = stage

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._config.artifacts.outbox.enabled

    @property
    def outbox(self) -> Outbox:
        """The outbox, made when it is first needed."""
        return open_outbox(self._config.artifacts.outbox)

    def runs(self, sink_uri: str) -> KeptRuns:
        """Return the runs that are kept for a sink. To look for one makes no outbox."""
        from stagesink.runs.kept import KeptRuns

        return KeptRuns(self._config.artifacts.outbox.path, sink_uri, lambda: self.outbox)

    def keep(
        self, plans: Sequence[Plan], sink: ArtifactSink, *, quick: bool = False, error: Exception | None = None
    ) -> list[Entry]:
        """Keep uploads to a sink, which failed with an error if one is given.

        Raises
        ------
        SourceError, OutboxError
            One could not be kept. Those before it are.
        """
        kept, host = [], host_of_sink(sink)
        for plan in plans:
            slot = self._config.stages.slot_for(self._stage, plan.path)
            priority = {} if slot is None else {"priority": slot.priority}
            name = None if slot is None else slot.name
            why = None if error is None else _why(error)
            kept.append(
                self.outbox.keep(
                    plan, sink.uri, host=host, stage=self._stage, slot=name, quick=quick, why=why, **priority
                )
            )
        return kept

    def still_kept(self, entries: Sequence[Entry], error: Exception) -> list[Entry]:
        """Make what a drain has kept, quickly, of an upload that failed since, last as what waits does.

        Returns
        -------
        list of Entry
            None of them where one is gone, or cannot last: they are to be kept anew.
        """
        lasting = []
        for entry in entries:
            try:
                there = self.outbox.secure(entry.id) or self.outbox.entry(entry.id)
                self.outbox.note_failed(entry.id, _why(error))
            except (SourceError, OutboxError) as second:
                _log.warning("%s: %s", entry.path, second)
                return []
            if there is None:
                return []
            lasting.append(there)
        return lasting

    @contextmanager
    def going_first(self, plans: Sequence[Plan], sink: ArtifactSink, options: TransferOptions) -> Iterator[None]:
        """Upload in the block what is newer than whatever waits for the same places.

        Older uploads to them are held meanwhile, and gone when the block ends well. What adds to a folder, or only
        touches some of the same objects, goes after them instead: they are landed first. An outbox that cannot be used
        keeps nothing from a store that can.
        """
        older = self._older(plans, sink)
        if not older:
            yield
            return
        from stagesink.outbox.sync import Sync

        outbox = self.outbox
        with ExitStack() as claims:
            replaced: list[Row] = []
            for plan, row in older:
                if row.path == plan.place and not plan.adds:
                    try:
                        claimed = claims.enter_context(outbox.claim(row.id, timeout=options.budget))
                        held = claimed is None and outbox.entry(row.id) is not None
                    except OutboxError as error:
                        _warn_of(row, error)
                        continue
                    if held:
                        raise _held(row)
                    if claimed is not None:
                        replaced.append(row)
                    continue
                # What waits may know the run by a name from before its server knew it.
                landing = Sync(outbox, lambda uri: sink, options, run_of=partial(_named, plan.run_id))
                try:
                    outcomes = list(landing.land([row], wait=options.budget))
                except OutboxError as error:
                    _warn_of(row, error)
                    continue
                for outcome in outcomes:
                    if outcome.status == "held":
                        raise _held(row)
                    if outcome.error is not None and can_wait(outcome.error):
                        raise outcome.error  # what can never land stops nobody
            yield
            for row in replaced:
                try:
                    outbox.remove(row.id, for_good=True)
                except OutboxError as error:
                    _warn_of(row, error)

    def _older(self, plans: Sequence[Plan], sink: ArtifactSink) -> list[tuple[Plan, Row]]:
        """Return what waits for the same places as each plan."""
        if not self.is_on or not os.path.isdir(self._config.artifacts.outbox.path):
            return []
        try:
            host = host_of_sink(sink)
            return [
                (plan, row)
                for plan in plans
                for row in self.outbox.waiting_for(sink.uri, plan.run_id, plan.place, host)
            ]
        except OutboxError as error:
            _log.warning("%s What may wait there for the same place would land over this upload later.", error)
            return []

    def upload_later(
        self, entries: Sequence[Entry], open_sink: Callable[[], ArtifactSink], options: TransferOptions, *, closes: bool
    ) -> list[Future[tuple[Receipt, ...]]]:
        """Have this process's uploader land what was kept."""
        from stagesink.outbox.background import background_uploader

        uploader = background_uploader(self.outbox)
        return [uploader.submit(entry, open_sink, options, closes=closes) for entry in entries]

    def have_landed(self, entry_ids: Sequence[str], timeout: float | None) -> bool:
        """Try entries again that failed, and tell whether none of them waits any more."""
        if not entry_ids:
            return True
        from stagesink.outbox.background import background_uploader

        waiting = [entry_id for entry_id in entry_ids if self.outbox.is_there(entry_id)]
        if waiting:
            background_uploader(self.outbox).flush(timeout)
        return not any(map(self.outbox.is_there, waiting))


def _warn_of(row: Row, error: OutboxError) -> None:
    _log.warning(
        "%s What waits there for %s since before this upload would land over it: `stagesink outbox rm %s` removes it.",
        *(error, row.path, row.id),
    )


def _why(error: Exception) -> str:
    # The text of an error that is none of ours may quote anything.
    return error.message if isinstance(error, StagesinkError) else type(error).__name__


def _held(row: Row) -> TransientSinkError:
    return TransientSinkError(f"Another process holds the upload of {row.path} that was kept before, and is not done.")


def _named(run_id: str, entry: Entry, sink: ArtifactSink) -> str:
    return run_id


def get_ready() -> None:
    """Load what keeping an upload needs."""
    for name in ("stagesink.outbox.background", "pydantic.fields", "pydantic.type_adapter"):
        import_module(name)


def kept_receipts(plans: Sequence[Plan], sink_uri: str, error: Exception | None = None) -> tuple[Receipt, ...]:
    """Return a receipt per object: landed before the upload failed, or kept."""
    known = {receipt.key: receipt for receipt in (error.receipts if isinstance(error, TransferError) else ())}
    found = []
    for plan in plans:
        for item in plan.objects:
            receipt = known.get(item.key)
            if receipt is not None and receipt.status in ("uploaded", "unchanged"):
                found.append(receipt)
                continue
            why = receipt.error if receipt is not None else None
            size = item.size if item.size is not None else 0
            attempts = receipt.attempts if receipt is not None else 0
            found.append(Receipt(item.key, sink_uri, size, None, 0.0, attempts, "kept", "none", why))
    return tuple(found)


def _new_lock_after_fork() -> None:
    # Another thread may have held it when this process was forked, and that thread is not here to let go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock_after_fork)
