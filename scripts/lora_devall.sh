#!/usr/bin/env bash
# Zero-shot dev score of every source lora on every target (Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
dev_all lora "$@"
