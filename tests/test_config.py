from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagesink.config import Artifacts, Config, Retries, Setting, load_config, skip_artifact_logging, variables
from stagesink.errors import ConfigError
from stagesink.outbox.settings import OutboxSettings
from stagesink.stages import STAGES, Slot, Stage, StageTable


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes, folder: str = "config") -> Path:
    file = Path(folder, "mlflow.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).lstrip("\n").encode())
    return file


def problem(text: str | bytes, **arguments) -> str:
    """Return what is said of a file with this text."""
    write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(environ=arguments.pop("environ", {}), **arguments)
    return str(caught.value)


FULL = """
    azure_ml: {workspace: ws}
    tracking:
      training: {enabled: true, log_checkpoint: false}
      hpo:
        enabled: false
    artifacts:
      sink: s3://bucket/prefix
      on_failure: raise
      workers: 3
      retries: {attempts: 2, initial: 1, max_wait: 2.5, budget: 10}
      verify: full
      pack: tar.zst
      compression: {level: 7}
      storage_options: {key: id, client_kwargs: {endpoint_url: "http://localhost"}}
      progress: lines
      engine: mlflow
      mode: offline
      background: true
      drain: 100
      outbox: {enabled: false, path: /scratch/outbox, max_bytes: 100, keep_free: 0, snapshot: copy}
"""


# -- where the file is -------------------------------------------------------------------------------------------------


def test_no_file_means_defaults():
    config = load_config(environ={})
    assert config == dataclasses.replace(
        Config(), tracking={name: dict.fromkeys(STAGES[name].switches, True) for name in STAGES}
    )
    assert config.artifacts == Artifacts(
        sink="auto",
        on_failure="keep",
        workers=8,
        retries=Retries(attempts=5, initial=0.5, max_wait=30.0, budget=300.0),
        verify="auto",
        pack="none",
        storage_options={},
        progress="auto",
        engine="stagesink",
        mode="online",
        background=False,
        drain=None,
        outbox=OutboxSettings(
            enabled=True, path="./.stagesink/outbox", max_bytes=None, keep_free=1 << 30, snapshot="auto"
        ),
    )
    assert config.artifacts.compression.level is None
    assert not config.file_found


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_named_folder_without_the_file_or_not_there_at_all_means_defaults(folder):
    Path("empty").mkdir()
    write("artifacts: {workers: 3}")
    config = load_config(folder, {})
    assert config.artifacts.workers == 8
    assert (config.file, config.file_found) == (Path(folder, "mlflow.yaml"), False)


@pytest.mark.parametrize(
    ("argument", "variable", "workers"),
    [("a", "b", 1), (Path("a"), "b", 1), (None, "b", 2), (None, "", 3), (None, None, 3)],
)
def test_the_folder_is_argument_then_variable_then_config(argument, variable, workers):
    for number, folder in enumerate(("a", "b", "config"), 1):
        write(f"artifacts: {{workers: {number}}}", folder)
    environ = {} if variable is None else {"STAGESINK_CONFIG_DIR": variable}
    assert load_config(argument, environ).artifacts.workers == workers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n# nothing\n",
        "null",
        "---\n",
        "tracking:\nartifacts:\n",
        "artifacts: {storage_options: , retries: }",
        "\ufeffartifacts: {}\n",
    ],
)
def test_an_empty_file_or_section_means_defaults(text):
    write(text)
    config = load_config(environ={})
    assert config.artifacts == Artifacts()
    assert config.file_found


def test_a_file_called_config_is_somebody_elses():
    Path("config").write_text("[core]")
    assert not load_config(environ={}).file_found


# -- what a file can say -----------------------------------------------------------------------------------------------


def test_every_setting_is_read():
    write(FULL)
    config = load_config(environ={})
    defaults = Artifacts()
    for each in dataclasses.fields(Artifacts):
        assert getattr(config.artifacts, each.name) != getattr(defaults, each.name), each.name
    assert config.artifacts.retries == Retries(attempts=2, initial=1.0, max_wait=2.5, budget=10.0)
    assert config.artifacts.storage_options == {"key": "id", "client_kwargs": {"endpoint_url": "http://localhost"}}
    assert config.tracking["training"] == {"enabled": True, "log_checkpoint": False, "log_metrics_json": True}


