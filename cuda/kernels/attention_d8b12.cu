#include "attention_launch.cuh"

VI_ATTENTION(d8b12)
