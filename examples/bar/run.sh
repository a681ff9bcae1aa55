#!/bin/sh
# BAR on the packaged dense pair: two domains, an expert each, trained apart, merged, routed.
#     sh examples/bar/run.sh [FOLDER]
set -e
dir=${1:-runs/bar}
data=$dir/worlds/domains
steps="--set sft.steps=300 --set sft.batch=4 --set sft.length=128 --set sft.learning_rate=2e-3"
python -m moegraft.nano.build --worlds "$dir/worlds"

for domain in code safety; do
    [ -d "$dir/$domain-start" ] || moegraft bar branch --anchor nano:dense \
        --pretrained nano:dense-base --domain $domain --domains 2 \
        --out "$dir/$domain-start"
done
moegraft bar adapt --branch "$dir/code-start" --as-released --mid "$data/code/text.jsonl" \
    --set mid.steps=400 --set mid.batch=4 --set mid.length=128 --set mid.learning_rate=3e-3 \
    --sft "$data/code/chat.jsonl" --general sft="$data/general/chat.jsonl" $steps --out "$dir/code"
moegraft bar adapt --branch "$dir/safety-start" --as-released --sft "$data/safety/chat.jsonl" \
    --general sft="$data/general/chat.jsonl" $steps --out "$dir/safety"
moegraft bar verify "$dir/code/branch"
moegraft bar verify "$dir/safety/branch"

moegraft bar merge --anchor nano:dense \
    --branch "$dir/code/branch" --branch "$dir/safety/branch" --out "$dir/merged"
moegraft bar route "$dir/merged" --data general="$data/general/chat.jsonl" \
    --data code="$data/code/chat.jsonl" --data safety="$data/safety/chat.jsonl" \
    --length 128 --batch 4 --learning-rate 3e-3 --out "$dir/routed"
moegraft bar report "$dir/routed" --out "$dir/report"
python examples/bar/score.py nano:dense "$dir/code/branch" "$dir/safety/branch" \
    "$dir/merged" "$dir/routed"