def test_sections_of_other_programs_are_left_alone_mistakes_and_all():
    write("""
        naming: {a: 1, a: 2, 3: 4}
        index: !custom [x]
        run_finder: 2026-99-99
        ? [a, b]
        : c
        artifacts: {workers: 3}
    """)
    assert load_config(environ={}).artifacts.workers == 3


def test_a_section_that_is_nearly_ours_is_warned_of(caplog):
    file = write("azure_ml: {}\nartifact: {workers: 3}\n", "nearly")
    load_config("nearly", {})
    assert caplog.messages == [f"{file}:2: artifact is no section of stagesink; did you mean 'artifacts'?"]


def test_anchors_and_merge_keys_work():
    write("""
        base: &base {attempts: 2, budget: 9}
        artifacts:
          retries:
            <<: *base
            budget: 7
          storage_options: {<<: *base}
    """)
    config = load_config(environ={})
    assert config.artifacts.retries == Retries(attempts=2, budget=7.0)
    assert config.artifacts.storage_options == {"attempts": 2, "budget": 9}


def test_a_configuration_cannot_be_changed_and_can_be_pickled():
    write(FULL)
    config = load_config(environ={})
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.artifacts.workers = 9  # type: ignore[misc]


# -- switches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "slot", "off_by"),
    [
        ("training", "checkpoint", "tracking.training.log_checkpoint (config/mlflow.yaml:2)"),
        ("training", "metrics_json", None),
        ("training", None, None),
        ("training", "nonesuch", None),
        ("hpo", None, "tracking.hpo.enabled (config/mlflow.yaml:4)"),
        ("hpo", "checkpoint", "tracking.hpo.enabled (config/mlflow.yaml:4)"),
        ("hpo", "nonesuch", "tracking.hpo.enabled (config/mlflow.yaml:4)"),
        (
            "conversion",
            "onnx_model",
            "tracking.conversion.log_onnx_model (STAGESINK_TRACKING_CONVERSION_LOG_ONNX_MODEL)",
        ),
        ("benchmark", "benchmark_json", None),
        ("nonesuch", "checkpoint", None),
        (None, "checkpoint", None),
    ],
)
def test_a_switch_that_is_off_is_named_with_its_place(stage, slot, off_by):
    write(FULL.replace("azure_ml: {workspace: ws}", ""))
    config = load_config(environ={"STAGESINK_TRACKING_CONVERSION_LOG_ONNX_MODEL": "false"})
    assert config.switched_off_by(stage, slot) == off_by
    assert config.is_enabled(stage, slot) is (off_by is None)


def test_a_slot_object_asks_for_its_own_switch():
    write(FULL)
    config = load_config(environ={})
    assert not config.is_enabled("training", STAGES.slot_for("training", "checkpoint"))
    assert config.is_enabled("training", STAGES.slot_for("training", "metrics.json"))


@pytest.mark.parametrize(
    ("value", "skip"),
    [(text, True) for text in ("true", "TRUE", "True", "1", "yes", " yes ")]
    + [(text, False) for text in ("false", "False", "0", "no", "", None)],
)
def test_the_skip_variable(value, skip, caplog):
    assert skip_artifact_logging({} if value is None else {"MLFLOW_SKIP_ARTIFACT_LOGGING": value}) is skip
    assert not caplog.records


def test_a_skip_variable_that_is_neither_is_warned_of_and_artifacts_are_uploaded(caplog):
    assert skip_artifact_logging({"MLFLOW_SKIP_ARTIFACT_LOGGING": "ture"}) is False
    assert caplog.messages == [
        "MLFLOW_SKIP_ARTIFACT_LOGGING: expected true or false, got 'ture'; it is ignored, artifacts are uploaded"
    ]


# -- stages ------------------------------------------------------------------------------------------------------------


