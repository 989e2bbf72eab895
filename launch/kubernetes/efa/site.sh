# Sourced by launch/env.sh on AWS with EFA: where the image has libfabric and NCCL's plugin for it.
# shellcheck shell=bash
export FI_PROVIDER=efa
export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
