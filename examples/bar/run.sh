#!/bin/sh
# BAR on the packaged MoE: two domains, each trained as an expert of its own, merged, routed.
#     sh examples/bar/run.sh [FOLDER]
# About five minutes on two cores. Every command resumes or refuses what is there already.
set -e
dir=${1:-runs/bar}
data=$dir/worlds/domains
python -m moegraft.nano.build --worlds "$dir/worlds"

for domain in code safety; do
    moegraft bar branch --anchor nano:sft-dpo --domain $domain \
        --toward "$data/$domain/text.jsonl" --out "$dir/$domain-start"
    moegraft bar adapt --branch "$dir/$domain-start" \
        --sft "$data/$domain/chat.jsonl" --general sft="$data/general/chat.jsonl" \
        --set sft.steps=300 --set sft.batch=4 --set sft.length=128 --set sft.learning_rate=3e-3 \
        --out "$dir/$domain"
    moegraft bar verify "$dir/$domain/branch"
done

moegraft bar merge --anchor nano:sft-dpo \
    --branch "$dir/code/branch" --branch "$dir/safety/branch" --out "$dir/merged"
moegraft bar route "$dir/merged" \
    --data general="$data/general/chat.jsonl" \
    --data code="$data/code/chat.jsonl" --data safety="$data/safety/chat.jsonl" \
    --length 128 --batch 4 --learning-rate 3e-3 --out "$dir/routed"
moegraft bar report "$dir/routed" --out "$dir/report"
python examples/bar/score.py nano:sft-dpo "$dir/code/branch" "$dir/safety/branch" \
    "$dir/merged" "$dir/routed"
