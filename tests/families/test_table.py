from moegraft.families import FAMILIES, families_table


def test_the_table_has_one_line_per_family():
    head, rule, *lines = families_table().splitlines()
    assert [line.split("`")[1] for line in lines] == list(FAMILIES)
    assert {line.count("|") for line in (head, rule, *lines)} == {6}


def test_the_table_says_what_the_catalogue_says():
    lines = {line.split("`")[1]: line for line in families_table().splitlines()[2:]}
    assert "one by one, or fused" in lines["olmoe"]
    assert "| fused |" in lines["gpt_oss"]
    assert "| dense |" in lines["llama"]
    assert "`mixer`, `mlp` | no |" in lines["jamba"]
    assert "`shared_experts`" in lines["qwen3_5_moe"]
