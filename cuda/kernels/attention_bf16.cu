#include "attention_launch.cuh"

VI_ATTENTION(bf16)
