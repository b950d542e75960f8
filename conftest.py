"""Examples in docstrings see the library's public names, as after an import of all."""

import pytest


@pytest.fixture(autouse=True)
def public_names(request):
    """Fills the namespace of doctests; does nothing for other tests."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    # Imported late: tests/conftest.py configures JAX before anything imports it.
    import neurrev_jax

    namespace = request.getfixturevalue("doctest_namespace")
    namespace.update({name: getattr(neurrev_jax, name) for name in neurrev_jax.__all__})
