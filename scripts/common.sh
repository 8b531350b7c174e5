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

# The paper's delta modules; 1,105,920 parameters each on T5-base.
ADAPTER=(--tune_method adapter --apply_adapter --adapter_type houlsby --adapter_size 12)
LORA=(--tune_method lora --apply_lora --lora_alpha 16 --lora_r 10)
PREFIX=(--tune_method prefix --apply_prefix --prefix_r 24 --prefix_num 120)

# The paper's few-shot tuning.
TUNING=(--do_train --do_predict --learning_rate_list 5e-4 --bsz_list 8 --train_iters 100000 --warmup_steps 200
  --valid_interval 100 --log_interval 100 --early_stop 10 --predict_batch_size 80 --one_prefix --seed 42)

# PEMT's two stages, with the original's optimizer; --train_epochs, not --early_stop, ends a run.
PEMT=(--do_train --do_predict --optimizer adamw --lr_decay_style linear --max_grad_norm 1.0 --early_stop 1000 --one_prefix
  --max_input_length 256 --max_output_length 128)
PEMT_TARGET=(--tune_method pemt --learning_rate_list 3e-4 --warmup_steps 0 --train_epochs 20 --predict_batch_size 128
  --micro_batch_size 32 --seed 4096 --expert_path checkpoints/pemt/stage1)
