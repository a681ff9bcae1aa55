from moegraft.checkpoint import open_checkpoint
from moegraft.transfer import summarize_checkpoint


def test_a_summary_counts_every_tensor_and_byte(olmoe_pair):
    checkpoint = open_checkpoint(str(olmoe_pair[0]))
    found = summarize_checkpoint(checkpoint)
    assert sum(row["tensors"] for row in found["components"]) == found["tensors"] == 69
    assert sum(row["bytes"] for row in found["components"]) == found["bytes"]
    assert (found["family"], found["layout"], found["top_k"]) == ("olmoe", "published", 2)
    experts = next(row for row in found["components"] if row["component"] == "experts")
    assert experts == {
        "component": "experts",
        "tensors": 48,
        "parameters": 2 * 8 * 3 * 32 * 16,
        "bytes": 2 * 8 * 3 * 32 * 16 * 4,
        "dtypes": ["F32"],
        "layers": "0-1",
    }
    assert found["tokenizer"]["files"] == []
