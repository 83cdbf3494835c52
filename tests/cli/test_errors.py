from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from stagesink import errors
from stagesink.artifacts import ArtifactKey, Receipt
from stagesink.cli.errors import EXIT_CODES, Commands, exit_code
from stagesink.errors import RestoreFailed


def _all_errors(cls: type = errors.StagesinkError) -> set[type]:
    return {cls}.union(*(_all_errors(sub) for sub in cls.__subclasses__() if sub.__module__ == errors.__name__))


def _transfer_error(*failures: errors.StagesinkError) -> errors.TransferError:
    by_path = {f"file{i}": failure for i, failure in enumerate(failures)}
    receipts = [Receipt(ArtifactKey("r", p), "", 0, None, 0.0, 1, "failed", "none") for p in by_path]
    return errors.TransferError(receipts, by_path)


CODES = {
    "ConfigError": 2,
    "InvalidKey": 2,
    "NameRefused": 2,
    "UnknownScheme": 2,
    "MissingExtra": 2,
    "SourceKindError": 2,
    "SourceNotFound": 3,
    "ArtifactNotFound": 3,
    "RunNotFound": 3,
    "SinkAuthError": 4,
    "KeptInOutbox": 5,
}


@pytest.mark.parametrize("cls", sorted(_all_errors() - _all_errors(errors.ManyFailures), key=lambda cls: cls.__name__))
def test_every_error_has_its_exit_code(cls):
    assert exit_code(cls("It went wrong.")) == CODES.get(cls.__name__, 1)


def test_the_table_names_no_class_twice_over():
    assert {cls.__name__: code for cls, code in EXIT_CODES.items() if code != 1} == CODES


def test_several_failures_share_a_code_or_have_the_general_one():
    auth, gone = errors.SinkAuthError("no"), errors.SourceNotFound("gone")
    assert exit_code(_transfer_error(auth, auth)) == 4
    assert exit_code(_transfer_error(auth, gone)) == 1
    assert exit_code(_transfer_error(gone)) == 3
    assert exit_code(RestoreFailed({"a": auth, "b": auth})) == 4


def _command(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=Commands)

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    def go(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    return app


def test_an_error_is_one_sentence_with_what_to_do_next():
    result = CliRunner().invoke(_command(errors.ConfigError("It is broken [here].", hint="Mend it.")), ["go"])
    assert result.exit_code == 2
    assert (result.stdout, result.stderr) == ("", "error: It is broken [here]. Mend it.\n")


def test_an_error_is_one_json_document_on_stdout():
    result = CliRunner().invoke(_command(errors.ConfigError("It is broken.", hint="Mend it.")), ["go", "--json"])
    assert json.loads(result.stdout) == {
        "error": {"type": "ConfigError", "message": "It is broken.", "hint": "Mend it."}
    }
    assert result.stderr == ""


def test_ctrl_c_is_130():
    result = CliRunner().invoke(_command(KeyboardInterrupt()), ["go"])
    assert result.exit_code == 130
    assert result.stderr.startswith("error: Stopped.")
    result = CliRunner().invoke(_command(KeyboardInterrupt()), ["go", "--json"])
    assert json.loads(result.stdout)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize("arguments", [["ls", "--nope"], ["nope"], ["--nope", "ls"], ["upload"], ["ls", "a", "b"]])
def test_wrong_usage_is_2_with_a_message_or_json(run, arguments):
    answer = run(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Usage" in answer.err
    answer = run(*arguments, "--json")
    assert answer.code == 2
    assert answer.json["error"]["type"] == "UsageError"


def test_a_path_that_looks_like_the_option_is_a_path(run):
    answer = run("upload", "--", "--json")
    assert answer.code == 3
    assert "--json does not exist" in answer.err
