import importlib

import moegraft.xpert


def test_every_public_name_is_the_same_thing_on_every_use():
    for name in moegraft.xpert.__all__:
        first = getattr(moegraft.xpert, name)
        assert getattr(moegraft.xpert, name) is first
        assert not hasattr(first, "__path__") and importlib.import_module(first.__module__)
