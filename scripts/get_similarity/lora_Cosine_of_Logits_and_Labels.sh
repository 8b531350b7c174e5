#!/usr/bin/env bash
# Cosine of Logits and Labels of every source lora to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity lora Cosine_of_Logits_and_Labels "$@"
