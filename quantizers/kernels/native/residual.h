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
    const int64_t most = (*std::max_element(sizes, sizes + levels) + PANEL - 1) / PANEL;
    const int64_t chunk_panels = std::max<int64_t>(1, std::min(CHUNK_BYTES / (4 * PANEL * dim), most));
    const int64_t share = (count + threads - 1) / threads;
    const int64_t block = std::max<int64_t>(ROWS, std::min(BLOCK, (share + ROWS - 1) / ROWS * ROWS));
    const int64_t blocks = (count + block - 1) / block;
    auto panels = buffer<float>(chunk_panels * PANEL * dim);
    auto half_norms = buffer<float>(chunk_panels * PANEL);
    auto bests = buffer<float>(blocks * block);
    auto wheres = buffer<int64_t>(blocks * block);
#pragma omp parallel num_threads(threads)
    {
        auto groups = buffer<float>(block * dim);
        auto lanes = buffer<Lanes>(block);
        for (int64_t level = 0; level < levels; ++level) {
            const float* codebook = codebooks[level];
            for (int64_t first = 0; first < sizes[level]; first += chunk_panels * PANEL) {
                const int64_t here = std::min(chunk_panels, (sizes[level] - first + PANEL - 1) / PANEL);
                const int64_t seeds = first ? 0 : std::min(SEEDS, here);
                const bool last = first + here * PANEL >= sizes[level];
#pragma omp for schedule(static)
                for (int64_t p = 0; p < here; ++p)
                    pack_panel(codebook, sizes[level], dim, first + p * PANEL, false, panels.get() + p * PANEL * dim,
                               half_norms.get() + p * PANEL);
#pragma omp for schedule(dynamic)
                for (int64_t b = 0; b < blocks; ++b) {
                    const int64_t rows = std::min(block, count - b * block), group_count = (rows + ROWS - 1) / ROWS;
                    float* best = bests.get() + b * block;
                    int64_t* where = wheres.get() + b * block;
                    pack_groups(q + b * block * dim, rows, dim, group_count, groups.get());
                    if (seeds)
                        seed_block(panels.get(), half_norms.get(), seeds, groups.get(), group_count, dim, lanes.get(),
                                   best, where);
                    search_block(panels.get(), half_norms.get(), seeds, here, first, groups.get(), group_count, dim,
                                 best, where);
                    if (!last) continue;
                    for (int64_t n = b * block; n < b * block + rows; ++n) {
                        codes[n * levels + level] = where[n - b * block];
                        errors[n * levels + level] = take_off(q + n * dim, codebook + where[n - b * block] * dim, dim);
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; ++n) sum_rows(codebooks, codes + n * levels, levels, dim, q + n * dim);
    }
}
