#include "attention_launch.cuh"

VI_ATTENTION(attention_d4b10, 4, 10)
