"""Other people's exceptions, told apart by type and attribute, never by message, and turned into ours.

But for one: ftplib hands the server's reply code over in its text alone, so the code is read there.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from stagesink.errors import (
    ArtifactNotFound,
    RunNotFound,
    SinkAuthError,
    SinkConflict,
    SinkError,
    SinkQuotaError,
    StagesinkError,
    TransientSinkError,
)
from stagesink.interrupts import interrupts_whole
from stagesink.redaction import causes_of, shows_secret
from stagesink.sinks._http.status import kind_of_status, retry_after_seconds

# The most specific first. A class is looked up in modules that are loaded already: what is not loaded was not raised.
_BY_TYPE: tuple[tuple[str, str, type[SinkError]], ...] = (
    ("builtins", "FileNotFoundError", ArtifactNotFound),
    ("builtins", "PermissionError", SinkAuthError),
    ("builtins", "IsADirectoryError", SinkConflict),
    ("builtins", "NotADirectoryError", SinkConflict),
    ("builtins", "FileExistsError", SinkConflict),
    ("ssl", "SSLCertVerificationError", SinkError),
    ("builtins", "TimeoutError", TransientSinkError),
    ("asyncio", "TimeoutError", TransientSinkError),  # not the builtin one before Python 3.11
    ("concurrent.futures", "TimeoutError", TransientSinkError),
    ("builtins", "ConnectionError", TransientSinkError),
    ("builtins", "EOFError", TransientSinkError),  # ftplib and paramiko: the server hung up
    ("socket", "gaierror", TransientSinkError),
    ("botocore.exceptions", "NoCredentialsError", SinkAuthError),
    ("botocore.exceptions", "PartialCredentialsError", SinkAuthError),
    ("botocore.exceptions", "CredentialRetrievalError", SinkAuthError),
    ("botocore.exceptions", "ProfileNotFound", SinkAuthError),
    ("botocore.exceptions", "TokenRetrievalError", SinkAuthError),
    ("botocore.exceptions", "ConnectionError", TransientSinkError),
    ("botocore.exceptions", "HTTPClientError", TransientSinkError),
    ("azure.core.exceptions", "ClientAuthenticationError", SinkAuthError),
    ("azure.core.exceptions", "ServiceRequestError", TransientSinkError),
    ("azure.core.exceptions", "ServiceResponseError", TransientSinkError),
    ("google.auth.exceptions", "TransportError", TransientSinkError),
    ("google.auth.exceptions", "GoogleAuthError", SinkAuthError),
    ("requests.exceptions", "ConnectionError", TransientSinkError),
    ("requests.exceptions", "Timeout", TransientSinkError),
    ("paramiko.ssh_exception", "AuthenticationException", SinkAuthError),
    ("paramiko.ssh_exception", "BadHostKeyException", SinkAuthError),
    ("paramiko.ssh_exception", "SSHException", TransientSinkError),
    ("ftplib", "error_temp", TransientSinkError),
)
_TRANSPORT = (("aiohttp", "ClientError"), ("http.client", "HTTPException"))  # once no status says more

_BY_ERRNO: dict[int, type[SinkError]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMSGSIZE), SinkQuotaError),
    **dict.fromkeys((errno.EROFS,), SinkAuthError),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY), SinkConflict),
    **dict.fromkeys((errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EMFILE, errno.ENFILE), TransientSinkError),
    **dict.fromkeys((errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH), TransientSinkError),
    **dict.fromkeys((errno.EHOSTDOWN, errno.EHOSTUNREACH), TransientSinkError),
}
_BY_FTP_REPLY: dict[str, type[SinkError]] = {"530": SinkAuthError, "532": SinkAuthError, "552": SinkQuotaError}
_BY_CODE: dict[str, type[SinkError]] = {
    "InvalidBlockList": TransientSinkError,  # Azure: another writer committed that name, and took our blocks away
}
_OF_THE_CLIENT = {"INTERNAL_ERROR", "INVALID_PARAMETER_VALUE"}  # mlflow's: for anything, and for what it will not send
_NO_CONTAINER = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "FilesystemNotFound"}

_HINTS: dict[type[SinkError], str] = {
    RunNotFound: "Create the bucket or container first, or correct its name.",
    SinkConflict: "Remove what stands in the way, or choose another artifact path.",
    SinkError: "Check the address and artifacts.storage_options; `stagesink doctor` tests them.",
}


def sink_error(error: BaseException, doing: str, *, missing: type[SinkError] = ArtifactNotFound) -> SinkError:
    """Say in our terms what a backend's client raised.

    Parameters
    ----------
    error : BaseException
        As it came; its causes are looked at too.
    doing : str
        What could not be done, as the start of a sentence, free of secrets.
    missing : type of SinkError
        What "not found" means here: no such object, or no such bucket.

    Returns
    -------
    SinkError
        Its message holds no text of the backend's, which may quote a signed URL: only status, error code and type.
    """
    causes = list(causes_of(error))
    kind = _kind(causes, missing)
    message = f"{doing}: {_reason(causes)}."
    if issubclass(kind, TransientSinkError):
        return kind(message, retry_after=_retry_after(causes))
    return kind(message, hint=_HINTS.get(kind))


@contextmanager
def translating(
    doing: str, *, missing: type[SinkError] = ArtifactNotFound, secrets: Callable[[], Iterable[str]] = tuple
) -> Iterator[None]:
    """Turn what a backend's client raises into our errors. For calls of the client alone: a defect of ours stays one.

    Parameters
    ----------
    doing, missing
        As :func:`sink_error` takes them.
    secrets : callable
        Returns what a cause must not quote, as it is then: such a one is left out, since tracebacks print it.
    """
    try:
        with interrupts_whole():
            yield
    except StagesinkError:
        raise
    except Exception as error:
        # Broad on purpose: fsspec and mlflow have dozens of implementations with exceptions of their own. All become
        # ours, none is swallowed.
        cause = None if shows_secret(error, secrets()) else error
        ours = next(filter(None, map(_handed_over, causes_of(error))), None)
        if ours is not None:
            raise type(ours)(f"{doing}: {ours.message}", hint=ours.hint) from cause
        raise sink_error(error, doing, missing=missing) from cause


def _handed_over(error: BaseException) -> SinkError | None:
    """Return what was raised in the session that we hand to botocore, which keeps it in an error of its own.

    Not by the chain of causes alone: there may be errors of earlier attempts in it.
    """
    wrapped = (
        getattr(error, "kwargs", {}).get("error") if _is_a(error, "botocore.exceptions", "HTTPClientError") else None
    )
    return wrapped if isinstance(wrapped, SinkError) else None


def _is_a(error: BaseException, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _kind(causes: list[BaseException], missing: type[SinkError]) -> type[SinkError]:
    if any(_code(cause) in _NO_CONTAINER for cause in causes):
        return RunNotFound
    for look in (_kind_by_code, _kind_by_type, _kind_by_status, _kind_by_errno, _kind_by_transport):
        for cause in causes:
            kind = look(cause)
            if kind is not None:
                return missing if kind is ArtifactNotFound else kind
    return SinkError


def _kind_by_code(error: BaseException) -> type[SinkError] | None:
    return _BY_CODE.get(_code(error) or "")


def _kind_by_type(error: BaseException) -> type[SinkError] | None:
    if _is_a(error, "ftplib", "error_perm"):
        return _BY_FTP_REPLY.get(str(error)[:3])  # the reply code, which ftplib hands over as text only
    for module, name, kind in _BY_TYPE:
        if _is_a(error, module, name):
            return kind
    return None


def _kind_by_status(error: BaseException) -> type[SinkError] | None:
    status = _status(error)
    return None if status is None else kind_of_status(status)


def _kind_by_errno(error: BaseException) -> type[SinkError] | None:
    return _BY_ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None


def _kind_by_transport(error: BaseException) -> type[SinkError] | None:
    return TransientSinkError if any(_is_a(error, module, name) for module, name in _TRANSPORT) else None


def _status(error: BaseException) -> int | None:
    """Find the HTTP status: botocore keeps it in a dict, mlflow behind a method, the others each in an attribute."""
    response = getattr(error, "response", None)
    if _is_a(error, "mlflow.exceptions", "MlflowException"):
        status: int = error.get_http_status_code()  # type: ignore[attr-defined]
        return status
    if _is_a(error, "aiohttp.http_exceptions", "HttpProcessingError"):
        return None  # aiohttp's own mark, 400, for an answer that was cut
    if isinstance(response, Mapping):
        candidates = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        names = ("status_code", "status", "code")
        candidates = [getattr(error, name, None) for name in names] + [getattr(response, "status_code", None)]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.isdigit():
            candidate = int(candidate)
        if isinstance(candidate, int) and 100 <= candidate <= 599:
            return candidate
    return None


def _code(error: BaseException) -> str | None:
    """Find the store's own error code, such as ``SlowDown``."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        code = response.get("Error", {}).get("Code")
    else:
        code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code)) if code else None


