# Sourced after common.sh: the main job as five steps, each of which resumes. The caller sets
#   CKPT, OUT     folders of checkpoints and of the results
#   PICK          flags that choose the tasks, e.g. (--tasks a b c)
#   SCORING       flags of the similarity
#   SOURCE        flags of the tuning of the sources on full data
#   TARGET        flags of the few-shot tuning of the targets
step() { printf '\n== %s\n' "$*"; }

flow() {
  step "1/5 source adapters on the full data of every task"
  bash scripts/adapter.sh "${PICK[@]}" "${SOURCE[@]}" --full_train --output_dir "$CKPT/full_data"
  step "2/5 Loss similarity of every source to every target"
  bash scripts/get_similarity/adapter_Loss.sh "${PICK[@]}" "${SCORING[@]}" --source_ckpt_path "$CKPT/full_data" --output_dir "$CKPT/similarity"
  step "3/5 ensembles: average of the other tasks, and weighted by Loss"
  "$PYTHON" unit_model/unit_model_average.py "${PICK[@]}" --source_ckpt_path "$CKPT/full_data" --save_ckpt_path "$CKPT/average"
  "$PYTHON" unit_model/unit_model_others.py --origin_data_path "$CKPT/similarity" --source_ckpt_path "$CKPT/full_data" --save_ckpt_path "$CKPT/Loss"
  step "4/5 few-shot tuning of every target from three inits"
  bash scripts/adapter.sh "${PICK[@]}" "${TARGET[@]}" --output_dir "$CKPT/from_random"
  for init in average Loss; do
    bash scripts/adapter.sh "${PICK[@]}" "${TARGET[@]}" --output_dir "$CKPT/from_$init" --train_checkpoint "$CKPT/$init"
  done
  step "5/5 test scores by init"
  mkdir -p "$OUT"
  local rows=(Random="$CKPT/from_random" Average="$CKPT/from_average" Loss="$CKPT/from_Loss")
  "$PYTHON" -m pewe.tables --rows "${rows[@]}" --out "$OUT" >"$OUT/table.txt"
  cp "$CKPT/Loss/hot_pic_all.png" "$CKPT/Loss/final_weight.tsv" "$OUT/"
  cp "$CKPT/similarity/result.tsv" "$OUT/loss_similarity.tsv"
  cp "$CKPT/similarity/similarity.png" "$OUT/loss_similarity.png"
  local run
  for run in full_data from_random from_average from_Loss; do
    cp "$CKPT/$run/result.tsv" "$OUT/result_$run.tsv"
    cp "$CKPT/$run/config.json" "$OUT/config_$run.json"
  done
}
