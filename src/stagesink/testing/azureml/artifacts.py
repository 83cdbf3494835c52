"""The calls about artifacts, of a run and of the artifact service."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from stagesink.testing.azureml.blobs import BlobStore
from stagesink.testing.azureml.faults import BadUrl, Faults, Partial
from stagesink.testing.azureml.messages import Request, Response, ServiceError, answer, error_body
from stagesink.testing.azureml.state import ORIGIN, Artifact, Container, State

DATASTORE = "workspaceartifactstore"
CONTAINER = "azureml"


@dataclass(frozen=True)
class Artifacts:
    """Answers the calls.

    Attributes
    ----------
    state : State
    blobs : BlobStore
    faults : Faults
    url : str
        Where the service is, for links to next pages.
    page_size : int
    batch_limit : int, optional
        More paths than this in one batch are refused.
    """

    state: State
    blobs: BlobStore
    faults: Faults
    url: str
    page_size: int
    batch_limit: int | None

    def register(self, container: Container, request: Request) -> Response:
        """Register paths, and give a URL to write each."""
        wanted = _paths(request)
        if self.batch_limit is not None and len(wanted) > self.batch_limit:
            raise ServiceError(400, "BadArgument", f"A batch has {self.batch_limit} paths at most.")
        partial = self.faults.take("register", Partial)
        artifacts: dict[str, object] = {}
        contents: dict[str, object] = {}
        errors: dict[str, object] = {}
        for number, (path, tags) in enumerate(wanted):
            if partial and number >= partial.paths:
                if partial.code:
                    errors[path] = error_body(partial.code, "The path could not be registered.", partial.inner)
                continue
            artifact = container.register(path, tags)
            if artifact is None:
                message = f"Resource Conflict: ArtifactId {ORIGIN}/{container.name}/{path} already exists."
                errors[path] = error_body("UserError", message, None)
            else:
                artifacts[path] = _artifact(artifact)
                contents[path] = self._content(artifact, self._write_url("register", artifact))
        return answer({"artifacts": artifacts, "artifactContentInformation": contents, "errors": errors})

    def list(self, container: Container, request: Request) -> Response:
        """List what is registered: all of it, or what begins with ``path``."""
        return self._page(container, request, _artifact)

    def prefix(self, container: Container, request: Request) -> Response:
        """The same with a URL to read each."""
        return self._page(
            container, request, lambda artifact: self._content(artifact, self._read_url("prefix", artifact))
        )

    def content(self, container: Container, request: Request) -> Response:
        """Give a URL to read one artifact. It need not have a blob."""
        artifact = _found(container, request)
        return answer(self._content(artifact, self._read_url("content", artifact)))

    def uri(self, container: Container, request: Request) -> Response:
        """The same, as the URL alone."""
        return answer(self._read_url("uri", _found(container, request)))

    def write(self, container: Container, request: Request) -> Response:
        """Give another URL to write an artifact that is registered."""
        artifact = _found(container, request)
        return answer(self._content(artifact, self._write_url("write", artifact)))

    def metadata(self, container: Container, request: Request) -> Response:
        return answer(_artifact(_found(container, request)))

    def delete(self, container: Container, request: Request) -> Response:
        """Forget a path; with ``hardDelete=true`` its blob goes too."""
        artifact = container.delete(request.needs("path"))
        if artifact is None:
            raise _not_found(container, request.needs("path"))
        if request.query.get("hardDelete", "").lower() == "true":
            self.blobs.delete(CONTAINER, artifact.blob)
        return Response(200, b"")

    def adopt(self, request: Request) -> Response:
        """Register a path whose blob is there already."""
        body = request.json()
        name, path, tags = body.get("container"), body.get("path"), body.get("tags")
        container = self.state.container(str(name))
        if body.get("origin") != ORIGIN or container is None:
            raise ServiceError(404, "NotFoundError", f"There is no container {body.get('origin')}/{name}.")
        artifact = container.register(_checked(path), tags if isinstance(tags, dict) else {})
        if artifact is None:
            message = f"Resource Conflict: ArtifactId {ORIGIN}/{name}/{path} already exists."
            raise ServiceError(409, "ConflictError", message)
        return answer(_artifact(artifact))

    def _page(self, container: Container, request: Request, shown: Callable[[Artifact], object]) -> Response:
        prefix = request.query.get("path", "")
        token = request.query.get("continuationToken", "")
        try:
            after = base64.urlsafe_b64decode(token).decode()
        except ValueError:
            raise ServiceError(400, "BadArgument", "The continuation token is not one of ours.") from None
        artifacts, more = container.page(prefix, after, self.page_size)
        following = base64.urlsafe_b64encode(artifacts[-1].path.encode()).decode() if more else None
        link = None
        if following:
            query = {"path": prefix} if prefix else {}
            link = f"{self.url}{request.path}?{urlencode({**query, 'continuationToken': following})}"
        value = [shown(artifact) for artifact in artifacts]
        return answer({"value": value, "continuationToken": following, "nextLink": link})

    def _write_url(self, call: str, artifact: Artifact) -> str:
        bad = self.faults.take(call, BadUrl)
        return self.blobs.write_url(CONTAINER, artifact.blob, bad)

    def _read_url(self, call: str, artifact: Artifact) -> str:
        bad = self.faults.take(call, BadUrl)
        return self.blobs.read_url(CONTAINER, artifact.blob, bad)

    def _content(self, artifact: Artifact, url: str) -> Mapping[str, object]:
        return {
            "contentUri": url,
            "origin": ORIGIN,
            "container": artifact.container,
            "path": artifact.path,
            "tags": artifact.tags,
        }


def _paths(request: Request) -> list[tuple[str, dict[str, str]]]:
    given = request.json().get("paths")
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise ServiceError(400, "BadArgument", "The body has no list of paths.")
    return [(_checked(entry.get("path")), entry.get("tags") or {}) for entry in given]


def _checked(path: object) -> str:
    if not isinstance(path, str) or not path:
        raise ServiceError(400, "BadArgument", "A path is missing.")
    return path


def _artifact(artifact: Artifact) -> Mapping[str, object]:
    return {
        "artifactId": artifact.id,
        "origin": ORIGIN,
        "container": artifact.container,
        "path": artifact.path,
        "etag": artifact.etag,
        "createdTime": artifact.created,
        "dataPath": {"dataStoreName": DATASTORE, "relativePath": artifact.blob, "sqlDataPath": None},
        "tags": artifact.tags,
    }


def _found(container: Container, request: Request) -> Artifact:
    path = request.needs("path")
    artifact = container.get(path)
    if artifact is None:
        raise _not_found(container, path)
    return artifact


def _not_found(container: Container, path: str) -> ServiceError:
    return ServiceError(404, "NotFoundError", f"Resource Not Found: ArtifactId {ORIGIN}/{container.name}/{path}.")