def _retry_after(causes: list[BaseException]) -> float | None:
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(response, "headers", None) or getattr(cause, "headers", None)
        if not isinstance(headers, Mapping):
            continue
        for name, value in headers.items():
            if str(name).lower() == "retry-after":
                return retry_after_seconds(str(value))
    return None


def _reason(causes: list[BaseException]) -> str:
    status = next(filter(None, map(_status, filter(_is_an_answer, causes))), None)
    code = next(filter(None, map(_code, causes)), None)
    if status is not None:
        return f"the store answered {status}" + (f" ({code})" if code and code != str(status) else "")
    number = next((cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno), None)
    if number is not None and number > 0:
        return f"{os.strerror(number)} ({type(causes[0]).__name__})"
    return type(causes[0]).__name__ + (f" ({code})" if code else "")


def _is_an_answer(error: BaseException) -> bool:
    """Tell what a server said from what mlflow's client says itself, which has a status for each of its errors."""
    own = _is_a(error, "mlflow.exceptions", "MlflowException") and not _is_a(
        error, "mlflow.exceptions", "RestException"
    )
    return not (own and _code(error) in _OF_THE_CLIENT)


def made_up(doing: str) -> SinkError:
    """Return the error for an answer that no store gives."""
    return SinkError(
        f"{doing}: something else than the store answered.",
        hint="A proxy or a login page stands in between: check the endpoint, HTTPS_PROXY and NO_PROXY.",
    )
