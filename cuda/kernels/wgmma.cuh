// Hopper's asynchronous instructions (PTX ISA 8.0 and later, sm_90a): barriers in shared memory, copies of boxes of a tensor, and products of a warpgroup.
// Only for code under __CUDA_ARCH_FEAT_SM90_ALL.
#pragma once
#include <cstdint>
#include <cuda.h>

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mbarrier: a phase ends when `count` threads have arrived and the bytes expected are there; phases alternate in parity, the first is 0 ----

__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}
__device__ __forceinline__ void arrive(uint32_t barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Whether the phase of this parity has ended; waits a little for it.
__device__ __forceinline__ bool ended(uint32_t barrier, uint32_t parity) {
    uint32_t yes;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(yes)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return yes;
}
// Barriers and plain stores to shared memory become visible to the copy engine and the tensor cores.
__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ uint64_t nanoseconds() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

// ---- copies ----

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// A box of a tensor of three dimensions, from its innermost coordinate on, to shared memory; its bytes count at the barrier.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, int inner, int middle, int outer, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(map),
                 "r"(inner), "r"(middle), "r"(outer), "r"(barrier)
                 : "memory");
}

// ---- products of a warpgroup ----
// The warpgroup's four warps must come to the same one of these instructions, waits too: none may stand in a branch that only some of them take.
// Accumulators of m64nNk16 for warp w of the group and lane = 4 g + t: c[4 n + 2 h + k] = C[16 w + 8 h + g, 8 n + 2 t + k]. A in registers: as mma.h says.

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int left> __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory"); }
// The same behind the arithmetic that stands before it: ptxas moves that past a wait, but not past a loop. `again` must be false, the same in the whole warpgroup,
// and not known to ptxas: it makes a wait a loop.
template <int left> __device__ __forceinline__ void products_wait_behind(bool again) {
#pragma unroll 1
    do products_wait<left>();
    while (again);
}
// Keeps the compiler from using registers before the wait ahead of this.
template <int count> __device__ __forceinline__ void hold(float (&x)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// A matrix in shared memory in rows of 128 bytes (64 f16) with the 128-byte swizzle: the 16-byte chunk c of row r lies at chunk c ^ (r % 8). Groups of 8 rows
// are 1024 bytes apart. `lead`: bytes between blocks of 64 columns where the columns are the product's outputs (not used where they are its inputs).
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t lead) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(lead >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

#define VI_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define VI_C16(i) VI_C4(i), VI_C4(i + 4), VI_C4(i + 8), VI_C4(i + 12)
#define VI_C64(i) VI_C16(i), VI_C16(i + 16), VI_C16(i + 32), VI_C16(i + 48)
#define VI_NAMES_32                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VI_NAMES_64                                                                     \
    VI_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define VI_NAMES_128                                                                                        \
    VI_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "        \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                      \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "          \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// c [64, 128] = A B, or += where `add` is not 0: 16 inputs, both operands in shared memory with inputs contiguous.
__device__ __forceinline__ void multiply(float (&c)[64], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" VI_NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
                 : VI_C64(0)
                 : "l"(a), "l"(b), "r"(add));
}

// The same for c [64, 64].
__device__ __forceinline__ void multiply(float (&c)[32], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" VI_NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : VI_C16(0), VI_C16(16)
                 : "l"(a), "l"(b), "r"(add));
}

// c [64, 128] += A B: 16 inputs, A in registers, B in shared memory with outputs contiguous.
__device__ __forceinline__ void multiply(float (&c)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" VI_NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
                 : VI_C64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// The same for c [64, 64].
__device__ __forceinline__ void multiply(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" VI_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
                 : VI_C16(0), VI_C16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// The same for c [64, 256].
__device__ __forceinline__ void multiply(float (&c)[128], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" VI_NAMES_128 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n"
                 : VI_C64(0), VI_C64(64)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

#undef VI_C4
#undef VI_C16
#undef VI_C64
#undef VI_NAMES_32
#undef VI_NAMES_64
#undef VI_NAMES_128

// ---- registers of a warpgroup, and barriers of some of a block's threads ----

template <int count> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)); }
template <int count> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)); }
__device__ __forceinline__ void named_wait(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int barrier, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

// ---- arithmetic ----

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two numbers as f16, the first in the lower half, for operands: not beyond the largest. Volatile, as it must not move before a wait: products read the registers that it
// writes.
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
    uint32_t y;
    asm volatile("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
