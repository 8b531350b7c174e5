#!/usr/bin/env bash
# TaskEmb similarity (gradients on one probe) of the lines of every source to those of every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity prefix TaskEmb "$@"
