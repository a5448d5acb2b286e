// Residual encoding: at every level the nearest row to what is left of a vector, which then loses that row.
//
// Level by level as in nearest.h; a block of vectors loses its rows while it is still in the second cache. What is left
// lives in the output until all levels are done; then the output becomes the sum of the chosen rows, level 0 first.

// Takes a row off a vector; returns the squared length of what is left.
TMM_INLINE float take_off(float* left, const float* row, int64_t dim) {
    vf squares{};
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        const vf rest = load(left + d) - load(row + d);
        store(left + d, rest);
        squares += rest * rest;
    }
    float square = 0;
    for (int l = 0; l < LANES; ++l) square += squares[l];
    for (; d < dim; ++d) {
        left[d] -= row[d];
        square += left[d] * left[d];
    }
    return square;
}

TMM_INLINE void sum_rows(const float* const* codebooks, const int64_t* codes, int64_t levels, int64_t dim, float* sum) {
    std::copy(codebooks[0] + codes[0] * dim, codebooks[0] + (codes[0] + 1) * dim, sum);
    for (int64_t l = 1; l < levels; ++l) {
        const float* row = codebooks[l] + codes[l] * dim;
        for (int64_t d = 0; d < dim; ++d) sum[d] += row[d];
    }
}

// q holds the vectors on entry and the sums on return; errors [count][levels] are the squared lengths of what is left.
void residual_encode(float* q, const float* const* codebooks, const int64_t* sizes, int64_t* codes, float* errors,
                     int64_t count, int64_t levels, int64_t dim, int threads) {
    Space space(count, *std::max_element(sizes, sizes + levels), dim, threads);
#pragma omp parallel num_threads(threads)
    {
        auto groups = buffer<float>(space.block * dim);
        auto lanes = buffer<Lanes>(space.block);
        for (int64_t level = 0; level < levels; ++level) {
            const float* codebook = codebooks[level];
            search(space, q, codebook, sizes[level], false, groups.get(), lanes.get(),
                   [&](int64_t start, int64_t rows, const int64_t* where) {
                       for (int64_t n = start; n < start + rows; ++n) {
                           codes[n * levels + level] = where[n - start];
                           errors[n * levels + level] = take_off(q + n * dim, codebook + where[n - start] * dim, dim);
                       }
                   });
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; ++n) sum_rows(codebooks, codes + n * levels, levels, dim, q + n * dim);
    }
}