def test_stages_and_slots_are_added_and_changed_without_code():
    write("""
        artifacts:
          stages:
            evaluation:
              report: {destination: report.html}
              plots: {destination: plots, kind: tree, switch: log_figures}
            audit:
            training:
              on_failure: warn
              metrics_json: {destination: scores.json, on_failure: raise}
              checkpoint: {switch: log_weights, priority: 2}
              tokenizer: {destination: tokenizer, kind: tree}
        tracking:
          evaluation: {log_figures: false}
          audit: {enabled: false}
          training: {log_weights: false}
    """)
    config = load_config(environ={"STAGESINK_TRACKING_EVALUATION_LOG_REPORT": "no"})
    assert config.stages["evaluation"] == Stage(
        "evaluation",
        (Slot("report", "log_report", "report.html", "file"), Slot("plots", "log_figures", "plots", "tree")),
    )
    assert config.stages["training"].slots == (
        Slot("checkpoint", "log_weights", "checkpoint", "tree", priority=2),
        Slot("metrics_json", "log_metrics_json", "scores.json", "file", priority=1, on_failure="raise"),
        Slot("tokenizer", "log_tokenizer", "tokenizer", "tree"),
    )
    assert config.stages["hpo"] == STAGES["hpo"]
    training = config.stages["training"]
    assert [config.on_failure("training", slot) for slot in training.slots] == ["warn", "raise", "warn"]
    assert (config.on_failure("training"), config.on_failure("hpo"), config.on_failure(None)) == (
        "warn",
        "keep",
        "keep",
    )
    assert not config.is_enabled("evaluation", "report")
    assert not config.is_enabled("evaluation", "plots")
    assert not config.is_enabled("audit")
    assert not config.is_enabled("training", "checkpoint")


STAGE_MISTAKES = {
    "{ev: {r: {}}}": "artifacts.stages.ev.r: a new slot needs a destination, for example 'r.json'",
    "{ev: {r: {destination: ''}}}": "artifacts.stages.ev.r: a new slot needs a destination, for example 'r.json'",
    "{ev: {r: {destination: ../x}}}": "artifacts.stages.ev.r: Artifact path '../x' contains '..'. "
    "Use a path that stays inside the run.",
    "{ev: {r: {destination: x, kind: flie}}}": (
        "artifacts.stages.ev.r.kind: expected one of file, tree, archive, got 'flie'; did you mean 'file'?"
    ),
    "{ev: {r: {destination: x, swich: y}}}": "artifacts.stages.ev.r.swich: unknown key; did you mean 'switch'?",
    "{ev: {r: {destination: 7}}}": "artifacts.stages.ev.r.destination: expected text, got 7",
    "{ev: {r: report.html}}": "artifacts.stages.ev.r: expected a mapping, got a single value",
    "{ev: [r]}": "artifacts.stages.ev: expected a mapping, got a list",
    "{'e v': {}}": "artifacts.stages.e v: Stage 'e v' is not a name. Use letters, digits, '_' and '-', a letter first.",
    "{hpo: {checkpoint: {kind: tree}}}": "artifacts.stages.hpo.checkpoint: this slot is of the kind archive, for good; "
    "add a slot of another name",
    "{training: {t: {destination: metrics.json}}}": (
        "artifacts.stages.training.t: Destination 'metrics.json' is taken by the "
        "slot 'metrics_json'. One would overwrite the other; give each its own destination."
    ),
    "[ev]": "artifacts.stages: expected a mapping, got a list",
}


@pytest.mark.parametrize("stages", STAGE_MISTAKES)
def test_a_stage_that_makes_no_sense_is_one_message(stages):
    assert problem(f"artifacts: {{stages: {stages}}}") == f"config/mlflow.yaml:1: {STAGE_MISTAKES[stages]}"


def test_the_switches_of_a_broken_stage_are_not_a_second_problem():
    text = "artifacts: {stages: {ev: {r: {}}}}\ntracking: {ev: {log_r: false}}\n"
    assert problem(text).count("\n") == 0


