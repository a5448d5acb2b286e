// Every kernel, compiled once for each instruction set; the entry points pick one when they are called.
//
// TMM_WIDE_ON_AVX2 compiles the AVX-512 shapes for AVX2: slow, but a test can run that code on a machine without AVX-512.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#endif

#define TMM_INLINE inline __attribute__((always_inline))

namespace {
struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

int thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

template <class T>
Buffer<T> buffer(size_t count) {
    void* memory = std::malloc(count * sizeof(T));
    if (!memory) std::abort();
    return Buffer<T>(static_cast<T*>(memory));
}

// Of one convolution; null pointers for what it does without. Images are [batch, row, column, channel].
struct Job {
    const float *x, *weight, *bias;  // weight [out, in, 3, 3]
    const float *scale, *shift;      // [batch, in]: x becomes silu(x * scale + shift) first
    const float* residual;           // added to y
    float* y;
    float* scratch;
    double* sums;  // [parts, batch, out, 2], zero: sum and sum of squares of every channel of y are added
    int64_t batch, height, width, in, out, out_height, out_width;
    int parts, threads;
};
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
namespace avx2 {
#define LANES 8
#include "isa.h"
#undef LANES
}  // namespace avx2
TMM_TARGET_END

#if defined(TMM_WIDE_ON_AVX2)
TMM_TARGET_AVX2
#else
TMM_TARGET_AVX512
#endif
namespace avx512 {
#define LANES 16
#include "isa.h"
#undef LANES
}  // namespace avx512
TMM_TARGET_END
#endif

namespace {
int best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
}  // namespace

#if defined(__x86_64__)
#define TMM_DISPATCH(isa, call)                         \
    switch ((isa) < 0 ? best_isa() : (isa)) {           \
        case 2: avx512::call; break;                    \
        case 1: avx2::call; break;                      \
        default: plain::call;                           \
    }
#else
#define TMM_DISPATCH(isa, call) plain::call
#endif

namespace {
Job job_of(int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int way, int parts, int threads) {
    Job job = {};
    job.batch = batch, job.height = height, job.width = width, job.in = in, job.out = out;
    job.out_height = way == 2 ? 2 * height : way == 3 ? height / 2 : height;
    job.out_width = way == 2 ? 2 * width : way == 3 ? width / 2 : width;
    job.parts = parts, job.threads = threads;
    return job;
}
}  // namespace

// Floats of scratch memory that a convolution needs.
extern "C" int64_t tmm_scratch(int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int way, int parts,
                               int threads, int isa) {
    const Job job = job_of(batch, height, width, in, out, way, parts, threads);
    int64_t floats = 0;
    TMM_DISPATCH(isa, convolve(job, way, &floats));
    return floats;
}

extern "C" void tmm_convolve(const float* x, const float* weight, const float* bias, const float* scale,
                             const float* shift, const float* residual, float* y, double* sums, float* scratch,
                             int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int way, int parts,
                             int threads, int isa) {
    Job job = job_of(batch, height, width, in, out, way, parts, threads);
    job.x = x, job.weight = weight, job.bias = bias, job.scale = scale, job.shift = shift, job.residual = residual;
    job.y = y, job.sums = sums, job.scratch = scratch;
    TMM_DISPATCH(isa, convolve(job, way, nullptr));
}

extern "C" void tmm_channel_sums(const float* x, double* to, int64_t batch, int64_t positions, int64_t channels,
                                 int threads, int isa) {
    TMM_DISPATCH(isa, channel_sums(x, to, batch, positions, channels, threads));
}
