#include "attention_launch.cuh"

VI_ATTENTION(attention_bf16, 1, 16)
