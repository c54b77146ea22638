#include "attention_launch.cuh"

VI_ATTENTION(attention_d4b8, 4, 8)
