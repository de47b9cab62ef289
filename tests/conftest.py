"""Fixtures shared by all tests: real data beside the repository, and a cache that outlives the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes of several threads each wait for one another more than they work. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings
from jaxtyping import install_import_hook

# Every signature of the networks is checked in every test: shapes by jaxtyping, types by beartype.
install_import_hook("magc_model", "beartype.beartype")

# No test is timed: an example that waits for a busy disk is no failure.
settings.register_profile("magc", deadline=None)
settings.load_profile("magc")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data kept beside the repository, never in it; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data beside the repository, which is absent here")
    return folder


@pytest.fixture(scope="session")
def embedded_cache() -> Path:
    """Where the embedded samples are kept between test runs: they are downloaded once a machine."""
    folder = Path(os.environ.get("MAGC_TEST_CACHE", REPOSITORY / ".venv" / "test-cache"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def helsinki_pbf(embedded_cache: Path) -> Path:
    """The real extract of Helsinki that the `helsinki` source uses."""
    from magc_data.sources.helsinki import helsinki_pbf_path

    return helsinki_pbf_path(embedded_cache)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the cache of the person who runs it."""
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
