#include "attention_launch.cuh"

VI_ATTENTION(attention_d2b8, 2, 8)
