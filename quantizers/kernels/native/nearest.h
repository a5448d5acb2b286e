// argmin_k (|e_k|^2 / 2 - z . e_k), or argmax_k z . e_k, of every vector z.
//
// A register tile holds the scores of ROWS vectors against PANEL rows of the codebook. Rows are packed as panels
// [dim][PANEL], vectors as groups [dim][ROWS], so that the inner loop reads both in order: a panel stays in the first
// cache while the groups of a block pass by. The running minimum of a vector is one number: a panel beats it rarely
// (about log(size / PANEL) times), and only then is the position of the new minimum looked for. The first panels beat it
// often; there each lane keeps a minimum of its own and its panel, without a branch.

#if LANES == 4
constexpr int ROWS = 4, VECTORS = 2;
#elif LANES == 8
constexpr int ROWS = 4, VECTORS = 3;
#else
constexpr int ROWS = 6, VECTORS = 4;
#endif
constexpr int PANEL = VECTORS * LANES;
constexpr int64_t CHUNK_BYTES = 1 << 20;  // packed rows at a time: the only extra memory, whatever the size
constexpr int64_t BLOCK = 96;             // vectors at a time: packed, they stay in the second cache
constexpr int64_t SEEDS = 48;             // panels without a branch,
constexpr int64_t MOST_SEEDED = 64;       // in as many channels: beyond, a tile costs more than its branch ever does

constexpr int64_t seeds_of(int64_t dim, int64_t panels) { return dim > MOST_SEEDED ? 0 : std::min(SEEDS, panels); }

// Scores of one group against one panel.
TMM_INLINE void scores(const float* panel, const float* half_norm, const float* group, int64_t dim,
                       vf (&sum)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(half_norm + v * LANES);
    for (int64_t d = 0; d < dim; ++d) {
        vf row[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) row[v] = load(panel + d * PANEL + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const vf z = splat(group[d * ROWS + r]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[r][v] -= z * row[v];
        }
    }
}

TMM_INLINE vf least_of(const vf (&score)[VECTORS]) {
    vf low = score[0];
#pragma GCC unroll 8
    for (int v = 1; v < VECTORS; ++v) low = least(low, score[v]);
    return low;
}

// Whether a score may be below the minimum of its vector.
TMM_INLINE bool any_better(const vf (&score)[ROWS][VECTORS], const float* best) {
    mask better{};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) better = either(better, less(least_of(score[r]), splat(best[r])));
    return bits(better) != 0;
}

// Where a panel beats the running minimum of a vector: the new minimum and its first position. Rarely needed, so that
// nothing but this writes the scores to memory.
__attribute__((noinline)) void improve(const vf (&score)[ROWS][VECTORS], int64_t first, float* best, int64_t* where) {
    for (int r = 0; r < ROWS; ++r) {
        const float value = least_lane(least_of(score[r]));
        if (!(value < best[r])) continue;
        best[r] = value;
        uint64_t hits = 0;
        for (int v = 0; v < VECTORS; ++v)
            hits |= static_cast<uint64_t>(bits(equal(score[r][v], splat(value)))) << v * LANES;
        where[r] = first + __builtin_ctzll(hits);
    }
}

TMM_INLINE void pack_panel(const float* codebook, int64_t size, int64_t dim, int64_t first, bool dot, float* panel,
                           float* half_norm) {
    for (int64_t p = 0; p < PANEL; ++p) {
        const int64_t k = first + p;
        if (k >= size) {  // no row: infinitely far
            for (int64_t d = 0; d < dim; ++d) panel[d * PANEL + p] = 0;
            half_norm[p] = std::numeric_limits<float>::infinity();
            continue;
        }
        const float* row = codebook + k * dim;
        float norm = 0;
        for (int64_t d = 0; d < dim; ++d) {
            panel[d * PANEL + p] = row[d];
            norm += row[d] * row[d];
        }
        half_norm[p] = dot ? 0.0f : norm / 2;
    }
}

// Minimum over the first panels of every lane of one vector.
struct Lanes {
    vf best;
    vi panel;
};

// The least of the lanes and its row; the lowest row of equal ones. Which of a lane's rows in a panel it was is found by
// computing those again.
TMM_INLINE void settle(const Lanes& lanes, const float* panels, const float* half_norms, const float* group, int64_t dim,
                       float& best, int64_t& where) {
    best = least_lane(lanes.best);
    where = std::numeric_limits<int64_t>::max();
    for (unsigned hits = bits(equal(lanes.best, splat(best))); hits; hits &= hits - 1) {
        const int l = __builtin_ctz(hits);
        const int64_t p = lanes.panel[l];
        float sum[VECTORS];
        for (int v = 0; v < VECTORS; ++v) sum[v] = half_norms[p * PANEL + v * LANES + l];
        for (int64_t d = 0; d < dim; ++d)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                sum[v] -= group[d * ROWS] * panels[(p * dim + d) * PANEL + v * LANES + l];
        const int v = std::min_element(sum, sum + VECTORS) - sum;
        const int64_t row = p * PANEL + v * LANES + l;
        where = std::min(where, row);
    }
    if (where == std::numeric_limits<int64_t>::max()) where = 0;  // nothing compares with NaN
}