# -- bad input ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "artifacts: {wrokers: 3}": "artifacts.wrokers: unknown key; did you mean 'workers'?",
    "artifacts: {Workers: 3}": "artifacts.Workers: unknown key; did you mean 'workers'?",
    "artifacts: {retries: {zzz: 3}}": (
        "artifacts.retries.zzz: unknown key; known here: attempts, initial, max_wait, budget"
    ),
    "artifacts: {on_failure: rais}": (
        "artifacts.on_failure: expected one of keep, warn, raise, got 'rais'; did you mean 'raise'?"
    ),
    "artifacts: {workers: 0}": "artifacts.workers: expected a whole number from 1 to 64, got 0",
    "artifacts: {workers: 65}": "artifacts.workers: expected a whole number from 1 to 64, got 65",
    "artifacts: {workers: '8'}": "artifacts.workers: expected a whole number from 1 to 64, got '8'",
    "artifacts: {workers: 8.0}": "artifacts.workers: expected a whole number from 1 to 64, got 8.0",
    "artifacts: {workers: true}": "artifacts.workers: expected a whole number from 1 to 64, got true",
    "artifacts: {workers: }": "artifacts.workers: expected a whole number from 1 to 64, got nothing",
    "artifacts: {workers: [8]}": "artifacts.workers: expected a whole number from 1 to 64, got a list",
    "artifacts: {retries: {attempts: 0}}": "artifacts.retries.attempts: expected a whole number, 1 or more, got 0",
    "artifacts: {retries: {budget: -1}}": "artifacts.retries.budget: expected a number of seconds, 0 or more, got -1",
    "artifacts: {retries: {initial: .nan}}": (
        "artifacts.retries.initial: expected a number of seconds, 0 or more, got nan"
    ),
    "artifacts: {retries: {max_wait: .inf}}": (
        "artifacts.retries.max_wait: expected a number of seconds, 0 or more, got inf"
    ),
    "artifacts: {retries: 5}": "artifacts.retries: expected a mapping, got a single value",
    "artifacts: {compression: {level: 99}}": (
        "artifacts.compression.level: expected a whole number from 1 to 19, got 99"
    ),
    "tracking: {hpo: {enabled: 1}}": "tracking.hpo.enabled: expected true or false, got 1",
    "tracking: {hpo: {enabled: 'yes'}}": "tracking.hpo.enabled: expected true or false, got 'yes'",
    "artifacts: {verify: {a: b}}": "artifacts.verify: expected one of auto, full, size, none, got a mapping",
    "artifacts: {pack: zip}": "artifacts.pack: expected one of none, tar.gz, tar.zst, got 'zip'",
    "artifacts: {sink: ''}": "artifacts.sink: expected text, got ''",
    "artifacts: {sink: 5}": "artifacts.sink: expected text, got 5",
    "artifacts: {storage_options: [a]}": (
        "artifacts.storage_options: expected a mapping whose keys are text, got a list"
    ),
    "artifacts: {storage_options: {1: a}}": (
        "artifacts.storage_options: expected a mapping whose keys are text, got a mapping"
    ),
    "artifacts: [workers]": "artifacts: expected a mapping, got a list",
    "artifacts: true": "artifacts: expected a mapping, got a single value",
    "artifacts: {1: a}": "artifacts: the key '1' is not text; put it in quotes or remove it",
    "artifacts: {[a]: b}": "artifacts: the key a list is not text; put it in quotes or remove it",
    "tracking: [training]": "tracking: expected a mapping, got a list",
    "tracking: {trainning: {}}": "tracking.trainning: unknown key; did you mean 'training'?",
    "tracking: {zzz: {}}": "tracking.zzz: unknown key; known here: training, conversion, benchmark, hpo",
    "tracking: {training: [enabled]}": "tracking.training: expected a mapping, got a list",
    "tracking: {training: {log_checkpont: true}}": "tracking.training.log_checkpont: unknown key; "
    "did you mean 'log_checkpoint'?",
    "tracking: {hpo: {log_metrics_json: true}}": "tracking.hpo.log_metrics_json: unknown key; "
    "known here: enabled, log_checkpoint",
    "tracking: {hpo: {enabled: 'true'}}": "tracking.hpo.enabled: expected true or false, got 'true'",
    "artifacts: {workers: 3, workers: 3}": "artifacts.workers: set twice; the first is on line 1",
    "artifacts: {storage_options: {a: {b: 1, b: 2}}}": (
        "artifacts.storage_options.a.b: set twice; the first is on line 1"
    ),
    "artifacts: {storage_options: {a: [{b: 1, b: 2}]}}": (
        "artifacts.storage_options.a.b: set twice; the first is on line 1"
    ),
    "artifacts: {storage_options: {a: 2026-99-99}}": (
        "artifacts.storage_options: holds a value that is not what its YAML type says; put it in quotes"
    ),
    "artifacts: {workers: !!int ''}": "artifacts.workers: holds a value that is not what its YAML type says; "
    "put it in quotes",
    "tracking: {hpo: {enabled: !!bool maybe}}": (
        "tracking.hpo.enabled: holds a value that is not what its YAML type says; put it in quotes"
    ),
    "- artifacts": "expected a mapping, got a list",
    "artifacts": "expected a mapping, got a single value",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_each_mistake_is_one_line_with_file_line_key_and_what_belongs_there(text):
    assert problem(text) == f"config/mlflow.yaml:1: {MISTAKES[text]}"


