// Every kernel, compiled once for each instruction set; the entry points pick one when they are called (dispatch.h).

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "buffer.h"

namespace {
int thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
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

#define TMM_KERNELS "convolutions.h"
#include "dispatch.h"

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
