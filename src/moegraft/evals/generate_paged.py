"""Greedy generation by transformers' continuous batching on a GPU, its manager kept for reuse.

Not the default: it knows no stop strings, so it writes on until an end token or the budget, and it
hands rows over in groups. It may still win on a GPU, where its kernels read a paged cache.
"""

from collections.abc import Iterator, Sequence

from moegraft.errors import ResourceError
from moegraft.evals.judge import Generation
from moegraft.evals.prefix import Ids
from moegraft.evals.sampling import Running, Writer, finish
from moegraft.evals.slots import Forward

_GROUP = 256


def generate_paged(
    forward: Forward, writer: Writer, prompts: Sequence[Ids]
) -> Iterator[tuple[int, Generation]]:
    """As `generate.generations`, for greedy decoding.

    CUDA graphs and the sharing of cache blocks between calls stay off: a graph replays the
    addresses of the weights that it was recorded with, and a block holds what other weights
    computed. Either would answer for the configuration that was swapped in before.

    Raises:
        ResourceError: transformers lost or failed a request (it only logs that).
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    assert writer.decoding.temperature == 0 and writer.adjust is None
    config = GenerationConfig(
        max_new_tokens=writer.decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(writer.stopper.eos_ids) or None,
        pad_token_id=0,
    )
    paging = ContinuousBatchingConfig(use_cuda_graph=False, allow_block_sharing=False)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for first in range(0, len(order), _GROUP):
        group = order[first : first + _GROUP]
        outputs = forward.model.generate_batch(
            inputs=[list(prompts[i]) for i in group],
            generation_config=config,
            continuous_batching_config=paging,
            persistent_manager=True,
            warmup=False,
        )
        found = list(outputs.values())
        if len(found) != len(group) or any(one.error for one in found):
            raise ResourceError("continuous batching lost requests; leave paged generation off")
        for i, output in zip(group, found, strict=True):
            yield i, _finish(writer, Running(i, prompts[i], 0, None), output.generated_tokens)


def _finish(writer: Writer, row: Running, tokens: Sequence[int]) -> Generation:
    """Cut the tokens where a row of our own would have stopped."""
    for token in tokens:
        row.tokens.append(token)
        if writer.stopper.is_done(row.tokens):
            row.ended = True
            break
    return finish(row, writer.stopper)
