#include "attention_launch.cuh"

VI_ATTENTION(attention_d4b6, 4, 6)
