"""Stage three: convert the checkpoint to ONNX, and hand the model and the log of the conversion to stagesink."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skl2onnx

from stagesink.pipeline.training import load_model
from stagesink.trackers import MLflowConversionTracker

OPSET = 17


@dataclass(frozen=True)
class Conversion:
    """What a conversion left behind; ``landed`` is what stagesink answered."""

    onnx_path: Path
    log_path: Path
    landed: bool


def convert(checkpoint_dir: Path, out_dir: Path, tracker: MLflowConversionTracker) -> Conversion:
    """Write ``model.onnx`` and ``conversion.log`` into ``out_dir`` and hand both to the tracker.

    Parameters
    ----------
    checkpoint_dir : Path
        As :func:`stagesink.pipeline.training.train` writes it.
    out_dir : Path
    tracker : MLflowConversionTracker
        Of the run, which is open.
    """
    out_dir.mkdir(parents=True)
    model = load_model(checkpoint_dir)
    one_image = np.zeros((1, model.n_features_in_), dtype=np.float32)
    # Without zipmap the probabilities come as one array, not as a list of dictionaries.
    converted = skl2onnx.to_onnx(model, one_image, options={id(model): {"zipmap": False}}, target_opset=OPSET)
    onnx_path = out_dir / "model.onnx"
    onnx_path.write_bytes(converted.SerializeToString())

    log_path = out_dir / "conversion.log"
    log_path.write_text(
        f"{model!r}\nskl2onnx {skl2onnx.__version__}, opset {OPSET}: {onnx_path.stat().st_size} bytes\n"
        + "".join(f"{node.op_type:20s} {node.name}\n" for node in converted.graph.node),
        encoding="utf-8",
    )

    tracker.log_params({"opset": OPSET, "skl2onnx": skl2onnx.__version__})
    landed = tracker.log_conversion_results(onnx_path, log_path, metrics={"onnx_bytes": onnx_path.stat().st_size})
    return Conversion(onnx_path, log_path, landed)
