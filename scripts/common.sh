# Sourced by every script: stand in the repository root, choose the interpreter, name the embedded defaults.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c "import pewe" 2>/dev/null; then
  echo "error: $PYTHON cannot import pewe; run: bash scripts/setup_env.sh" >&2
  exit 2
fi

# Idle threads spin briefly, then sleep: the next small operation finds them awake, and another process on the same cores is
# not starved (with the default of GNU OpenMP, runs side by side slow each other down many times).
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
# Freed memory is kept for the next tensors: with glibc's defaults every update of a stack asks for fresh pages.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-268435456}"

# The backbone, the data and the list of tasks. For the paper:
#   MODEL=google/t5-base-lm-adapt DATA_DIR=data/crossfit TASKS=QA_task_list bash scripts/adapter.sh
MODEL="${MODEL:-checkpoints/mini_t5}"
DATA_DIR="${DATA_DIR:-data/mini_gym}"
TASKS="${TASKS:-mini_task_list}"
WHAT=(--model "$MODEL" --task_dir "$DATA_DIR" --task_list "$TASKS")

# What each script does, for a delta: the paper's settings are the defaults of the flags (docs/flags.md), those of a measure its
# own. Sources are in checkpoints/DELTA/full_data, few-shot deltas in checkpoints/DELTA/random. Further flags are passed on.
TUNING=(--do_train --do_predict --one_prefix)

tune() { # DELTA: tune on every task
  exec "$PYTHON" tune_hps_singletask.py "${WHAT[@]}" "${TUNING[@]}" --tune_method "$1" --output_dir "checkpoints/$1/random" "${@:2}"
}

tune_all() { # DELTA: tune every source on every target
  exec "$PYTHON" tune_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" --tune_method "$1" --source_ckpt_path "checkpoints/$1/full_data" \
    --output_dir "checkpoints/$1/tuned_all" "${@:2}"
}

dev_all() { # DELTA: score every source on every target
  exec "$PYTHON" dev_all_ckpt.py "${WHAT[@]}" --one_prefix --tune_method "$1" --source_ckpt_path "checkpoints/$1/full_data" \
    --output_dir "checkpoints/$1/zero_shot" "${@:2}"
}

similarity() { # DELTA MEASURE: of every source to every target, by a measure of get_similarity/
  local deltas=(--tune_method "$1" --source_ckpt_path "checkpoints/$1/full_data" --random_tuned_ckpt_path "checkpoints/$1/random")
  exec "$PYTHON" -m pewe similarity "$2" "${WHAT[@]}" "${deltas[@]}" --output_dir "checkpoints/$1/similarity/$2" "${@:3}"
}

# PEMT's two stages, with the original's optimizer; --train_epochs, not --early_stop, ends a run.
PEMT=(--do_train --do_predict --optimizer adamw --lr_decay_style linear --max_grad_norm 1.0 --early_stop 1000 --one_prefix
  --max_input_length 256 --max_output_length 128)
PEMT_TARGET=(--tune_method pemt --learning_rate_list 3e-4 --warmup_steps 0 --train_epochs 20 --predict_batch_size 128
  --micro_batch_size 32 --seed 4096 --expert_path checkpoints/pemt/stage1)
