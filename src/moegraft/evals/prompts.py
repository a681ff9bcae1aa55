"""From documents to items: prompts rendered by lm-eval and the chat template, as token ids."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from moegraft.evals.condition import Item, content_hash
from moegraft.evals.tokens import encode, encode_answers, encode_pairs


def metadata(task: Any) -> Mapping[str, Any]:
    """The `metadata` of a task file, where our own keys stand: `extract gold gold_format cluster`.

    `gold` is a template of the continuation that is teacher-forced, `gold_format` a pattern that
    outputs in that format match, `cluster` a field that several items share.
    """
    meta = task.config.metadata
    return meta if isinstance(meta, Mapping) else {}


class Prompter:
    """Renders the items of one task.

    Args:
        task: lm-eval's task, its few-shot examples fixed.
        tokenizer: the host's.
        chat_template: wrap prompts in the chat template, few-shot examples as turns.
        chat_template_kwargs: passed to the template.
        system_prompt: a system message before everything else.
    """

    def __init__(
        self,
        task: Any,
        tokenizer: Any,
        chat_template: bool,
        chat_template_kwargs: Mapping[str, Any],
        system_prompt: str | None,
    ) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.chat_template_kwargs = chat_template_kwargs
        self.system_prompt = system_prompt
        self.generates: bool = task.OUTPUT_TYPE == "generate_until"
        self._render: Callable[..., str] | None = self._chat if chat_template else None

    def items(self, docs: list[dict[str, Any]], hashes: list[str]) -> tuple[Item, ...]:
        """One item per document, tokenized together."""
        with _templates_compiled_once():
            groups = [self._instances(i, doc) for i, doc in enumerate(docs)]
            golds = [self._gold(doc) for doc in docs]
        texts = [group[0].args[0] for group in groups]
        ids = encode(self.tokenizer, texts)
        if self.generates:
            prompts = list(zip(texts, ids, strict=True))
            forced = encode_answers(self.tokenizer, prompts, [rest for _, rest, _ in golds])
            pairs = [()] * len(docs)
        else:
            flat = iter(encode_pairs(self.tokenizer, [i.args[:2] for g in groups for i in g]))
            pairs = [tuple(next(flat) for _ in group) for group in groups]
            forced = [
                own[0 if k is None else k] for own, (_, _, k) in zip(pairs, golds, strict=True)
            ]
        return tuple(
            Item(
                hash=hashes[i],
                doc=doc,
                prompt=texts[i],
                prompt_ids=ids[i],
                prompt_hash=content_hash([(p.context, p.continuation) for p in pairs[i]] or ids[i]),
                gold=golds[i][0],
                cluster=self._cluster(doc),
                pairs=pairs[i],
                gold_pair=forced[i],
                choices=() if self.task.config.doc_to_choice is None else self._choices(doc),
                instances=tuple(groups[i]),
            )
            for i, doc in enumerate(docs)
        )

    def _chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_kwargs,
        )

    def _instances(self, index: int, doc: dict[str, Any]) -> list[Any]:
        chat = self._render is not None
        context = self.task.fewshot_context(
            doc,
            num_fewshot=int(self.task.config.num_fewshot or 0),
            system_instruction=self.system_prompt,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=self._render,
            gen_prefix=self.task.doc_to_prefix(doc),
        )
        made = self.task.construct_requests(
            doc=doc,
            ctx=context,
            metadata=(self.task.config.task, index, 1),
            apply_chat_template=chat,
            chat_template=self._render,
        )
        return made if isinstance(made, list) else [made]

    def _choices(self, doc: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(choice).strip() for choice in self.task.doc_to_choice(doc))

    def _gold(self, doc: dict[str, Any]) -> tuple[str, str, int | None]:
        """The gold answer, the continuation that is teacher-forced for it, and its choice."""
        from lm_eval.utils import apply_template

        target = self.task.doc_to_target(doc)
        if isinstance(target, list):
            target = target[0] if target else ""
        which = None
        if self.task.config.doc_to_choice is not None:
            choices = self.task.doc_to_choice(doc)
            if getattr(self.task, "multiple_input", 0):  # the choices are contexts
                which = int(self.task.doc_to_text(doc))
                target = choices[which]
            elif isinstance(target, int):
                which = target
                target = choices[which]
            elif target in choices:
                which = choices.index(target)
        gold = str(target).strip()
        template = metadata(self.task).get("gold")
        rest = apply_template(str(template), doc).strip() if template else gold
        return gold, rest if self._render is not None else f" {rest}", which

    def _cluster(self, doc: dict[str, Any]) -> str | None:
        field = metadata(self.task).get("cluster")
        return content_hash(doc[field]) if field in doc else None


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Keep lm-eval from compiling a task's templates anew for every document (20 ms per item)."""
    from lm_eval.utils import env

    with patch.object(env, "from_string", cache(env.from_string)):
        yield
