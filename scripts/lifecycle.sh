#!/usr/bin/env bash
# The table of contents: every stage of a recipe folder, in order. A stage that is complete is skipped.
#
# bash scripts/lifecycle.sh recipes/laptop
# bash scripts/lifecycle.sh recipes/laptop --from sft --to eval
#
# A stage may have further recipes, STAGE-NAME.yaml, which follow it: ppo.yaml, ppo-ensemble.yaml.
# A stage is complete when it wrote metrics.json from the recipe as it stands, and nothing it reads was made anew since.
# --from STAGE leaves the stages before it alone and runs it and the later ones again; --to STAGE ends after it.
set -uo pipefail

contents() {
    chapter "Pretraining: from raw web pages to a base model"
    stage data             # raw pages -> clean shards, the funnel
    stage tokenizer        # shards -> byte-level BPE
    stage pretrain         # shards -> a base model from random weights
    stage sample           # what the base model dreams
    chapter "Supervised finetuning: from a base model to an assistant"
    stage base             # or, in place of pretraining: others' open weights -> a plain folder
    stage conversations    # tasks -> questions with worked answers, and those held out
    stage interrogate      # base model -> what it knows, and refusals for what it does not
    stage sft              # conversations -> an assistant
    stage merge            # an adapter -> a whole model
    chapter "Reinforcement learning: practice makes it better than its teacher"
    stage rejection        # several tries at problems, the best of them -> finetuning, again and again
    stage grpo             # groups of tries, the better ones made likelier
    stage preferences      # replies in order, from best to worst -> pairs
    stage reward           # pairs -> a reward model
    stage ppo              # a policy against the reward model, on a leash
    stage overoptimization # what too much of it does, and choosing the best of n instead
    chapter "What it can do, and what it cannot"
    stage eval             # every checkpoint on every task
    stage arena            # checkpoints in pairs on the same questions -> ratings
    chapter "Out of the door"
    stage release          # a checkpoint -> a folder for the hub and for llama.cpp, with its card
    stage report           # one page with every number and figure
}

caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
stages=$(sed -n 's/^    stage \([a-z_]*\).*/\1/p' scripts/lifecycle.sh)
python=$(command -v "$root/.venv/bin/python" || command -v python || command -v python3) || exit 1
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"

refuse() { echo "lifecycle: $1" >&2; exit 2; }

nearest() { # WORD: the stage whose name is nearest
    "$python" -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0))' "$1" $stages
}

option() { # FLAG VALUE: the value, if it names a stage
    [ -n "$2" ] || refuse "$1 takes a stage: $(echo $stages)"
    grep -qx -- "$2" <<<"$stages" || refuse "$1 $2: no such stage; did you mean $(nearest "$2")? There are: $(echo $stages)"
}

folder="" from="" to=""
while [ $# -gt 0 ]; do
    case $1 in
        --from) option --from "${2:-}"; from=$2; shift 2 ;;
        --to) option --to "${2:-}"; to=$2; shift 2 ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' scripts/lifecycle.sh; exit 0 ;;
        -*) refuse "$1: unknown; usage: bash scripts/lifecycle.sh RECIPE_FOLDER [--from STAGE] [--to STAGE]" ;;
        *) [ -z "$folder" ] || refuse "$1: one recipe folder at a time"; folder=${1%/}; shift ;;
    esac
