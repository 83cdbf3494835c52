"""A workspace, and a store, that send us elsewhere: nothing goes there, neither a token nor a signature."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from azureml_lines import Job
from faults.elsewhere import STATUSES, Elsewhere, elsewhere, use


@pytest.fixture
def there() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("at", ["front", "store"])
def test_no_token_and_no_signature_goes_elsewhere(job: Job, there: Elsewhere, at: str, status: int) -> None:
    line = getattr(job.lines, at)
    line.plan(there.answer(status), times=1000)
    use(job.sink, job.run_id)
    asked = f"{line.requests} {line.headers}"
    assert "sig=" in asked or "authorization" in asked
    assert there.heard == ""
