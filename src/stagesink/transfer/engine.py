"""The engine: takes a plan, lands every object through a sink, and commits the whole with its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from stagesink.artifacts import ArtifactKey, Receipt
from stagesink.errors import SinkConflict, SinkError, StagesinkError, TransferError
from stagesink.sinks.protocol import ArtifactSink, ReportingSink
from stagesink.transfer.listed import ListedSink
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan
from stagesink.transfer.pool import run_jobs
from stagesink.transfer.progress import ProgressCallback
from stagesink.transfer.rank_run import RankRun
from stagesink.transfer.run import Effort, Run
from stagesink.transfer.turns import Turn

_ASK_UP_TO = 8  # plans of one object; for more, two listings of the run spare each its questions


class Transfer:
    """Lands plans in one sink.

    Parameters
    ----------
    sink : ArtifactSink
    options : TransferOptions, optional
    progress : callable, optional
        Called with a :class:`~stagesink.transfer.Progress` about ten times a second, and once at the end.
    on_landed : callable, optional
        Called with the receipt of each object that was put, from the thread that did, before the upload is committed.

    Examples
    --------
    >>> receipts = Transfer(open_sink("memory:")).run(plan_tree("run1", "checkpoint", "out/checkpoint"))
    """

    def __init__(
        self,
        sink: ArtifactSink,
        options: TransferOptions | None = None,
        *,
        progress: ProgressCallback | None = None,
        on_landed: Callable[[Receipt], None] | None = None,
    ) -> None:
        self.sink = sink
        self.options = options or TransferOptions()
        self.progress = progress
        self.on_landed = on_landed
        # Digests this backend is known or was seen to report, besides sha256, each with the largest object of which it
        # does: these are taken while the bytes pass. Of what goes in parts many report none.
        self._reported: dict[str, int] = dict(sink.reports) if isinstance(sink, ReportingSink) else {}

    def run(self, plan: Plan) -> tuple[Receipt, ...]:
        """Land every object of ``plan``, then its manifest.

        What lies there already with the same bytes is not sent again. While objects change the old manifest is gone: a
        tree without its manifest is not there. One failing object does not stop the others.

        Returns
        -------
        tuple of Receipt
            One per object, in the plan's order.

        Raises
        ------
        TransferError
            Some objects failed; or the manifest could not be read or written; it carries all receipts and every
            failure. The upload is not committed.
        """
        with self._effort([plan], plan.path) as effort:
            return _run_of(effort, plan).run()

    def run_all(self, plans: Sequence[Plan], label: str) -> tuple[Receipt, ...]:
        """Land several plans as :meth:`run` does, each committed by itself.

        Those of one object go side by side, and the store is asked about all of them at once. They share the time for
        retries and one display of progress. One failing plan does not stop the others.

        Parameters
        ----------
        plans : sequence of Plan
            Of one run, with a path of its own each, none inside another's.
        label : str
            Names them all where progress is shown.

        Returns
        -------
        tuple of Receipt
            One per object, in the order of the plans.

        Raises
        ------
        TransferError
            Some plans failed; it carries all receipts and every failure.
        """
        receipts: dict[str, tuple[Receipt, ...]] = {}
        failures: dict[str, StagesinkError] = {}

        def land(run: Run) -> None:
            place = run.plan.place  # now: one that adds to a tree may find another path
            try:
                receipts[place] = run.run()
            except TransferError as error:
                receipts[place] = error.receipts
                failures.update(error.failures)

        with self._effort(plans, label) as effort:
            together = [plan for plan in plans if len(plan.objects) == 1 and plan.share is None]
            lost: set[ArtifactKey] = set()
            turn = effort.turn(plans[0].run_id, [plan.path for plan in together])
            try:
                if len(together) > 1:
                    sink = self._begin_together(effort, turn, len(together))
                    jobs = [
                        (plan.size or 0, partial(land, Run(effort, plan, turn=turn, sink=sink))) for plan in together
                    ]
                    run_jobs(
                        jobs,
                        workers=self.options.workers,
                        cancel=effort.cancel,
                        tick=effort.counter.tick,
                        moved=effort.counter.moved,
                        answer=turn.answer,
                    )
                    if isinstance(sink, ListedSink) and self.options.verify != "none":
                        lost = effort.retry.call(sink.lost)
            except SinkConflict as error:
                raise _nothing_sent(effort, plans, error) from error
            except SinkError:
                lost = {key for plan in together for key in _keys_of(plan)}  # not known: each is asked by itself
            finally:
                turn.end()
            for plan in plans:
                if plan.place not in receipts or (plan.path not in failures and not lost.isdisjoint(_keys_of(plan))):
                    land(_run_of(effort, plan))
        everything = tuple(receipt for plan in plans for receipt in receipts[plan.place])
        if failures:
            raise TransferError(everything, dict(sorted(failures.items())))
        return everything

    def _effort(self, plans: Sequence[Plan], label: str) -> Effort:
        return Effort(self.sink, self.options, self._reported, plans, label, self.progress, self.on_landed)

    def _begin_together(self, effort: Effort, turn: Turn, plans: int) -> ArtifactSink:
        """Take a turn for many plans, and ask the store about all of them at once where that spares questions."""
        turn.announce()
        turn.wait()
        if plans <= _ASK_UP_TO:
            return self.sink
        return effort.retry.call(lambda: ListedSink(self.sink, turn.run_id))


def _run_of(effort: Effort, plan: Plan) -> Run:
    return Run(effort, plan) if plan.share is None else RankRun(effort, plan, plan.share)


def _nothing_sent(effort: Effort, plans: Sequence[Plan], error: SinkError) -> TransferError:
    receipts = [
        Receipt(item.key, effort.sink.uri, item.size or 0, None, 0.0, 0, "failed", "none", error.message)
        for plan in plans
        for item in plan.objects
    ]
    return TransferError(receipts, {plan.path: error for plan in plans})


def _keys_of(plan: Plan) -> set[ArtifactKey]:
    return {plan.manifest_key, *(item.key for item in plan.objects)}