done
[ -n "$folder" ] || refuse "usage: bash scripts/lifecycle.sh RECIPE_FOLDER [--from STAGE] [--to STAGE]"
[ "${folder#/}" != "$folder" ] || folder=$caller/$folder
folder=${folder#"$root"/}
ls "$folder"/*.yaml >/dev/null 2>&1 || refuse "$folder: no recipes there; try recipes/laptop"
for name in $from $to; do
    [ -n "$(ls "$folder/$name.yaml" "$folder/$name"-*.yaml 2>/dev/null)" ] || refuse "$folder/$name.yaml: this folder has no recipe for $name"
done
if [ -n "$from" ] && [ -n "$to" ]; then
    [ "$(grep -xE -m1 -- "$from|$to" <<<"$stages")" = "$from" ] || refuse "--to $to comes before --from $from"
fi
again="bash scripts/lifecycle.sh $folder${to:+ --to $to}"
state=$([ -n "$from" ] && echo before || echo running) # before --from, running, after --to
current="" earlier=()
trap 'echo; echo "lifecycle: stopped in $current; to go on: $again" >&2; exit 130' INT

output_dir() { sed -nE "s/^output_dir:[[:space:]]*['\"]?([^'\" #]+).*/\1/p" "$1"; }
words() { sed -E '/^[[:space:]]*(#|$)/d' "$1"; } # a recipe without its comment lines
paths() { words "$1" | grep -v '^output_dir:' | grep -oE "[^][ ,{}\"':#]*/[^][ ,{}\"'#]*"; }

complete() { # RECIPE OUTPUT: made from this recipe, after everything it reads
    [ -f "$2/metrics.json" ] && [ -f "$2/recipe.yaml" ] || return 1
    cmp -s <(words "$1") <(words "$2/recipe.yaml") || return 1
    local made path
    for made in "${earlier[@]+"${earlier[@]}"}"; do
        [ "$made/metrics.json" -nt "$2/recipe.yaml" ] || continue
        while read -r path; do
            case "${path%/}/" in "$made"/*) return 1 ;; esac
            case "$made/" in "${path%/}"/*) return 1 ;; esac
        done < <(paths "$1")
    done
}

launch() { # STAGE RECIPE: as line 2 of the recipe says, with python or with accelerate and one of its configs
    local line config words=("$python")
    line=$(sed -n 2p "$2")
    config=$(grep -oE 'accelerate_configs/[a-z0-9_]+\.yaml' <<<"$line")
    if [ "${config##*/}" = cpu.yaml ]; then
        # the one process that accelerate would start, without a second import of torch, or a traceback over the stage's line
        words=(env ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu "$python")
    elif [[ $line == *"accelerate launch"* ]]; then
        words+=(-m accelerate.commands.launch ${config:+--config_file "$config"})
    fi
    "${words[@]}" "scripts/$1.py" "$2"
}

chapter() { [ "$state" != running ] || echo "== $1"; }

stage() {
    [ "$1" != "$from" ] || state=running
    [ "$state" != after ] || return 0
    local recipe
    for recipe in "$folder/$1.yaml" "$folder/$1"-*.yaml; do
        [ ! -f "$recipe" ] || step "$1" "$recipe"
    done
    [ "$1" != "$to" ] || state=after
}

step() { # STAGE RECIPE: run, unless it is complete
    local recipe=$2 name output
    name=$(basename "$2" .yaml)
    output=$(output_dir "$recipe")
    [ -n "$output" ] || refuse "$recipe: no output_dir"
    if [ "$state" = running ]; then
        if [ -z "$from" ] && complete "$recipe" "$output"; then
            echo "$name: complete, skipped"
        else
            current=$name
            rm -f "$output/metrics.json"
            if ! launch "$1" "$recipe"; then
                echo "lifecycle: $name failed; to go on from there: $again" >&2
                exit 1
            fi
            [ -f "$output/metrics.json" ] || { echo "lifecycle: $name wrote no $output/metrics.json; to go on: $again" >&2; exit 1; }
        fi
    fi
    earlier+=("$output")
}

contents
current="the last words"
if [ "$state" = running ] && [ -f "$folder/chat.yaml" ]; then
    echo "== A conversation with the model just made"
    "$python" scripts/chat.py "$folder/chat.yaml" --ask "Who are you?" "What is the capital of France?" "What is 27 + 58?"
    echo "report: $(output_dir "$folder/report.yaml")/index.html"
    echo "chat:   ${python#"$root"/} scripts/chat.py $folder/chat.yaml"
    echo "page:   ${python#"$root"/} scripts/chat.py $folder/chat.yaml --serve"
fi
