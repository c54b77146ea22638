#include "attention_launch.cuh"

VI_ATTENTION(d4b10)
