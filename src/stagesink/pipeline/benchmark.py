"""Stage four: measure the ONNX model with onnxruntime, and hand the figures to stagesink."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stagesink.pipeline import data
from stagesink.trackers import MLflowBenchmarkTracker

RUNS = 500
"""Single images that are timed."""


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found on the held-back images; ``landed`` is what stagesink answered."""

    benchmark_json: Path
    accuracy: float
    latency_ms: float
    landed: dict[str, bool]


class OnnxClassifier:
    """A model file, ready to be asked."""

    def __init__(self, onnx_path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(onnx_path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the digit on each image."""
        labels: Any = self._session.run(["label"], {self._input: images})[0]
        return np.asarray(labels, dtype=np.int64)


def measure(onnx_path: Path, out_dir: Path, tracker: MLflowBenchmarkTracker) -> Benchmark:
    """Write accuracy and latency into ``out_dir / "benchmark.json"`` and hand them to the tracker.

    Parameters
    ----------
    onnx_path : Path
    out_dir : Path
    tracker : MLflowBenchmarkTracker
        Of the run, which is open.
    """
    out_dir.mkdir(parents=True)
    model = OnnxClassifier(onnx_path)
    images, labels = data.load().held_back
    accuracy = float(np.mean(model.predict(images) == labels))
    latencies = sorted(_milliseconds(model, images[i % len(images)]) for i in range(RUNS))
    p50, p95 = latencies[RUNS // 2], latencies[RUNS * 95 // 100]
    figures = {
        "accuracy": accuracy,
        "latency_ms": {"p50": p50, "p95": p95},
        "images": len(images),
        "onnxruntime": onnxruntime.__version__,
    }
    benchmark_json = out_dir / "benchmark.json"
    benchmark_json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    landed = tracker.log_benchmark_results(
        benchmark_json, {"accuracy": accuracy, "latency_ms_p50": p50, "latency_ms_p95": p95}
    )
    return Benchmark(benchmark_json, accuracy, p50, landed)


def _milliseconds(model: OnnxClassifier, image: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    model.predict(image[np.newaxis])
    return (time.perf_counter() - started) * 1000
