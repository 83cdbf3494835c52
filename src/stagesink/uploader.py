"""The facade: whether, what, where to and for which run. The one place where errors become booleans."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from stagesink.artifacts import ArtifactKey, Receipt
from stagesink.config import Artifacts, Config, load_config, skip_artifact_logging
from stagesink.destination import choose_sink, storage_options_for
from stagesink.drain import install_wanted_drain, kept_on_a_signal
from stagesink.errors import ConfigError, StagesinkError, TransferError, release_frames
from stagesink.interrupts import interrupts_whole
from stagesink.keeping import Keeper, can_wait, get_ready, kept_receipts, what_lands_it
from stagesink.metrics import PROCESS_METRICS, Metrics, UploadMetrics
from stagesink.planning import NO_RANKS, Planner, Ranks, StrPath, additions, checked, name_of
from stagesink.redaction import secrets_of, shows_secret, without_secrets
from stagesink.runs import MADE_HERE, find_run, named_run
from stagesink.sinks import ArtifactSink, open_sink
from stagesink.sinks.protocol import TrackedSink
from stagesink.stages import OnFailure
from stagesink.transfer import Plan, ProgressCallback, Transfer, TransferOptions, progress_callback
from stagesink.transfer.options import Verify
from stagesink.transfer.progress import ProgressStyle

if TYPE_CHECKING:
    from stagesink.outbox.entry import Entry
    from stagesink.runs.kept import KeptRuns

logger = logging.getLogger("stagesink")


class ArtifactUploader:
    """Uploads a stage's artifacts and says with a boolean whether they landed.

    ``True``: whole, proven, in the backend. ``False``: not; one logged line says why, and :attr:`receipts` and
    :attr:`errors` have the details. A training run is never killed by an upload, unless ``on_failure="raise"``.

    Parameters
    ----------
    run_id : str, optional
        The run to upload for. Default: ``STAGESINK_RUN_ID``, the active MLflow run, ``MLFLOW_RUN_ID``,
        ``AZUREML_RUN_ID``; for a sink that needs no tracking server then one made for this process.
    stage : str, optional
        A stage of the stage table; its switches in ``mlflow.yaml`` govern what is uploaded.
    config_dir : path, optional
        Folder that holds ``mlflow.yaml``. Read once, at the first upload.
    sink : str, path or ArtifactSink, optional
        Where to: a URI, a folder, or an open sink, which stays open. Default: the configured one.
    on_failure : {"keep", "warn", "raise"}, optional
        ``keep``, the default, keeps what could not land in the outbox, for ``stagesink sync``; ``raise`` lets the typed
        error through.
    background : bool, optional
        Return as soon as the bytes are kept on this disk, with True, and upload them in a thread; :attr:`handles` and
        :meth:`flush` tell what came of it. The process waits for it at its end.
    verify : {"auto", "full", "size", "none"}, optional
        See :class:`stagesink.TransferOptions`.
    workers : int, optional
        Objects in flight at once.
    progress : {"auto", "bar", "lines", "none"} or callable, optional
        How progress is shown, or a callback that is given :class:`stagesink.Progress`.
    attempts : int, optional
        Times an object is tried when the backend fails in a way that may pass.
    initial : float, optional
        Seconds: the bound of the first wait between two attempts, doubled from one to the next.
    storage_options : mapping, optional
        For the store's own client. Default: ``artifacts.storage_options``, if the configured sink is of the same kind.

    Attributes
    ----------
    receipts : list of Receipt
        What the booleans stand for, one per object, in the order of the calls.
    errors : list of StagesinkError
        Why the ``False`` ones are.
    handles : list of Future
        One for each upload in the background: its ``result()`` is a tuple of receipts, or raises why it did not land
        yet.

    The three lists are yours: a training that goes on for weeks may clear what it has read of them.

    Examples
    --------
    >>> with ArtifactUploader(stage="training", sink="file:./artifacts") as uploader:
    ...     uploader.upload_checkpoint("out/checkpoint")
    True
    """

    def __init__(
        self,
        run_id: str | None = None,
        stage: str | None = None,
        config_dir: StrPath | None = None,
        *,
        sink: StrPath | ArtifactSink | None = None,
        on_failure: OnFailure | None = None,
        background: bool | None = None,
        verify: Verify | None = None,
        workers: int | None = None,
        progress: ProgressStyle | ProgressCallback | None = None,
        attempts: int | None = None,
        initial: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage = stage
        self.config_dir = config_dir
        self.receipts: list[Receipt] = []
        self.errors: list[StagesinkError] = []
        self.handles: list[Future[tuple[Receipt, ...]]] = []
        self._kept_as: dict[Future[tuple[Receipt, ...]], str] = {}
        self._given_run_id = run_id
        self._given_sink = os.fspath(sink) if isinstance(sink, os.PathLike) else sink
        self._given_storage_options = storage_options
        self._on_failure = on_failure
        self._progress = progress if callable(progress) else None
        self._arguments = {
            "on_failure": on_failure,
            "background": background,
            "verify": verify,
            "workers": workers,
            "progress": None if callable(progress) else progress,
            "retries.attempts": attempts,
            "retries.initial": initial,
        }
        self._pid = os.getpid()
        self._metrics = UploadMetrics()
        self._said_skipped = False
        if background:
            self._get_ready()

    def _get_ready(self) -> None:
        """Load what the first upload needs, so that it holds training up no longer than the others."""
        with suppress(Exception):  # the first upload meets it again, and says it
            get_ready()
            if self._given_sink is None or isinstance(self._given_sink, str):
                self._opener().close()
        for resolved in ("config", "_opener"):
            self.__dict__.pop(resolved, None)  # at first use, as ever

    def __enter__(self) -> ArtifactUploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections of a sink that was opened here."""
        if "sink" in self.__dict__ and self.sink is not self._given_sink:
            sink = self.__dict__.pop("sink")
            with self.guard(f"{sink.uri} was not closed"):
                sink.close()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for what this uploader uploads in the background, and tell whether all of it has landed.

        What failed before is tried again now. What a newer upload to the same place has replaced counts as landed with
        that one.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits as long as it takes. What has not landed then is still kept, and still on its way.
        """
        self._leave_to_parent()
        until = None if timeout is None else time.monotonic() + timeout
        with interrupts_whole():
            waited = wait_for(self.handles, timeout)
        if waited.not_done:
            return False
        failed = [self._kept_as[handle] for handle in waited.done if handle.exception() is not None]
        left = None if until is None else max(0.0, until - time.monotonic())
        return self._keeper.have_landed(failed, left)

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Treat an error in the block as that of an upload: log it and go on after the block, or let it through.

        For what goes along with uploads and must not kill a training run either, as trackers do it.

        Parameters
        ----------
        what : str
            What did not happen then, as the start of the logged line.
        """
        try:
            with interrupts_whole():
                yield
        except Exception as error:
            self._failed(what, error)

    # -- uploads -----------------------------------------------------------------------------------------------------

    def upload_checkpoint(
        self,
        checkpoint_dir: StrPath,
        artifact_path: str = "checkpoint",
        skip_if_disabled: bool = True,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        session: str | None = None,
    ) -> bool:
        """Upload a checkpoint folder: as a tree, or as one archive when ``artifacts.pack`` says so.

        Parameters
        ----------
        checkpoint_dir : path
        artifact_path : str
            Folder it becomes in the run; an archive's name gets its suffix.
        skip_if_disabled : bool
            False uploads even when the stage or the slot is switched off in the configuration.
        rank, world_size : int, optional
            This process is one rank of a distributed job, the folder holds what it alone wrote, and may be empty. Each
            rank calls this; the checkpoint is there once the last one has. True: this rank's part has landed.
        session : str, optional
            The same on all ranks for one checkpoint, and another for each checkpoint and each start of the job.
            Default: what the launcher tells, see :mod:`stagesink.runs.session`.
        """
        destination = _posix(artifact_path)
        skipped = self._skipped if skip_if_disabled else self._all_skipped

        def plan() -> Plan | None:
            folder = checked(checkpoint_dir)
            if skipped(destination):
                return None
            return self._planner.checkpoint(folder, destination, (rank, world_size, session))

        return self._upload(destination, plan)

    def upload_packed_checkpoint(
        self,
        checkpoint_dir: StrPath,
        artifact_path: str = "best_trial_checkpoint.tar.gz",
        *,
        trial_number: int | None = None,
    ) -> bool:
        """Upload a checkpoint folder as one archive, packed while it is sent, with no temporary copy.

        An MLflow server must be told its size first, and mlflow's own client takes files alone: there it is written to
        a temporary file (``TMPDIR``) before it is sent.

        Parameters
        ----------
        checkpoint_dir : path
        artifact_path : str
            Name of the archive in the run; its suffix, ``.tar.gz`` or ``.tar.zst``, chooses the format.
        trial_number : int, optional
            Of the HPO trial; goes into the manifest.
        """
        destination = _posix(artifact_path)

        def plan() -> Plan | None:
            folder = checked(checkpoint_dir)
            return None if self._skipped(destination) else self._planner.packed(folder, destination, trial_number)

        return self._upload(destination, plan)

    def upload_file(self, file_path: StrPath, artifact_path: str | None = None) -> bool:
        """Upload one file.

        Parameters
        ----------
        file_path : path
        artifact_path : str, optional
            The exact destination of the file, not a folder to put it in; the file's own name by default.
        """

        def plan() -> Plan | None:
            path = checked(file_path)
            destination = name_of(path) if artifact_path is None else _posix(artifact_path)
            return None if self._skipped(destination) else self._planner.file(path, destination)

        return self._upload(str(file_path if artifact_path is None else artifact_path), plan)

    def add_files(self, path: StrPath, folder: str | None = None) -> bool:
        """Upload a file, or what a folder holds, into a folder of the run, beside what lies there.

        What ``mlflow.log_artifact`` and ``mlflow.log_artifacts`` do. :meth:`upload_checkpoint` replaces what an earlier
        upload left at its destination; this leaves it.

        Parameters
        ----------
        path : path
        folder : str, optional
            The folder of the run that the file, or what the folder holds, is put into. Default: the run's root, where
            each file and each folder becomes an upload of its own.
        """
        destination = "" if folder is None else _posix(folder)

        def plans() -> Sequence[Plan | None]:
            _check_type("folder", destination, (str,))
            return [
                None if self._skipped(there) else self._planner.addition(local, there)
                for there, local in additions(checked(path), destination).items()
            ]

        return self._upload(str(path if folder is None else folder), plans)

    def upload_checkpoint_archive(
        self,
        archive_path: StrPath,
        manifest: Mapping[str, Any] | None = None,
        artifact_path: str = "best_trial_checkpoint.tar.gz",
    ) -> bool:
        """Upload an archive that is there already. The archive stays where it is, whatever happens.

        Parameters
        ----------
        archive_path : path
        manifest : mapping, optional
            What :func:`stagesink.create_checkpoint_archive` returned with it.
        artifact_path : str
        """
        destination = _posix(artifact_path)

        def plan() -> Plan | None:
            archive = checked(archive_path)
            return None if self._skipped(destination) else self._planner.archive(archive, manifest, destination)

        return self._upload(destination, plan)

    def upload_plan(self, plan: Plan) -> bool:
        """Upload what was planned for :attr:`run_id` already, if its stage and slot are switched on."""
        return self._upload(plan.path, lambda: None if self._skipped(plan.path) else plan)

    def keep_plan(self, plan: Plan, error: StagesinkError | None = None) -> None:
        """Keep in the outbox what was planned, instead of uploading it, or after that failed with an error.

        Raises
        ------
        SourceError, OutboxError
            It could not be kept.
        """
        self._keeper.keep([plan], self.sink, error=error)

    def upload_slots(
        self,
        paths: Mapping[str, StrPath],
        *,
        trial_number: int | None = None,
        ranks: Ranks = NO_RANKS,
    ) -> dict[str, bool]:
        """Upload what the stage hands over, slot by slot, each to the destination the stage table names.

        Parameters
        ----------
        paths : mapping of str to path
            By slot name.
        trial_number : int, optional
            For slots that land as archives.
        ranks : tuple of rank, world_size and session, optional
            For slots that land as trees: see :meth:`upload_checkpoint`.

        Returns
        -------
        dict of str to bool
            One per slot that was given.
        """

        def plan(name: str, path: StrPath) -> Plan | None:
            if self._all_skipped(name):
                return None
            stage = self.config.stages.get(self.stage or "")
            slot = stage.slot(name) if stage is not None else None
            if slot is None:
                raise ConfigError(
                    f"The stage {self.stage!r} has no slot {name!r}.", hint="artifacts.stages adds slots."
                )
            path = checked(path)
            destination = slot.destination_of(name_of(path))
            if self._skipped(destination):
                return None
            if slot.kind == "tree":
                return self._planner.checkpoint(path, destination, ranks)
            if slot.kind == "archive":
                return self._planner.packed(path, destination, trial_number)
            return self._planner.file(path, destination)

        return {
            name: self._upload(name, lambda name=name, path=path: plan(name, path))  # type: ignore[misc]
            for name, path in paths.items()
        }

    # -- policy, resolved at first use -------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Config:
        """The validated configuration."""
        _check_type("config_dir", self.config_dir, (str, os.PathLike, NoneType))
        _check_type("storage_options", self._given_storage_options, (Mapping, NoneType))
        config = load_config(self.config_dir, arguments=self._arguments)
        _check_type("stage", self.stage, (str, NoneType))
        if self.stage is not None and self.stage not in config.stages:
            # Not taken for a stage without switches: a typo would upload what the configuration switches off.
            known = ", ".join(config.stages)
            raise ConfigError(
                f"There is no stage {self.stage!r}.", hint=f"There are {known}; artifacts.stages adds more."
            )
        return config

    @cached_property
    def sink(self) -> ArtifactSink:
        """Where uploads go."""
        if self._given_sink is not None and not isinstance(self._given_sink, str):
            _check_type("sink", self._given_sink, (str, os.PathLike, ArtifactSink))
            return self._given_sink
        return self._opener()

    @cached_property
    def _opener(self) -> Callable[[], ArtifactSink]:
        """Opens the chosen sink, as often as it is called, also when this uploader or the active run is gone."""
        uri = choose_sink(self.config, cast("str | None", self._given_sink)).uri
        return _Opener(uri, self._storage_options(uri), self.config.artifacts.engine)

    @cached_property
    def _keeper(self) -> Keeper:
        return Keeper(self.config, self.stage)

    @property
    def _planner(self) -> Planner:
        return Planner(self.config, self.stage, lambda: self.run_id, self.named_run_id is not None)

    def _storage_options(self, uri: str) -> Mapping[str, Any]:
        given = self._given_storage_options
        return storage_options_for(self.config, uri) if given is None else given

    @property
    def run_id(self) -> str:
        """The run uploads belong to; one that began without its server has that one's id as soon as it is there."""
        run_id = self._found_run_id
        return run_id if self.kept_runs is None else self.kept_runs.on_server(run_id) or run_id

    @cached_property
    def _found_run_id(self) -> str:
        _check_type("run_id", self._given_run_id, (str, NoneType))
        runs = self.kept_runs
        offline = runs is not None and self.config.artifacts.mode == "offline"
        found = find_run(self._given_run_id, needs_server=self.tracking_uri is not None and not offline)
        if runs is not None and found.source == MADE_HERE:
            runs.of_this_process(found.run_id, {} if self.stage is None else {"stagesink.stage": self.stage})
        return found.run_id

    @cached_property
    def kept_runs(self) -> KeptRuns | None:
        """The runs that wait for the sink's server; None where nobody tracks runs, or nothing is kept."""
        if self.tracking_uri is None or not self._keeper.is_on:
            return None
        return self._keeper.runs(self.sink.uri)

    @property
    def named_run_id(self) -> str | None:
        """The run that is named here, by the environment or by an active MLflow run; None when there is none."""
        _check_type("run_id", self._given_run_id, (str, NoneType))
        found = named_run(self._given_run_id)
        return None if found is None else found.run_id

    @property
    def failure_policy(self) -> OnFailure:
        """What a failure means that is none of one upload's."""
        return self._policy()

    @property
    def tracking_uri(self) -> str | None:
        """Where the sink's runs are tracked; None for a sink whose runs are names alone. May hold a password."""
        sink = self.sink
        return sink.tracking_uri if isinstance(sink, TrackedSink) and sink.tracks_runs else None

    @property
    def options(self) -> TransferOptions:
        """How transfers are carried out, as given here or configured."""
        return self.config.artifacts.transfer_options

    @property
    def progress(self) -> ProgressCallback | None:
        """What shows the progress of a transfer, as given here or configured."""
        return self._progress or progress_callback(self.config.artifacts.progress)

    @property
    def metrics(self) -> Metrics:
        """What this uploader has done so far: ``{stage: {sink uri: {"uploads", "failures", "bytes", ...}}}``."""
        return self._metrics.snapshot()

    # -- the way of one upload ---------------------------------------------------------------------------------------

    def _count(self, receipts: tuple[Receipt, ...], start: float, *, failed: bool) -> None:
        self.receipts.extend(receipts)
        sink = self.sink.uri if "sink" in self.__dict__ else ""  # none could be opened
        stage = self.stage if isinstance(self.stage, str) else None
        for metrics in (self._metrics, PROCESS_METRICS):
            metrics.add(stage, sink, receipts, time.monotonic() - start, failed=failed)

    def _skipped(self, destination: str) -> bool:
        if self._all_skipped(destination):
            return True
        switch = self.config.switched_off_by(self.stage, self.config.stages.slot_for(self.stage, destination))
        if switch is None:
            return False
        logger.info("%s is not uploaded: %s is false.", destination, switch)
        self._note_skipped(destination, f"{switch} is false")
        return True

    def _all_skipped(self, destination: str) -> bool:
        _check_type("artifact_path", destination, (str,))
        if not skip_artifact_logging():
            return False
        if not self._said_skipped:
            logger.warning("Nothing is uploaded: MLFLOW_SKIP_ARTIFACT_LOGGING is set.")
            self._said_skipped = True
        self._note_skipped(destination, "MLFLOW_SKIP_ARTIFACT_LOGGING is set")
        return True

    def _note_skipped(self, destination: str, why: str) -> None:
        key = ArtifactKey(self._given_run_id or "-", destination)
        self.receipts.append(Receipt(key, "", 0, None, 0.0, 0, "skipped", "none", why))

    def _upload(self, what: str, make_plans: Callable[[], Plan | Sequence[Plan | None] | None]) -> bool:
        """Plan and send, and turn errors into ``False``; None stands for what is switched off."""
        start = time.monotonic()
        what = str(what)
        wanted: list[Plan] = []
        kept_by_drain: list[Entry] = []
        try:
            made = make_plans()
            plans = made if isinstance(made, Sequence) else [made]
            wanted = [plan for plan in plans if plan is not None]
            if not wanted:
                return False
            settings = self.config.artifacts
            install_wanted_drain(settings.drain)
            waits = settings.mode == "offline" or self._waits_for_its_run(wanted[0])
            with interrupts_whole():
                if waits or settings.background:
                    receipts = self._keep_first(wanted, is_on_its_way=not waits)
                else:
                    receipts = self._send(wanted, what, kept_by_drain)
        except Exception as error:
            self._give_up(what if what.isprintable() else ascii(what), wanted, error, start, kept_by_drain)
            return False
        self._count(receipts, start, failed=False)
        sent = sum(receipt.size for receipt in receipts)
        landed = wanted[0].path if len(wanted) == 1 else what
        if wanted[0].share is not None:
            landed = f"{landed}, the part of rank {wanted[0].share.rank}"
        kept = waits or settings.background
        where = self.sink.uri if not kept else f"the outbox {self._keeper.outbox.path}"
        logger.info("%s: %d files, %.1f MB, in %s", landed, len(receipts), sent / 1e6, where)
        return len(wanted) == len(plans) and (not kept or settings.background)

    def _send(self, plans: list[Plan], what: str, kept: list[Entry]) -> tuple[Receipt, ...]:
        transfer = Transfer(self.sink, self.options, progress=self.progress)
        with self._kept_on_a_signal(plans, kept), self._keeper.going_first(plans, self.sink, self.options):
            return transfer.run(plans[0]) if len(plans) == 1 else transfer.run_all(plans, what)

    def _waits_for_its_run(self, plan: Plan) -> bool:
        """Tell whether the run is on no server yet: `stagesink sync` makes it there, and uploads what waits for it."""
        return self.kept_runs is not None and self.kept_runs.on_server(plan.run_id) is None

    def _keep_first(self, plans: list[Plan], *, is_on_its_way: bool) -> tuple[Receipt, ...]:
        """Keep what is to be uploaded; in the background it is on its way then."""
        if not self._keeper.is_on:
            raise ConfigError(
                "Uploading in the background and offline need the outbox, and it is switched off.",
                hint="Set artifacts.outbox.enabled (STAGESINK_OUTBOX_ENABLED) to true.",
            )
        entries = self._keeper.keep(plans, self.sink, quick=is_on_its_way)
        if is_on_its_way:
            self._leave_to_parent()
            self.handles += self._land_later(entries)
        return kept_receipts(plans, self.sink.uri)

    def _leave_to_parent(self) -> None:
        """Forget, in a forked child, the uploads of its parent: nothing here would ever tell that they are done."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.handles.clear()
            self._kept_as.clear()

    def _land_later(self, entries: Sequence[Entry]) -> list[Future[tuple[Receipt, ...]]]:
        given = self.sink is self._given_sink
        opener = (lambda: self.sink) if given else self._opener
        handles = self._keeper.upload_later(entries, opener, self.options, closes=not given)
        self._kept_as.update(zip(handles, (entry.id for entry in entries), strict=True))
        return handles

    def _kept_on_a_signal(self, plans: list[Plan], kept: list[Entry]) -> AbstractContextManager[None]:
        """Have the plans kept when a signal comes that ends this process, in ``kept`` too if the block fails then."""
        if self._policy(plans[0]) != "keep" or not self._keeper.is_on:
            return nullcontext()
        return kept_on_a_signal(
            lambda: self._keeper.keep(plans, self.sink, quick=True),
            self._land_later,
            lambda: self._keeper.outbox,
            kept,
        )

    def _give_up(self, what: str, plans: list[Plan], error: Exception, start: float, kept: list[Entry]) -> None:
        """Keep what did not land, if it may land later, and say what has become of it."""
        receipts = error.receipts if isinstance(error, TransferError) else ()
        policy = self._policy(plans[0] if plans else None)
        after = ""
        if plans and policy == "keep" and self._keeper.is_on and can_wait(error):
            try:
                entries = self._keeper.still_kept(kept, error) or self._keeper.keep(plans, self.sink, error=error)
                size = sum(entry.size for entry in entries)
            except Exception as second:  # out of memory, for example: no reason to kill the training run either
                known = second if isinstance(second, StagesinkError) else self._defect(second)
                after = f" It could not be kept either: {known}"
            else:
                receipts = kept_receipts(plans, self.sink.uri, error)
                where = f"It is kept in {self._keeper.outbox.path} ({size / 1e6:.1f} MB)"
                after = f" {where}: {what_lands_it(error)}"
        self._count(receipts, start, failed=True)
        self._failed(f"{what} was not uploaded", error, policy, after)

    def _failed(self, what: str, error: Exception, policy: OnFailure | None = None, after: str = "") -> None:
        """Log an error instead of raising it. Only here may a broad ``except`` end."""
        known = error if isinstance(error, StagesinkError) else self._defect(error)
        self.errors.append(known)
        release_frames(known)
        if (policy or self._policy()) != "raise":
            # What was not foreseen must not kill the training run either, so its trace is logged.
            logger.error("%s: %s%s", what, known, after, exc_info=None if known is error else known.__cause__)
        elif error is known or error is known.__cause__:
            raise error  # whoever catches it reports it
        else:
            raise known from None

    def _policy(self, plan: Plan | None = None) -> OnFailure:
        """Return what a failure means here. A configuration that cannot be read cannot ask for anything."""
        if self._on_failure is not None or "config" not in self.__dict__:
            return self._on_failure or "warn"
        slot = None if plan is None else self.config.stages.slot_for(self.stage, plan.path)
        return self.config.on_failure(self.stage, slot)

    def _defect(self, error: Exception) -> StagesinkError:
        """Wrap an error that is none of ours: a defect, here or in a third party's sink."""
        wrapped = StagesinkError(f"Unexpected {type(error).__name__}.", hint="Please report it with its trace.")
        if not self._quotes_secret(error):
            wrapped.__cause__ = error
        return wrapped

    def _quotes_secret(self, error: Exception) -> bool:
        try:
            return self._shows_secret(error)
        except Exception:  # its text cannot even be had
            return True

    def _shows_secret(self, error: Exception) -> bool:
        settings = self.config.artifacts if "config" in self.__dict__ else Artifacts()
        uri = self._given_sink if isinstance(self._given_sink, str) else settings.sink
        secrets = secrets_of(uri, {**settings.storage_options, **(self._given_storage_options or {})})
        whole = {uri, uri.partition("?")[2]} if without_secrets(uri) != uri else set()
        return shows_secret(error, secrets | whole - {""})


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens a sink. Equal ones open the same; what may be secret is not in the repr."""

    uri: str = field(repr=False)
    storage_options: Mapping[str, Any] = field(repr=False)
    engine: str

    def __call__(self) -> ArtifactSink:
        return open_sink(self.uri, storage_options=self.storage_options, engine=self.engine)


def _posix(artifact_path: StrPath) -> str:
    """Take a Path for the text it stands for; what is neither is refused later, where errors become booleans."""
    return artifact_path.as_posix() if isinstance(artifact_path, PurePath) else cast("str", artifact_path)


def _check_type(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
        raise ConfigError(f"{name} is {type(value).__name__}; it takes {expected}.", hint="Correct the call.")
