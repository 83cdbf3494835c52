"""All four stages; then what they uploaded is listed, verified and restored, and the restored model is asked.

Where the sink tracks runs each stage has its own, unless one is named; elsewhere all four share one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from stagesink import (
    ArtifactSink,
    ArtifactUploader,
    Manifest,
    StagesinkError,
    list_committed,
    restore,
    upload_metrics,
    verify,
)
from stagesink.errors import MissingExtra, RestoreError, VerificationError
from stagesink.pipeline.report import DemoReport, Landed, StageRun, Step
from stagesink.trackers import (
    MLflowBenchmarkTracker,
    MLflowConversionTracker,
    MLflowSweepTracker,
    MLflowTrainingTracker,
)
from stagesink.trackers.base import StageTracker

STAGES = ("hpo", "training", "conversion", "benchmark")
PACKAGES = ("numpy", "sklearn", "optuna", "onnx", "skl2onnx", "onnxruntime")


class DemoFailed(StagesinkError):
    """Something did not land, or came back other than it went."""


def run_demo(
    sink: str | ArtifactSink | None = None,
    workdir: Path | None = None,
    *,
    run_id: str | None = None,
    n_trials: int = 4,
    on_step: Callable[[Step], None] = lambda step: None,
) -> DemoReport:
    """Run the four stages, and prove that what they uploaded can be had again.

    Parameters
    ----------
    sink : str or ArtifactSink, optional
        Where to; the configured sink by default.
    workdir : Path, optional
        Empty folder for what the stages write and for what is restored. By default a new temporary one, which is kept.
    run_id : str, optional
        The run of all four stages. By default one is found as every upload finds it, and when nothing names one, a sink
        that tracks runs gets one for each stage, and a nested one for each trial.
    n_trials : int
        Trials of the sweep, two at a time, each a process of a few seconds.
    on_step : callable
        Told of each step when it has ended.

    Raises
    ------
    MissingExtra
        The extra ``demo`` is not installed.
    DemoFailed
        A run could not be opened, an upload was refused or failed (the log says why), or the restored model is not the
        trained one.
    TrialFailed
        A trial's process ended with an error.
    VerificationError
        The sink holds other bytes than were uploaded.
    StagesinkError
        What else the configuration, the sink and the restore raise.
    """
    _require_extra()
    steps = _Steps(on_step)
    folder = _fresh_folder(workdir)
    with ArtifactUploader(run_id, sink=sink) as uploader:
        store = uploader.sink
        steps.done("start", f"artifacts go to {store.uri}")
        seconds_before = _upload_seconds(store.uri)
        checkpoint_dir, runs = _run_stages(folder, run_id, store, n_trials, steps)
        seconds_after = _upload_seconds(store.uri)

        manifests = _list(store, runs)
        steps.done("listed", f"{len(manifests)} artifacts, each with its manifest")
        objects = _verify(store, manifests)
        steps.done("verified", f"{objects} objects read back, each has the sha256 of its manifest")
        restored = folder / "restored"
        files = restore(store, manifests, restored)
        steps.done("restored", f"{len(files)} files into {restored}")
        predictions = _compare(checkpoint_dir, restored / _onnx_path(manifests))
        steps.done(
            "compared", f"restored ONNX model = trained model on {predictions} of {predictions} held-back images"
        )

        return DemoReport(
            runs=runs,
            sink=store.uri,
            workdir=str(folder),
            restored=str(restored),
            steps=steps.done_so_far,
            landed=[_describe(manifest) for manifest in manifests],
            upload_seconds={stage: seconds_after[stage] - seconds_before[stage] for stage in STAGES},
            predictions=predictions,
            seconds=steps.seconds,
        )


def _run_stages(
    folder: Path, run_id: str | None, sink: ArtifactSink, n_trials: int, steps: _Steps
) -> tuple[Path, list[StageRun]]:
    """Run all four; return the checkpoint folder of the final training, and each stage's run."""
    from stagesink.pipeline import benchmark, conversion, sweep, training

    runs: list[StageRun] = []
    with MLflowSweepTracker(run_id, sink=sink, run_name="demo search") as tracker:
        sweep_run = _noted(tracker, runs)
        found = sweep.search(n_trials, folder / "hpo", tracker)
    _must_have_landed("hpo", found.landed)
    best = found.accuracies[found.best_trial]
    steps.done("hpo", f"{n_trials} trials, each in its own process; trial {found.best_trial} is best: {best:.1%}")

    settings = replace(found.best, epochs=2 * found.best.epochs)
    with MLflowTrainingTracker(run_id, sink=sink, run_name="demo training", sweep_run_id=sweep_run) as tracker:
        training_run = _noted(tracker, runs)
        trained = training.train(settings, folder / "training", tracker)
    _must_have_landed("training", all(trained.landed.values()))
    steps.done("training", f"its settings, {settings.epochs} epochs: {trained.accuracy:.1%} on the validation images")

    with MLflowConversionTracker(
        run_id, sink=sink, run_name="demo conversion", training_run_id=training_run
    ) as tracker:
        conversion_run = _noted(tracker, runs)
        converted = conversion.convert(trained.checkpoint_dir, folder / "conversion", tracker)
    _must_have_landed("conversion", converted.landed)
    steps.done("conversion", f"to ONNX, {converted.onnx_path.stat().st_size / 1e3:.1f} kB")

    with MLflowBenchmarkTracker(
        run_id, sink=sink, run_name="demo benchmark", training_run_id=training_run, conversion_run_id=conversion_run
    ) as tracker:
        _noted(tracker, runs)
        measured = benchmark.measure(converted.onnx_path, folder / "benchmark", tracker)
    _must_have_landed("benchmark", all(measured.landed.values()))
    steps.done("benchmark", f"{measured.accuracy:.1%} on held-back images, {measured.latency_ms * 1e3:.0f} µs for one")
    return trained.checkpoint_dir, runs


