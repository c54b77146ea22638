#include "attention_launch.cuh"

VI_ATTENTION(attention_d8b8, 8, 8)