TMM_INLINE void seed_block(const float* panels, const float* half_norms, int64_t panel_count, const float* groups,
                           int64_t group_count, int64_t dim, Lanes* lanes, float* best, int64_t* where) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t n = 0; n < group_count * ROWS; ++n) lanes[n] = {splat(infinity), vi{}};
    for (int64_t p = 0; p < panel_count; ++p)
        for (int64_t g = 0; g < group_count; ++g) {
            vf score[ROWS][VECTORS];
            scores(panels + p * dim * PANEL, half_norms + p * PANEL, groups + g * dim * ROWS, dim, score);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                Lanes& lane = lanes[g * ROWS + r];
                const vf low = least_of(score[r]);
                lane.panel = low < lane.best ? static_cast<int32_t>(p) - vi{} : lane.panel;
                lane.best = least(low, lane.best);
            }
        }
    for (int64_t n = 0; n < group_count * ROWS; ++n)
        settle(lanes[n], panels, half_norms, groups + n / ROWS * dim * ROWS + n % ROWS, dim, best[n], where[n]);
}

TMM_INLINE void search_block(const float* panels, const float* half_norms, int64_t begin, int64_t end, int64_t first,
                             const float* groups, int64_t group_count, int64_t dim, float* best, int64_t* where) {
    for (int64_t p = begin; p < end; ++p)
        for (int64_t g = 0; g < group_count; ++g) {
            vf score[ROWS][VECTORS];
            scores(panels + p * dim * PANEL, half_norms + p * PANEL, groups + g * dim * ROWS, dim, score);
            if (__builtin_expect(any_better(score, best + g * ROWS), 0)) {
                vf copy[ROWS][VECTORS];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; ++v) copy[r][v] = score[r][v];
                improve(copy, first + p * PANEL, best + g * ROWS, where + g * ROWS);
            }
        }
}

TMM_INLINE void start_block(int64_t count, float* best, int64_t* where) {
    std::fill(best, best + count, std::numeric_limits<float>::infinity());
    std::fill(where, where + count, 0);
}

TMM_INLINE void pack_groups(const float* z, int64_t count, int64_t dim, int64_t group_count, float* groups) {
    for (int64_t g = 0; g < group_count; ++g)
        for (int64_t r = 0; r < ROWS; ++r) {
            const float* row = z + std::min(g * ROWS + r, count - 1) * dim;
            for (int64_t d = 0; d < dim; ++d) groups[(g * dim + d) * ROWS + r] = row[d];
        }
}

// Space of a search for `count` vectors in codebooks of at most `size` rows, shared by the threads.
struct Space {
    int64_t count, dim, chunk_panels, block, blocks;
    Buffer<float> panels, half_norms, bests;
    Buffer<int64_t> wheres;

    Space(int64_t count, int64_t size, int64_t dim, int threads) : count(count), dim(dim) {
        chunk_panels = std::max<int64_t>(1, std::min(CHUNK_BYTES / (4 * PANEL * dim), (size + PANEL - 1) / PANEL));
        const int64_t share = (count + threads - 1) / threads;
        block = std::max<int64_t>(ROWS, std::min(BLOCK, (share + ROWS - 1) / ROWS * ROWS));
        blocks = (count + block - 1) / block;
        panels = buffer<float>(chunk_panels * PANEL * dim);
        half_norms = buffer<float>(chunk_panels * PANEL);
        bests = buffer<float>(blocks * block);
        wheres = buffer<int64_t>(blocks * block);
    }
};

// Called by every thread of a parallel region. `done(n, rows, where)` gets each block of vectors, from the n-th on, and
// the best rows for it, on the thread that searched it last.
template <class Done>
TMM_INLINE void search(Space& space, const float* z, const float* codebook, int64_t size, bool dot, float* groups,
                       Lanes* lanes, Done done) {
    const int64_t dim = space.dim;
    float *panels = space.panels.get(), *half_norms = space.half_norms.get();
    for (int64_t first = 0; first < size; first += space.chunk_panels * PANEL) {
        const int64_t here = std::min(space.chunk_panels, (size - first + PANEL - 1) / PANEL);
        const int64_t seeds = first ? 0 : seeds_of(dim, here);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < here; ++p)
            pack_panel(codebook, size, dim, first + p * PANEL, dot, panels + p * PANEL * dim, half_norms + p * PANEL);
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < space.blocks; ++b) {
            const int64_t n = b * space.block, rows = std::min(space.block, space.count - n);
            const int64_t group_count = (rows + ROWS - 1) / ROWS;
            float* best = &space.bests[n];
            int64_t* where = &space.wheres[n];
            pack_groups(z + n * dim, rows, dim, group_count, groups);
            if (!first) start_block(space.block, best, where);
            if (seeds) seed_block(panels, half_norms, seeds, groups, group_count, dim, lanes, best, where);
            search_block(panels, half_norms, seeds, here, first, groups, group_count, dim, best, where);
            if (first + here * PANEL >= size) done(n, rows, where);
        }
    }
}

void nearest(const float* z, const float* codebook, int64_t* index, int64_t count, int64_t size, int64_t dim, bool dot,
             int threads) {
    Space space(count, size, dim, threads);
#pragma omp parallel num_threads(threads)
    {
        auto groups = buffer<float>(space.block * dim);
        auto lanes = buffer<Lanes>(space.block);
        search(space, z, codebook, size, dot, groups.get(), lanes.get(),
               [&](int64_t n, int64_t rows, const int64_t* where) { std::copy(where, where + rows, index + n); });
    }
}
