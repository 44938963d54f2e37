from collections.abc import Iterator
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.attacks.suite")

from tests.attacks.suite import Suite, open_suite  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a class with CANDIDATES is run for each of them."""
    if metafunc.cls is not None and "candidate" in metafunc.fixturenames:
        metafunc.parametrize("candidate", metafunc.cls.CANDIDATES, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def suite(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Suite]:
    """The runs of this module's candidates that are selected."""
    candidates: list[Any] = [
        item.callspec.params["candidate"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
    ]
    with open_suite(tmp_path_factory.mktemp("arena"), candidates) as running:
        yield running
