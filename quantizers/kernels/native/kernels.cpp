// Every kernel, compiled once for each instruction set; the entry points pick one when they are called.
//
// The kernels are written in vectors of LANES floats (a GCC and Clang extension). TMM_WIDE_ON_AVX2 compiles the
// AVX-512 shapes for AVX2: slow, but it lets a test run that code on a machine without AVX-512.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define TMM_INLINE inline __attribute__((always_inline))

namespace {
struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> buffer(size_t count) {
    void* memory = std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64);
    if (!memory) std::abort();
    return Buffer<T>(static_cast<T*>(memory));
}

// Ask for huge pages under a large result that is about to be written: the first touch of every small page would cost
// several times as much as writing it.
void huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, from = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t to = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    if (bytes >= size_t(8) << 20) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}
}  // namespace

namespace plain {
#define LANES 4
#include "isa.h"
#undef LANES
}  // namespace plain

#if defined(__x86_64__)
#if defined(__clang__)
#define TMM_TARGET_AVX2 _Pragma("clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)")
#define TMM_TARGET_AVX512 \
    _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma\"))), apply_to = function)")
#define TMM_TARGET_END _Pragma("clang attribute pop")
#else
#define TMM_TARGET_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma\")")
#define TMM_TARGET_AVX512 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma\")")
#define TMM_TARGET_END _Pragma("GCC pop_options")
#endif

TMM_TARGET_AVX2
#define TMM_AVX2 1
namespace avx2 {
#define LANES 8
#include "isa.h"
#undef LANES
}  // namespace avx2
#undef TMM_AVX2
TMM_TARGET_END

#if defined(TMM_WIDE_ON_AVX2)
TMM_TARGET_AVX2
namespace avx512 {
#define LANES 16
#include "isa.h"
#undef LANES
}  // namespace avx512
TMM_TARGET_END
#else
TMM_TARGET_AVX512
#define TMM_AVX512 1
namespace avx512 {
#define LANES 16
#include "isa.h"
#undef LANES
}  // namespace avx512
#undef TMM_AVX512
TMM_TARGET_END
#endif
#endif

extern "C" int tmm_best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

#if defined(__x86_64__)
#define TMM_DISPATCH(isa, call)                             \
    switch ((isa) < 0 ? tmm_best_isa() : (isa)) {           \
        case 2: avx512::call; break;                        \
        case 1: avx2::call; break;                          \
        default: plain::call;                               \
    }
#else
#define TMM_DISPATCH(isa, call) plain::call
#endif

extern "C" void tmm_nearest(const float* z, const float* codebook, int64_t* index, int64_t count, int64_t size,
                            int64_t dim, int dot, int threads, int isa) {
    TMM_DISPATCH(isa, nearest(z, codebook, index, count, size, dim, dot, threads));
}

extern "C" void tmm_sign_quantize(const float* z, float* q, int64_t* codes, int64_t count, int width, float scale,
                                  int msb, int threads, int isa) {
    huge_pages(q, size_t(count) * width * sizeof(float));
    huge_pages(codes, size_t(count) * sizeof(int64_t));
    TMM_DISPATCH(isa, sign_quantize(z, q, codes, count, width, scale, msb, threads));
}

extern "C" void tmm_scalar_quantize(const float* z, const float* threshold, const int64_t* level, const float* center,
                                    const float* half, float* q, int64_t* codes, int64_t count, int64_t dim,
                                    int64_t steps, int threads, int isa) {
    huge_pages(q, size_t(count) * dim * sizeof(float));
    huge_pages(codes, size_t(count) * sizeof(int64_t));
    TMM_DISPATCH(isa, scalar::quantize(z, threshold, level, center, half, q, codes, count, dim, steps, threads));
}

extern "C" void tmm_residual_encode(float* q, const float* const* codebooks, const int64_t* sizes, int64_t* codes,
                                    float* errors, int64_t count, int64_t levels, int64_t dim, int threads, int isa) {
    TMM_DISPATCH(isa, residual_encode(q, codebooks, sizes, codes, errors, count, levels, dim, threads));
}
