// Compiles the header TMM_KERNELS once for each instruction set, in namespaces plain, avx2 and avx512: TMM_DISPATCH calls
// that which is asked for, or the best that this processor has.
//
// The kernels are written in vectors of LANES floats (lanes.h). TMM_WIDE_ON_AVX2 compiles the AVX-512 shapes for AVX2:
// slow, but it lets a test run that code on a machine without AVX-512.

#define TMM_INLINE inline __attribute__((always_inline))

namespace plain {
#define LANES 4
#include TMM_KERNELS
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
#include TMM_KERNELS
#undef LANES
}  // namespace avx2
#undef TMM_AVX2
TMM_TARGET_END

#if defined(TMM_WIDE_ON_AVX2)
TMM_TARGET_AVX2
namespace avx512 {
#define LANES 16
#include TMM_KERNELS
#undef LANES
}  // namespace avx512
TMM_TARGET_END
#else
TMM_TARGET_AVX512
#define TMM_AVX512 1
namespace avx512 {
#define LANES 16
#include TMM_KERNELS
#undef LANES
}  // namespace avx512
#undef TMM_AVX512
TMM_TARGET_END
#endif
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
