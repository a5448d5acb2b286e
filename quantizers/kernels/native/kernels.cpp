// Every kernel, compiled once for each instruction set; the entry points pick one when they are called (dispatch.h).

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

#include "buffer.h"

namespace {
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

#define TMM_KERNELS "kernels.h"
#include "dispatch.h"

extern "C" int tmm_best_isa() { return best_isa(); }

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
