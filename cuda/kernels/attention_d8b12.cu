#include "attention_launch.cuh"

VI_ATTENTION(attention_d8b12, 8, 12)