def test_all_problems_are_reported_at_once_in_the_order_of_the_file():
    found = problem(
        """
        naming: {}
        tracking:
          training:
            log_checkpont: true
        artifacts:
          wrokers: 3
          retries:
            attempts: none
          verify: full
          verify: ful
        """,
        environ={"STAGESINK_WORKERS": "lots"},
        arguments={"pack": "zip", "workres": 1},
    )
    assert found.splitlines() == [
        "config/mlflow.yaml:4: tracking.training.log_checkpont: unknown key; did you mean 'log_checkpoint'?",
        "config/mlflow.yaml:6: artifacts.wrokers: unknown key; did you mean 'workers'?",
        "config/mlflow.yaml:8: artifacts.retries.attempts: expected a whole number, 1 or more, got 'none'",
        "config/mlflow.yaml:10: artifacts.verify: set twice; the first is on line 9",
        "config/mlflow.yaml:10: artifacts.verify: expected one of auto, full, size, none, got 'ful'; "
        "did you mean 'full'?",
        "STAGESINK_WORKERS: expected a whole number from 1 to 64, got 'lots'",
        "argument pack: expected one of none, tar.gz, tar.zst, got 'zip'",
        "argument workres: unknown; did you mean 'workers'?",
    ]


def test_a_section_set_twice_is_an_error():
    text = "artifacts: {workers: 3}\ntracking: {}\nartifacts: {}\n"
    assert problem(text) == "config/mlflow.yaml:3: artifacts: set twice; the first is on line 1"


NOT_YAML = {
    "artifacts:\n\tworkers: 3\n": "2: not valid YAML: a tab in the indentation, which must be spaces. Mend that line.",
    "artifacts:\n  retries:\n  \tattempts: 3\n": "3: not valid YAML: a tab in the indentation, which must be spaces. "
    "Mend that line.",
    "a: 1\nartifacts: {workers: 3\n": "3: not valid YAML: while parsing a flow mapping: expected ',' or '}', "
    "but got '<stream end>'. Mend that line.",
    "a: b: c\n": "1: not valid YAML: mapping values are not allowed here. Mend that line.",
    "artifacts: *nowhere\n": "1: not valid YAML: found undefined alias 'nowhere'. Mend that line.",
    "a: 1\n---\nb: 2\n": "2: not valid YAML: expected a single document in the stream: but found another document. "
    "Mend that line.",
    "artifacts: {<<: 3}\n": (
        "1: not valid YAML: while constructing a mapping: expected a mapping or list of mappings for "
        "merging, but found scalar. Mend that line."
    ),
    "artifacts:\n  storage_options: {a: !secret b}\n": (
        "2: not valid YAML: could not determine a constructor for the tag '!secret'. Mend that line."
    ),
    "artifacts:\n  storage_options: {a: !!python/object/apply:os.getcwd []}\n": (
        "2: not valid YAML: could not determine a "
        "constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'. Mend that line."
    ),
    "a: 1\nb: \x00\n": "2: not valid YAML: a control character. Remove it.",
    b"a: 1\nb: \xff\n": "2: is not UTF-8 text. Save it as UTF-8.",
}


@pytest.mark.parametrize("text", NOT_YAML)
def test_what_is_not_yaml_is_said_with_its_line(text):
    assert problem(text) == f"config/mlflow.yaml:{NOT_YAML[text]}"


def test_ten_megabytes_of_anchors_are_not_even_parsed():
    text = b"".join(b"a%d: &a%d [x]\n" % (number, number) for number in range(600_000))
    assert len(text) > 10_000_000
    assert problem(text) == "config/mlflow.yaml: is larger than 1 MiB. No configuration is; check the path."


