#include "attention_launch.cuh"

VI_ATTENTION(d2b8)
