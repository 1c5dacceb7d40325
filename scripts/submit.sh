#!/usr/bin/env bash
# A recipe folder as a chain of Slurm jobs, one a stage: each begins when the one before it has ended well.
#
# bash scripts/submit.sh recipes/qwen2.5-1.5b
# bash scripts/submit.sh recipes/qwen2.5-1.5b --from sft --to eval --nodes 4 --partition gpu --time 8:00:00
#
# The stages and their order are those of scripts/lifecycle.sh, each job is scripts/launch.slurm. Stages that accelerate
# spreads over processes get --nodes machines (2) of eight GPUs, the others one GPU. --from STAGE and --to STAGE choose;
# what else stands here goes to sbatch. Where a job fails those after it are cancelled; --from goes on with it.
set -uo pipefail

refuse() { echo "submit: $1" >&2; exit 2; }

caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
stages=$(sed -n 's/^    stage \([a-z_]*\).*/\1/p' scripts/lifecycle.sh)
folder=${1:-}
folder=${folder%/}
usage="usage: bash scripts/submit.sh RECIPE_FOLDER [--from STAGE] [--to STAGE] [--nodes N] [sbatch's options]"
case $folder in "" | -*) refuse "$usage" ;; esac
[ "${folder#/}" != "$folder" ] || folder=$caller/$folder
folder=${folder#"$root"/}
compgen -G "$folder/*.yaml" >/dev/null || refuse "$folder: no recipes there; give a folder such as recipes/laptop"
shift
from="" to="" nodes=2 options=()
while [ $# -gt 0 ]; do
    case $1 in
        --from | --to | --nodes) [ $# -ge 2 ] || refuse "$1 takes a value" ;;
    esac
    case $1 in
        --from) from=$2; shift 2 ;;
        --to) to=$2; shift 2 ;;
        --nodes) nodes=$2; shift 2 ;;
        --nodes=*) nodes=${1#*=}; shift ;;
        *) options+=("$1"); shift ;;
    esac
done
for name in $from $to; do
    grep -qx -- "$name" <<<"$stages" || refuse "$name: no such stage; there are: $(echo $stages)"
    compgen -G "$folder/$name.yaml" >/dev/null || compgen -G "$folder/$name-*.yaml" >/dev/null ||
        refuse "$folder/$name.yaml: this folder has no recipe for $name"
done
command -v sbatch >/dev/null || refuse "no sbatch here; submit from a machine of the cluster"

state=$([ -n "$from" ] && echo before || echo running) job=""
for stage in $stages; do
    [ "$stage" != "$from" ] || state=running
    for recipe in "$folder/$stage.yaml" "$folder/$stage"-*.yaml; do
        [ "$state" = running ] && [ -f "$recipe" ] || continue
        where=(--nodes 1 --gpus-per-node 1)
        line=$(sed -n 2p "$recipe")
        [[ $line != *"accelerate launch"* || $line =~ (cpu|single_gpu)\.yaml\  ]] || where=(--nodes "$nodes")
        name=$(basename "$folder")-$(basename "$recipe" .yaml)
        after=(${job:+--dependency "afterok:$job" --kill-on-invalid-dep=yes})
        job=$(sbatch --parsable --job-name "$name" "${where[@]}" ${after[@]+"${after[@]}"} ${options[@]+"${options[@]}"} \
            scripts/launch.slurm "scripts/$stage.py" "$recipe") || refuse "sbatch refused $name; the jobs before it stand"
        job=${job%%;*} # followed by the cluster's name, where there are several
        echo "submit: $name is job $job, ${where[*]}"
    done
    [ "$stage" != "$to" ] || break
done
[ -n "$job" ] || refuse "nothing to submit: --to $to comes before --from $from"