def test_a_billion_laughs_are_refused():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for number in range(1, 10):
        lines.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]")
    assert problem("\n".join(lines)) == (
        "config/mlflow.yaml:5: a4: its aliases stand for more than 20000 values. "
        "No configuration needs that; check that it is the right file."
    )


def test_an_alias_inside_itself_is_refused():
    assert problem("artifacts: {storage_options: &a {b: *a}}").startswith(
        "config/mlflow.yaml:1: artifacts: its aliases stand for more than 20000 values."
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [("[" * 5000, "nested deeper than 50 levels"), (f"[{'1,' * 20_000}]", "more than 20000 values")],
)
def test_more_than_any_configuration_holds_is_refused(text, what):
    assert (
        problem(text) == f"config/mlflow.yaml:1: {what}. No configuration needs that; check that it is the right file."
    )


def test_a_folder_in_the_files_place_is_an_error():
    Path("config", "mlflow.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"^config/mlflow\.yaml: is a folder\. mlflow\.yaml must be a file\.$"):
        load_config(environ={})


def test_a_dangling_link_is_an_error_and_not_a_missing_file():
    Path("config").mkdir()
    Path("config", "mlflow.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"^config/mlflow\.yaml: is a link to nothing\. Mend or remove the link\.$"):
        load_config(environ={})


def test_naming_the_file_instead_of_its_folder_is_an_error():
    file = write("")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value) == ("config/mlflow.yaml: is a file. Name the folder that holds mlflow.yaml.")


@pytest.mark.parametrize(("folder", "reason"), [("x" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_a_folder_that_cannot_be_one_is_an_error(folder, reason):
    with pytest.raises(ConfigError) as caught:
        load_config(folder, {})
    assert str(caught.value) == f"{folder + '/mlflow.yaml'!r}: cannot be read: {reason}. Check the path."


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Be somebody else for a while: root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_is_an_error():
    write("").chmod(0)
    with (
        not_root(),
        pytest.raises(ConfigError, match=r"^config/mlflow\.yaml: no permission to read it\. Make it readable"),
    ):
        load_config(environ={})


# -- environment and arguments -----------------------------------------------------------------------------------------


def test_every_setting_has_a_variable():
    assert variables() == {
        "STAGESINK_SINK": "artifacts.sink",
        "STAGESINK_ON_FAILURE": "artifacts.on_failure",
        "STAGESINK_WORKERS": "artifacts.workers",
        "STAGESINK_RETRIES": "artifacts.retries.attempts",
        "STAGESINK_RETRIES_INITIAL": "artifacts.retries.initial",
        "STAGESINK_RETRIES_MAX_WAIT": "artifacts.retries.max_wait",
        "STAGESINK_RETRIES_BUDGET": "artifacts.retries.budget",
        "STAGESINK_VERIFY": "artifacts.verify",
        "STAGESINK_PACK": "artifacts.pack",
        "STAGESINK_COMPRESSION_LEVEL": "artifacts.compression.level",
        "STAGESINK_PROGRESS": "artifacts.progress",
        "STAGESINK_ENGINE": "artifacts.engine",
        "STAGESINK_MODE": "artifacts.mode",
        "STAGESINK_BACKGROUND": "artifacts.background",
        "STAGESINK_DRAIN": "artifacts.drain",
        "STAGESINK_OUTBOX_ENABLED": "artifacts.outbox.enabled",
        "STAGESINK_OUTBOX_PATH": "artifacts.outbox.path",
        "STAGESINK_OUTBOX_MAX_BYTES": "artifacts.outbox.max_bytes",
        "STAGESINK_OUTBOX_KEEP_FREE": "artifacts.outbox.keep_free",
        "STAGESINK_OUTBOX_SNAPSHOT": "artifacts.outbox.snapshot",
        "STAGESINK_TRACKING_TRAINING_ENABLED": "tracking.training.enabled",
        "STAGESINK_TRACKING_TRAINING_LOG_CHECKPOINT": "tracking.training.log_checkpoint",
        "STAGESINK_TRACKING_TRAINING_LOG_METRICS_JSON": "tracking.training.log_metrics_json",
        "STAGESINK_TRACKING_CONVERSION_ENABLED": "tracking.conversion.enabled",
        "STAGESINK_TRACKING_CONVERSION_LOG_ONNX_MODEL": "tracking.conversion.log_onnx_model",
        "STAGESINK_TRACKING_CONVERSION_LOG_CONVERSION_LOG": "tracking.conversion.log_conversion_log",
        "STAGESINK_TRACKING_BENCHMARK_ENABLED": "tracking.benchmark.enabled",
        "STAGESINK_TRACKING_BENCHMARK_LOG_ARTIFACTS": "tracking.benchmark.log_artifacts",
        "STAGESINK_TRACKING_HPO_ENABLED": "tracking.hpo.enabled",
        "STAGESINK_TRACKING_HPO_LOG_CHECKPOINT": "tracking.hpo.log_checkpoint",
    }


def test_a_custom_stages_switches_have_variables_too():
    table = StageTable((Stage("my-stage", (Slot("a", "log-a", "a", "file"),)),))
    assert variables(table)["STAGESINK_TRACKING_MY_STAGE_LOG_A"] == "tracking.my-stage.log-a"


VARIABLE_VALUES = {
    "STAGESINK_DRAIN": ("100", "drain", 100.0),
    "STAGESINK_SINK": ("memory:x", "sink", "memory:x"),
    "STAGESINK_ON_FAILURE": ("warn", "on_failure", "warn"),
    "STAGESINK_WORKERS": ("12", "workers", 12),
    "STAGESINK_VERIFY": ("size", "verify", "size"),
    "STAGESINK_PACK": ("tar.gz", "pack", "tar.gz"),
    "STAGESINK_PROGRESS": ("none", "progress", "none"),
    "STAGESINK_ENGINE": ("stagesink", "engine", "stagesink"),
}


@pytest.mark.parametrize("name", VARIABLE_VALUES)
def test_a_variable_is_above_the_file(name):
    write(FULL)
    text, setting, value = VARIABLE_VALUES[name]
    config = load_config(environ={name: text})
    assert getattr(config.artifacts, setting) == value
    assert config.origin(f"artifacts.{setting}") == name


def test_mlflows_variables_are_the_defaults_of_the_retries():
    environ = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "4"}
    config = load_config(environ=environ)
    assert (config.artifacts.retries.attempts, config.artifacts.retries.initial) == (3, 4)
    assert config.origin("artifacts.retries.attempts") == "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def test_the_file_is_above_mlflows_variables():
    write("artifacts: {retries: {attempts: 7}}")
    config = load_config(environ={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "STAGESINK_RETRIES_INITIAL": "9"})
    assert (config.artifacts.retries.attempts, config.artifacts.retries.initial) == (7, 9)


def test_a_variable_of_mlflows_that_is_no_number_is_ignored_aloud(caplog):
    assert load_config(environ={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "many"}) == load_config(environ={})
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES: expected a whole number, got 'many'" in caplog.text


@pytest.mark.parametrize("name", VARIABLE_VALUES)
def test_an_empty_variable_counts_as_unset(name):
    write(FULL)
    assert load_config(environ={name: ""}) == load_config(environ={})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STAGESINK_WORKERS", "0", "expected a whole number from 1 to 64, got '0'"),
        ("STAGESINK_ON_FAILURE", "kep", "expected one of keep, warn, raise, got 'kep'; did you mean 'keep'?"),
        ("STAGESINK_OUTBOX_MAX_BYTES", "-1", "expected a whole number of bytes, 0 or more, got '-1'"),
        ("STAGESINK_VERIFY", "ful", "expected one of auto, full, size, none, got 'ful'; did you mean 'full'?"),
        ("STAGESINK_RETRIES", "many", "expected a whole number, 1 or more, got 'many'"),
        ("STAGESINK_RETRIES_BUDGET", "inf", "expected a number of seconds, 0 or more, got 'inf'"),
        ("STAGESINK_COMPRESSION_LEVEL", "20", "expected a whole number from 1 to 19, got '20'"),
        ("STAGESINK_COMPRESSION_LEVEL", "0", "expected a whole number from 1 to 19, got '0'"),
        ("STAGESINK_TRACKING_HPO_ENABLED", "2", "expected true or false, got '2'"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_variable(name, value, message):
    with pytest.raises(ConfigError) as caught:
        load_config(environ={name: value})
    assert str(caught.value) == f"{name}: {message}"


def test_an_unknown_variable_is_warned_of_once_and_ignored(caplog):
    for _ in range(2):
        load_config(environ={"STAGESINK_WROKERS": "3", "STAGESINK_QQQQQQ": "1", "STAGESINK_XY": "x", "OTHER": "1"})
    assert caplog.messages == [
        "STAGESINK_QQQQQQ: no such setting, it is ignored",
        "STAGESINK_WROKERS: no such setting, it is ignored; did you mean STAGESINK_WORKERS?",
        "STAGESINK_XY: no such setting, it is ignored",
    ]


def test_an_argument_is_above_all_and_none_counts_as_unset():
    write(FULL)
    environ = {"STAGESINK_WORKERS": "12", "STAGESINK_PACK": "tar.gz"}
    config = load_config(environ=environ, arguments={"workers": 20, "retries.attempts": 9, "pack": None})
    assert (config.artifacts.workers, config.origin("artifacts.workers")) == (20, "argument")
    assert config.artifacts.retries.attempts == 9
    assert config.artifacts.pack == "tar.gz"


# -- explain -----------------------------------------------------------------------------------------------------------


def test_explain_says_each_setting_and_where_it_came_from():
    write(FULL)
    config = load_config(environ={"STAGESINK_VERIFY": "size"}, arguments={"workers": 20})
    explained = {setting.key: setting for setting in config.explain()}
    assert explained["artifacts.verify"] == Setting("artifacts.verify", "size", "STAGESINK_VERIFY")
    assert explained["artifacts.workers"] == Setting("artifacts.workers", 20, "argument")
    assert explained["artifacts.retries.max_wait"].origin == "config/mlflow.yaml:10"
    assert explained["tracking.training.log_metrics_json"].origin == "default"
    assert set(variables().values()) <= set(explained)
    json.dumps([dataclasses.asdict(setting) for setting in config.explain()])


def test_explain_shows_the_stages_of_the_file():
    write("artifacts:\n  stages:\n    evaluation:\n      report: {destination: report.html}\n")
    assert (
        Setting(
            "artifacts.stages.evaluation.report",
            {"destination": "report.html", "kind": "file", "switch": "log_report"},
            "config/mlflow.yaml:4",
        )
        in load_config(environ={}).explain()
    )


def test_no_secret_is_explained_printed_or_quoted(caplog):
    secret = "hunter2"
    write(f"artifacts:\n  sink: s3://id:{secret}@bucket\n  storage_options: {{key: id, secret: {secret}}}\n")
    config = load_config(environ={})
    assert config.artifacts.storage_options["secret"] == secret
    explained = {setting.key: setting.value for setting in config.explain()}
    assert explained["artifacts.storage_options"] == {"key": "***", "secret": "***"}
    assert explained["artifacts.sink"] == "s3://***@bucket"
    assert secret not in repr(config)
    for options in (secret, [secret], f"key:{secret}"):
        said = problem(f"artifacts: {{storage_options: {json.dumps(options)}}}")
        assert secret not in said
    assert secret not in caplog.text


# -- cost --------------------------------------------------------------------------------------------------------------


def test_defaults_are_had_without_yaml_pydantic_or_mlflow():
    program = """
        import sys
        before = set(sys.modules)  # what the interpreter's own start brings
        import stagesink.config, stagesink.destination, stagesink.runs, stagesink.stages
        stagesink.config.load_config("nowhere", {})
        stagesink.runs.get_mlflow_run_id()
        heavy = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(heavy & {"yaml", "pydantic", "mlflow", "fsspec"}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_logger_is_the_packages_own(caplog):
    load_config(environ={"STAGESINK_NOT_A_SETTING_AT_ALL": "1"})
    assert [(record.name, record.levelno) for record in caplog.records] == [("stagesink", logging.WARNING)]


def test_a_named_folder_that_is_not_there_means_defaults_and_is_said(tmp_path, caplog):
    missing = tmp_path / "confg"
    assert load_config(environ={"STAGESINK_CONFIG_DIR": str(missing)}).file_found is False
    assert f"{missing}: there is no such configuration folder; defaults hold" in caplog.text
    caplog.clear()
    load_config(tmp_path, environ={})  # there, without the file: nothing to say
    assert caplog.text == ""
