import gc
import weakref

import torch

from moegraft.evals.slots import SlotCache


def test_memory_is_free_as_soon_as_nobody_holds_the_cache():
    """Garbage in a cycle waits for Python to look for it, which it hardly does beside a model."""
    cache = SlotCache(2)
    cache.aim(slice(0, 3), 0, 4)
    kept = [layer.update(torch.ones(3, 2, 4, 8), torch.ones(3, 2, 4, 8)) for layer in cache.layers]
    assert kept[0][0].shape == (3, 2, 4, 8)
    watched = [weakref.ref(cache), *(weakref.ref(layer) for layer in cache.layers)]
    gc.disable()
    try:
        del cache, kept
        assert [one() for one in watched] == [None] * 3
    finally:
        gc.enable()
