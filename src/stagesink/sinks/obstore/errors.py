"""What obstore raises, in our terms: by its class, and where that says nothing by a second look at the store.

Its messages are never shown: they quote URLs, signatures and answers whole.
"""

from __future__ import annotations

from collections.abc import Callable

from stagesink.errors import (
    ArtifactNotFound,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    TransientSinkError,
)
from stagesink.sinks._backend_errors import made_up
from stagesink.sinks._http.status import kind_of_status
from stagesink.sinks.obstore.look import Answer

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "FilesystemNotFound"}
_CREDENTIALS = "Check key, secret and token, in artifacts.storage_options or the environment."
_HINTS = {
    "AuthenticationFailed": "Check the account key, or whether the SAS is still valid and for this container.",
    "AuthorizationFailure": "The account's firewall, or the account key, does not let this machine in.",
    "AuthorizationPermissionMismatch": "The SAS or the role lacks a permission: read, write, create, list and delete.",
    "AuthorizationProtocolMismatch": "The SAS is for https alone.",
    "AuthorizationResourceTypeMismatch": "The SAS must be for objects and containers (srt=co).",
    "AuthorizationServiceMismatch": "The SAS must be for the blob service.",
    "AuthorizationSourceIPMismatch": "The SAS is for another IP address.",
    "ExpiredToken": "The session token has expired: get a new one.",
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "KeyBasedAuthenticationNotPermitted": "The account takes no keys: sign in with `az login` or a service principal.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "SignatureDoesNotMatch": _CREDENTIALS,
}
_BUCKET_HINT = "Create the bucket or container first, or correct its name."
_BY_CODE: dict[str, type[SinkError]] = {
    **dict.fromkeys(_HINTS, SinkAuthError),
    **dict.fromkeys(_NO_BUCKET, RunNotFound),
    **dict.fromkeys(
        ("SlowDown", "ServerBusy", "RequestTimeout", "InternalError", "OperationTimedOut"), TransientSinkError
    ),
}


def sink_error(
    error: BaseException,
    doing: str,
    missing: type[SinkError],
    look: Callable[[], Answer] | None,
    hint: str | None = None,
) -> SinkError:
    """Say in our terms what obstore raised.

    Parameters
    ----------
    error : BaseException
    doing : str
        What could not be done, as the start of a sentence.
    missing : type of SinkError
        What "not found" means here.
    look : callable or None
        Asks the store again, by another client. What it raises itself is the answer then.
    hint : str, optional
        What to do where neither says why.
    """
    from obstore import exceptions

    if isinstance(error, FileNotFoundError):
        return missing(f"{doing}: the store does not have it.", hint=_BUCKET_HINT if missing is RunNotFound else None)
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return SinkConflict(f"{doing}: something else holds that name, or a lease on it.")
    if isinstance(error, exceptions.NotSupportedError | exceptions.InvalidPathError):
        return SinkError(f"{doing}: the store cannot hold that name.", hint="Rename the file.")
    refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    answer = _second(look)
    if isinstance(answer, Answer):
        found = error_of(answer, doing, missing)
        if found is not None and (not refused or isinstance(found, SinkAuthError)):
            return found
    elif answer is not None and not refused:
        return answer
    if refused:
        return SinkAuthError(f"{doing}: the store does not let us ({type(error).__name__}).")
    return TransientSinkError(f"{doing}: the store failed, or the way to it did.", hint=hint)


def error_of(answer: Answer, doing: str, missing: type[SinkError]) -> SinkError | None:
    """Return the error that an answer is, None for a good one and for an object that is not there."""
    if not answer.is_the_stores:
        return made_up(doing)
    kind = _BY_CODE.get(answer.code or "") or kind_of_status(answer.status)
    if 300 <= answer.status < 400:
        region = answer.headers.get("x-amz-bucket-region")
        advice = f"Set AWS_DEFAULT_REGION={region}." if region else "Check the endpoint and the region."
        return SinkError(f"{doing}: the store sends us elsewhere ({answer.status}).", hint=advice)
    if kind is None or kind is ArtifactNotFound or answer.status == 416:
        return None
    message = f"{doing}: the store answered {answer.status}" + (f" ({answer.code})." if answer.code else ".")
    if issubclass(kind, TransientSinkError):
        return kind(message, retry_after=answer.retry_after)
    if kind is RunNotFound:
        return kind(message, hint=_BUCKET_HINT)
    if answer.status == 407:
        return kind(message, hint="The proxy wants a login: put it into HTTPS_PROXY.")
    hint = _HINTS.get(answer.code or "")
    if issubclass(kind, SinkAuthError) and answer.skew:
        direction = "fast" if answer.skew > 0 else "slow"
        hint = f"This machine's clock is {abs(answer.skew) / 60:.0f} minutes {direction}: set it."
    if hint is None and kind is SinkError:
        hint = "Check the address and artifacts.storage_options; `stagesink doctor` tests them."
    return kind(message, hint=hint)


def _second(look: Callable[[], Answer] | None) -> Answer | SinkError | None:
    from obstore import exceptions

    if look is None:
        return None
    try:
        return look()
    except SinkError as error:
        return error
    except exceptions.BaseError:
        return None  # nothing to sign with
