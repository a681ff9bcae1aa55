"""Two random chat checkpoints and two small tasks on disk, for tests that run whole sweeps."""

import json
from pathlib import Path

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "How much is {{{{a}}}} and {{{{b}}}}?"
doc_to_target: "{{{{c}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""

CHOOSE = """
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{a}}}} and {{{{b}}}} is"
doc_to_choice: "{{{{[c, d]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def build_pair(root: Path) -> tuple[Path, Path]:
    """Host and donor with one byte-level tokenizer and a chat template."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=1,
    )
    for seed, name in enumerate(("host", "donor")):
        torch.manual_seed(seed)
        model = OlmoeForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    return root / "host", root / "donor"


def byte_tokenizer(reverse: bool = False):
    """One token per byte, and the special tokens 0 (start and end) and 1 (padding)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)
    names = ["<|endoftext|>", "<|padding|>", *alphabet]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names[0],
        eos_token=names[0],
        pad_token=names[1],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT,
    )


def write_tasks(folder: Path, num_items: int = 24) -> Path:
    """Write a generated and a multiple-choice task of `num_items` items, with their data."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "sums.jsonl"
    docs = [{"a": i, "b": 3 * i, "c": str(4 * i), "d": str(4 * i + 1)} for i in range(num_items)]
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "tiny_write.yaml").write_text(WRITE.format(data=data))
    (folder / "tiny_choose.yaml").write_text(CHOOSE.format(data=data))
    return folder
