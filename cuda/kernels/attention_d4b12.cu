#include "attention_launch.cuh"

VI_ATTENTION(attention_d4b12, 4, 12)
