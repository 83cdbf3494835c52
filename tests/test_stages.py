from __future__ import annotations

import dataclasses

import pytest

from stagesink.errors import ConfigError, InvalidKey
from stagesink.stages import STAGES, Slot, Stage, StageTable

TABLE = [
    ("training", "checkpoint", "log_checkpoint", "checkpoint", "tree"),
    ("training", "metrics_json", "log_metrics_json", "metrics.json", "file"),
    ("conversion", "onnx_model", "log_onnx_model", "onnx_model/{name}", "file"),
    ("conversion", "conversion_log", "log_conversion_log", "conversion_log.txt", "file"),
    ("benchmark", "benchmark_json", "log_artifacts", "benchmark_results.json", "file"),
    ("hpo", "checkpoint", "log_checkpoint", "best_trial_checkpoint.tar.gz", "archive"),
]


def test_the_table_is_the_one_of_the_design():
    found = [(stage.name, *dataclasses.astuple(slot)[:4]) for stage in STAGES.stages for slot in stage.slots]
    assert found == TABLE


def test_what_is_small_goes_before_checkpoints_when_time_is_short():
    by_priority = sorted((slot.priority, slot.name) for stage in STAGES.stages for slot in stage.slots)
    assert [name for _, name in by_priority] == [
        *("benchmark_json", "conversion_log", "metrics_json", "onnx_model", "checkpoint", "checkpoint")
    ]


@pytest.mark.parametrize(
    ("stage", "destination", "slot"),
    [
        ("training", "checkpoint", "checkpoint"),
        ("training", "checkpoint.tar.gz", "checkpoint"),
        ("training", "checkpoint.tar.zst", "checkpoint"),
        ("training", "checkpoint/weights/model.bin", "checkpoint"),
        ("training", "metrics.json", "metrics_json"),
        ("training", "metricsXjson", None),
        ("training", "metrics.json/metrics.json", None),
        ("training", "checkpoint2", None),
        ("training", "other/checkpoint", None),
        ("conversion", "onnx_model/x.onnx", "onnx_model"),
        ("conversion", "onnx_model/deep/x.onnx", None),
        ("conversion", "onnx_model", None),
        ("conversion", "conversion_log.txt", "conversion_log"),
        ("benchmark", "benchmark_results.json", "benchmark_json"),
        ("hpo", "best_trial_checkpoint.tar.gz", "checkpoint"),
        ("hpo", "best_trial_checkpoint.tar.gz/inside", None),
        ("hpo", "metrics.json", None),
        ("nonesuch", "metrics.json", None),
        (None, "metrics.json", None),
    ],
)
def test_a_destination_finds_the_slot_that_governs_it(stage, destination, slot):
    found = STAGES.slot_for(stage, destination)
    assert (found.name if found else None) == slot


def test_a_plain_destination_beats_a_placeholder_and_a_tree():
    stage = Stage(
        "evaluation",
        (
            Slot("anything", "log_anything", "{name}", "file"),
            Slot("plots", "log_plots", "plots", "tree"),
            Slot("report", "log_report", "report.html", "file"),
            Slot("summary", "log_summary", "plots/summary.png", "file"),
        ),
    )
    table = STAGES.with_stage(stage)
    governs = {
        path: found.name
        for path in ("report.html", "other.html", "plots/a.png", "plots/summary.png", "plots")
        if (found := table.slot_for("evaluation", path))
    }
    assert governs == {
        "report.html": "report",
        "other.html": "anything",
        "plots/a.png": "plots",
        "plots/summary.png": "summary",
        "plots": "plots",
    }


def test_a_destination_takes_the_files_own_name():
    onnx = STAGES["conversion"].slot("onnx_model")
    assert onnx is not None
    assert onnx.destination_of("bert {name}.onnx") == "onnx_model/bert {name}.onnx"


def test_the_table_does_not_change_when_a_stage_is_added():
    table = STAGES.with_stage(Stage("evaluation", (Slot("report", "log_report", "report.html", "file"),)))
    assert list(table) == ["training", "conversion", "benchmark", "hpo", "evaluation"]
    assert "evaluation" not in STAGES
    with pytest.raises(dataclasses.FrozenInstanceError):
        STAGES.stages = ()  # type: ignore[misc]


def test_a_slot_of_the_same_name_takes_the_place_of_the_old_one():
    moved = Slot("metrics_json", "log_scores", "scores.json", "file")
    table = STAGES.with_stage(STAGES["training"].with_slot(moved))
    assert [slot.name for slot in table["training"].slots] == ["checkpoint", "metrics_json"]
    assert table.slot_for("training", "metrics.json") is None
    assert table.slot_for("training", "scores.json") is moved
    assert len(table) == len(STAGES)


def test_switches_name_the_stages_own_first_and_each_once():
    both = Stage("s", (Slot("a", "log_all", "a", "file"), Slot("b", "log_all", "b", "file")))
    assert both.switches == ("enabled", "log_all")


@pytest.mark.parametrize("destination", ["", "/abs", "a/../b", "a\\b", "a\0b", "a//b", "a/", "x" * 256])
def test_a_destination_that_leaves_the_run_is_refused(destination):
    with pytest.raises(InvalidKey):
        Slot("a", "log_a", destination, "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", "s", "d", "file"), "Slot 'a b' is not a name."),
        (("a", "1s", "d", "file"), "Switch '1s' is not a name."),
        (("a", "enabled", "d", "file"), "The switch 'enabled' belongs to the whole stage."),
        (("a", "s", "{stem}.json", "file"), "Destination '{stem}.json' holds a placeholder that is not {name}."),
        (("a", "s", "{name}/{name}", "file"), "Destination '{name}/{name}' holds a placeholder that is not {name}."),
        (("a", "s", "a.zip", "archive"), "Destination 'a.zip' of an archive ends in none of .tar.gz, .tgz, .tar.zst."),
    ],
)
def test_a_slot_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        Slot(*arguments)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ((Slot("a", "s", "x", "file"), Slot("a", "s", "y", "file")), "Slot 'a' is there twice."),
        ((Slot("a", "s", "x", "file"), Slot("b", "s", "x", "file")), "Destination 'x' is taken by the slot 'a'."),
    ],
)
def test_two_slots_cannot_share_a_name_or_a_destination(slots, message):
    with pytest.raises(ConfigError) as caught:
        Stage("s", slots)
    assert caught.value.message == message


def test_a_table_is_a_mapping_of_stages_by_name():
    table = StageTable((Stage("a", ()),))
    assert dict(table) == {"a": Stage("a", ())}
    with pytest.raises(KeyError):
        table["b"]