def _noted(tracker: StageTracker, runs: list[StageRun]) -> str:
    """Add the tracker's run to ``runs`` and return its id."""
    if tracker.run_id is None:
        raise DemoFailed(f"The stage {tracker.stage} has no run.", hint="The line logged above says why.")
    runs.append(StageRun(tracker.stage, tracker.run_id, tracker.run_url))
    return tracker.run_id


def _must_have_landed(stage: str, landed: bool) -> None:
    if not landed:
        raise DemoFailed(f"The stage {stage} did not land all that it made.", hint="The line logged above says why.")


def _list(sink: ArtifactSink, runs: Sequence[StageRun]) -> list[Manifest]:
    """Return what the four stages committed, in their order."""
    run_ids = dict.fromkeys(run.run_id for run in runs)
    committed = [manifest for run_id in run_ids for manifest in list_committed(sink, run_id)]
    found = [manifest for manifest in committed if _stage(manifest) in STAGES]
    missing = set(STAGES) - {_stage(manifest) for manifest in found}
    if missing:
        raise DemoFailed(f"{sink.uri} lists nothing of: {', '.join(sorted(missing))}.", hint="The store lost it.")
    return sorted(found, key=lambda manifest: STAGES.index(_stage(manifest)))


def _verify(sink: ArtifactSink, manifests: Sequence[Manifest]) -> int:
    """Read everything back; return how many objects that were."""
    checks = verify(sink, manifests)
    bad = [check for check in checks if check.status != "ok"]
    if bad:
        raise VerificationError("; ".join(f"{check.key}: {check.detail}" for check in bad))
    return len(checks)


def _compare(checkpoint_dir: Path, onnx_path: Path) -> int:
    """Ask the trained model and the restored one about every held-back image; return how many those are."""
    from stagesink.pipeline import data
    from stagesink.pipeline.benchmark import OnnxClassifier
    from stagesink.pipeline.training import load_model

    images = data.load().held_back.images
    different = int((load_model(checkpoint_dir).predict(images) != OnnxClassifier(onnx_path).predict(images)).sum())
    if different:
        raise DemoFailed(
            f"The restored model {onnx_path} and the trained one in {checkpoint_dir} disagree on {different} of "
            f"{len(images)} held-back images.",
            hint="Its bytes are those that were uploaded, so look at the conversion.",
        )
    return len(images)


def _onnx_path(manifests: Sequence[Manifest]) -> str:
    return next(m.path for m in manifests if _stage(m) == "conversion" and m.path.endswith(".onnx"))


def _stage(manifest: Manifest) -> str:
    return manifest.provenance.get("stage", "")


def _describe(manifest: Manifest) -> Landed:
    path = f"{manifest.path}/" if manifest.kind == "tree" else manifest.path
    size = sum(stored.size for stored in manifest.objects())
    return Landed(_stage(manifest), path, len(manifest.files), size, "sha256 ok")


def _upload_seconds(sink_uri: str) -> dict[str, float]:
    figures = upload_metrics()
    return {stage: figures.get(stage, {}).get(sink_uri, {}).get("seconds", 0.0) for stage in STAGES}


def _require_extra() -> None:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingExtra(f"The demo needs {', '.join(missing)}.", hint="Install it: pip install 'stagesink[demo]'")


def _fresh_folder(workdir: Path | None) -> Path:
    if workdir is None:
        return Path(tempfile.mkdtemp(prefix="stagesink-demo-"))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        empty = next(workdir.iterdir(), None) is None
    except OSError as error:
        raise RestoreError(f"{workdir} cannot be used: {error.strerror}.", hint="Name another folder.") from error
    if not empty:
        raise RestoreError(f"{workdir} is not empty.", hint="Name a new folder, or none for a temporary one.")
    return workdir


class _Steps:
    """Times what lies between one ``done`` and the next, and passes it on."""

    def __init__(self, on_step: Callable[[Step], None]) -> None:
        self.done_so_far: list[Step] = []
        self._on_step = on_step
        self._started = self._last = time.perf_counter()

    def done(self, name: str, result: str) -> None:
        now = time.perf_counter()
        step = Step(name, result, now - self._last)
        self._last = now
        self.done_so_far.append(step)
        self._on_step(step)

    @property
    def seconds(self) -> float:
        return self._last - self._started
