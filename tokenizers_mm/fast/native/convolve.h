// 3x3 convolution by transforms (winograd.h) and matrix products.
//
// Inputs are normalised, passed through SiLU and transformed; products are transformed back, bias and residual added.
// Few weights are all transformed first; then every thread takes a RECTANGLE of tiles at a time through all of this.
// Many weights, transformed, exceed the cache: then a block of tiles is transformed, and every thread takes PANEL output
// channels at a time, whose transformed weights live only that long. Nothing is kept between calls.

constexpr int CHUNK = 16;         // input channels that are transformed together: a cache line
constexpr int PANEL = 32;         // output channels of one piece of work
constexpr int WIDE = 2 * LANES;   // output channels of a register tile
constexpr int ROWS = LANES == 16 ? 12 : 6;  // tiles of a register tile; memory has room for multiples of 12
constexpr int STRIP = 48;         // tiles that are multiplied before their results are transformed
constexpr int LINES = CHUNK * WIDE / 16 * ROWS / STRIP;  // cache lines of the next weights to fetch at a time
constexpr int64_t RUN = 128;      // products that are summed in one go: longer sums round more
constexpr int64_t PAD = 16;       // a line that keeps points out of each other's cache sets
constexpr int RECTANGLE_ROWS = 3, RECTANGLE_COLUMNS = 8, RECTANGLE = RECTANGLE_ROWS * RECTANGLE_COLUMNS;
constexpr int64_t WEIGHT_BYTES = 10 << 20;  // of transformed weights that are few
constexpr int64_t BLOCK_BYTES = 20 << 20;
constexpr int64_t STAGE_BYTES = 256 << 10;

TMM_INLINE int64_t over(int64_t count, int64_t by) { return (count + by - 1) / by; }

// m[ROWS][WIDE] = v[ROWS][depth] * u[depth][WIDE]; m has rows of PANEL. Fetches what the next point needs meanwhile.
inline void multiply(const float* v, int64_t depth, const float* u, float* m, const float* next_v, const float* next_u) {
    for (int64_t begin = 0; begin < depth; begin += RUN) {
        vf sum[ROWS][2] = {};
        for (int64_t c = begin; c < std::min(depth, begin + RUN); c += CHUNK, next_v += CHUNK) {
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) __builtin_prefetch(next_v + r * depth, 0, 2);
#pragma GCC unroll 8
            for (int l = 0; l < LINES; ++l, next_u += 16) __builtin_prefetch(next_u, 0, 2);
#pragma GCC unroll 4
            for (int64_t i = c; i < c + CHUNK; ++i, u += WIDE) {
                const vf u0 = load(u), u1 = load(u + LANES);
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; ++r) {
                    const vf one = splat(v[r * depth + i]);
                    sum[r][0] += one * u0;
                    sum[r][1] += one * u1;
                }
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            float* to = m + r * PANEL;
            store(to, begin ? load(to) + sum[r][0] : sum[r][0]);
            store(to + LANES, begin ? load(to + LANES) + sum[r][1] : sum[r][1]);
        }
    }
}

// Rows [top, top + rows) and columns [left, left + columns) of CHUNK channels, activated; zero outside the image.
inline void stage(const Job& job, int64_t b, int64_t channel, int64_t top, int64_t rows, int64_t left, int64_t columns,
                  float* to) {
    const int64_t here = std::min<int64_t>(CHUNK, job.in - channel), first = b * job.in + channel;
    vf scale[CHUNK / LANES] = {}, shift[CHUNK / LANES] = {};
    for (int v = 0; v < CHUNK / LANES && job.scale; ++v) {
        const int64_t some = std::max<int64_t>(0, here - v * LANES);
        scale[v] = load(job.scale + first + v * LANES, some);
        shift[v] = load(job.shift + first + v * LANES, some);
    }
    const int64_t before = std::min(columns, std::max<int64_t>(0, -left));
    const int64_t end = std::max(before, std::min(columns, job.width - left));
    for (int64_t row = top; row < top + rows; ++row, to += columns * CHUNK) {
        if (row < 0 || row >= job.height) {
            std::memset(to, 0, columns * CHUNK * sizeof(float));
            continue;
        }
        std::memset(to, 0, before * CHUNK * sizeof(float));
        std::memset(to + end * CHUNK, 0, (columns - end) * CHUNK * sizeof(float));
        const float* from = job.x + ((b * job.height + row) * job.width + left + before) * job.in + channel;
        for (int64_t column = before; column < end; ++column, from += job.in)
            for (int v = 0; v < CHUNK / LANES; ++v) {
                vf x = here == CHUNK ? load(from + v * LANES)
                                     : load(from + v * LANES, std::max<int64_t>(0, here - v * LANES));
                if (job.scale) x = silu(x * scale[v] + shift[v]);
                store(to + column * CHUNK + v * LANES, x);
            }
    }
}

// Tiles in rows and columns of one image, or whole rows of several.
struct Tiles {
    int64_t row, column, rows, columns;
    int64_t count() const { return rows * columns; }
};

template <class Way>
struct Convolution {
    static constexpr int POINTS = Way::POINTS * Way::POINTS;
    static constexpr int64_t M_POINT = STRIP * PANEL + PAD;

    const Job& job;
    const int64_t tile_rows = over(job.out_height, Way::OUT), tile_columns = over(job.out_width, Way::OUT);
    const int64_t depth = over(job.in, CHUNK) * CHUNK, all_rows = job.batch * tile_rows, panels = over(job.out, PANEL);
    const int64_t u_point = depth * WIDE + PAD, u_size = PANEL / WIDE * POINTS * u_point;
    const bool few = panels * u_size * int64_t(sizeof(float)) <= WEIGHT_BYTES;
    // Of a block, where weights are many; tile rows that are staged together.
    const int64_t row_bytes = POINTS * depth * tile_columns * int64_t(sizeof(float));
    const int64_t block_rows = std::min(all_rows, std::max<int64_t>(1, BLOCK_BYTES / row_bytes));
    const int64_t staged_bytes = ((tile_columns - 1) * Way::STEP + Way::IN) * CHUNK * int64_t(sizeof(float)) * Way::STEP;
    const int64_t stage_rows = few ? RECTANGLE_ROWS : std::max<int64_t>(1, STAGE_BYTES / staged_bytes - 1);
    const int64_t stage_columns = few ? RECTANGLE_COLUMNS : tile_columns;
    const int64_t v_point = over(few ? RECTANGLE : block_rows * tile_columns, 12) * 12 * depth + PAD;
    // Scratch memory in floats: transformed inputs, transformed weights, products, inputs. The first two are shared or
    // of each thread.
    const int64_t v_size = over(POINTS * v_point, PAD) * PAD, m_size = POINTS * M_POINT;
    const int64_t stage_size = (stage_rows * Way::STEP + Way::IN) * (stage_columns * Way::STEP + Way::IN) * CHUNK;
    const int64_t shared = few ? panels * u_size : v_size, own = (few ? v_size : u_size) + m_size + stage_size;
    int64_t scratch() const { return shared + job.threads * own + PAD; }

    // Tiles of one image, CHUNK channels: to v[point][tile][channel].
    void transform_inputs(Tiles tiles, int64_t channel, float* staged, float* v) const {
        const int64_t b = tiles.row / tile_rows, top = (tiles.row - b * tile_rows) * Way::STEP - Way::LEAD;
        const int64_t columns = (tiles.columns - 1) * Way::STEP + Way::IN;
        stage(job, b, channel, top, (tiles.rows - 1) * Way::STEP + Way::IN, tiles.column * Way::STEP - Way::LEAD, columns,
              staged);
        for (int64_t row = 0; row < tiles.rows; ++row)
            for (int64_t column = 0; column < tiles.columns; ++column, v += depth) {
                const float* from = staged + (row * Way::STEP * columns + column * Way::STEP) * CHUNK;
                for (int part = 0; part < CHUNK; part += LANES) transform_input(from + part, columns, v + part);
            }
    }

    TMM_INLINE void transform_input(const float* from, int64_t columns, float* v) const {
        vf x[Way::IN * Way::IN], t[Way::POINTS * Way::IN], p[POINTS];
#pragma GCC unroll 6
        for (int i = 0; i < Way::IN; ++i)
#pragma GCC unroll 6
            for (int j = 0; j < Way::IN; ++j) x[i * Way::IN + j] = load(from + (i * columns + j) * CHUNK);
#pragma GCC unroll 6
        for (int j = 0; j < Way::IN; ++j) Way::inputs(x + j, t + j, Way::IN, Way::IN);
#pragma GCC unroll 6
        for (int i = 0; i < Way::POINTS; ++i) Way::inputs(t + i * Way::IN, p + i * Way::POINTS, 1, 1);
#pragma GCC unroll 36
        for (int i = 0; i < POINTS; ++i) store(v + i * v_point, p[i]);
    }

    // u[part][point][channel][WIDE] of PANEL output channels.
    void transform_weights(int64_t panel, float* u) const {
        float w[CHUNK][9][WIDE] = {};
        for (int64_t part = 0; part < PANEL / WIDE; ++part, u += POINTS * u_point) {
            const int64_t first = panel * PANEL + part * WIDE;
            for (int64_t c = 0; c < job.in; c += CHUNK) {
                const int64_t here = std::min<int64_t>(CHUNK, job.in - c);
                for (int64_t k = 0; k < WIDE && first + k < job.out; ++k) {
                    const float* from = job.weight + ((first + k) * job.in + c) * 9;
                    for (int64_t i = 0; i < here; ++i)
                        for (int tap = 0; tap < 9; ++tap) w[i][tap][k] = from[i * 9 + tap];
                }
                std::memset(w[here], 0, (CHUNK - here) * sizeof(w[0]));  // multiplied with zeros
                for (int i = 0; i < CHUNK; ++i)
                    for (int half = 0; half < WIDE; half += LANES)
                        transform_weight(w[i][0] + half, u + (c + i) * WIDE + half);
            }
        }
    }

    TMM_INLINE void transform_weight(const float* from, float* u) const {
        vf x[9], t[Way::POINTS * 3], p[POINTS];
#pragma GCC unroll 9
        for (int i = 0; i < 9; ++i) x[i] = load(from + i * WIDE);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) Way::taps(x + j, t + j, 3, 3);
#pragma GCC unroll 6
        for (int i = 0; i < Way::POINTS; ++i) Way::taps(t + i * 3, p + i * Way::POINTS, 1, 1);
#pragma GCC unroll 36
        for (int i = 0; i < POINTS; ++i) store(u + i * u_point, p[i]);
    }

    // One tile of PANEL channels: transform back, add bias and residual, store, sum.
    void finish(int64_t tile_row, int64_t tile_column, int64_t panel, const float* m, double* sums) const {
        const int64_t b = tile_row / tile_rows, top = (tile_row - b * tile_rows) * Way::OUT;
        const int64_t left = tile_column * Way::OUT;
        const int64_t rows = std::min<int64_t>(Way::OUT, job.out_height - top);
        const int64_t cols = std::min<int64_t>(Way::OUT, job.out_width - left);
        for (int64_t k = 0; k < PANEL && panel * PANEL + k < job.out; k += LANES) {
            const int64_t channel = panel * PANEL + k, here = std::min<int64_t>(LANES, job.out - channel);
            vf p[POINTS], t[Way::OUT * Way::POINTS], y[Way::OUT * Way::OUT];
#pragma GCC unroll 36
            for (int i = 0; i < POINTS; ++i) p[i] = load(m + i * M_POINT + k);
#pragma GCC unroll 6
            for (int j = 0; j < Way::POINTS; ++j) Way::results(p + j, t + j, Way::POINTS, Way::POINTS);
#pragma GCC unroll 6
            for (int i = 0; i < Way::OUT; ++i) Way::results(t + i * Way::POINTS, y + i * Way::OUT, 1, 1);
            const vf bias = job.bias ? load(job.bias + channel, here) : vf{};
            vf sum = {}, squares = {};
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < cols; ++j) {
                    const int64_t at = ((b * job.out_height + top + i) * job.out_width + left + j) * job.out + channel;
                    vf value = y[i * Way::OUT + j] + bias;
                    if (job.residual) value += load(job.residual + at, here);
                    store(job.y + at, value, here);
                    sum += value;
                    squares += value * value;
                }
            for (int64_t l = 0; l < here && sums; ++l) {
                sums[(b * job.out + channel + l) * 2] += sum[l];
                sums[(b * job.out + channel + l) * 2 + 1] += squares[l];
            }
        }
    }

    // Tiles [from, to) of these, PANEL channels.
    void multiply_tiles(Tiles tiles, int64_t from, int64_t to, int64_t panel, const float* v, const float* u, float* m,
                        double* sums) const {
        for (int64_t strip = from; strip < to; strip += STRIP) {
            const int64_t count = std::min<int64_t>(STRIP, to - strip);
            for (int64_t part = 0; part < PANEL / WIDE && panel * PANEL + part * WIDE < job.out; ++part)
                for (int p = 0; p < POINTS; ++p)
                    for (int64_t t = 0; t < count; t += ROWS) {
                        const float* rows = v + p * v_point + (strip + t) * depth;
                        const float* weights = u + (part * POINTS + p) * u_point;
                        multiply(rows, depth, weights, m + p * M_POINT + t * PANEL + part * WIDE, rows + v_point,
                                 weights + u_point + t / ROWS * (depth / CHUNK) * LINES * 16);
                    }
            for (int64_t t = strip; t < strip + count; ++t)
                finish(tiles.row + t / tiles.columns, tiles.column + t % tiles.columns, panel, m + (t - strip) * PANEL,
                       sums);
        }
    }

    // Few weights. Every thread has its own part of the sums.
    void run_rectangles(float* u, float* v, float* m, float* staged) const {
        const int64_t down = over(tile_rows, RECTANGLE_ROWS), across = over(tile_columns, RECTANGLE_COLUMNS);
        double* sums = job.sums ? job.sums + thread() * job.batch * job.out * 2 : nullptr;
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < panels; ++panel) transform_weights(panel, u + panel * u_size);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t i = 0; i < job.batch * down; ++i)
            for (int64_t j = 0; j < across; ++j) {
                const int64_t row = i % down * RECTANGLE_ROWS, column = j * RECTANGLE_COLUMNS;
                const Tiles tiles = {i / down * tile_rows + row, column, std::min<int64_t>(RECTANGLE_ROWS, tile_rows - row),
                                     std::min<int64_t>(RECTANGLE_COLUMNS, tile_columns - column)};
                for (int64_t channel = 0; channel < depth; channel += CHUNK)
                    transform_inputs(tiles, channel, staged, v + channel);
                for (int64_t panel = 0; panel < panels; ++panel)
                    multiply_tiles(tiles, 0, tiles.count(), panel, v, u + panel * u_size, m, sums);
            }
    }

    // Many weights: tile rows [first, last). Every part of the tiles has its own part of the sums.
    void run_block(int64_t first, int64_t last, float* v, float* u, float* m, float* staged) const {
        const int64_t chunks = depth / CHUNK, groups = over(tile_rows, stage_rows);
        const int64_t begin = first / tile_rows * groups, end = ((last - 1) / tile_rows + 1) * groups;
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t group = begin; group < end; ++group)  // stage_rows tile rows of one image
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const int64_t b = group / groups, top = b * tile_rows + group % groups * stage_rows;
                const int64_t from = std::max(top, first), to = std::min({top + stage_rows, (b + 1) * tile_rows, last});
                if (from < to)
                    transform_inputs({from, 0, to - from, tile_columns}, chunk * CHUNK, staged,
                                     v + (from - first) * tile_columns * depth + chunk * CHUNK);
            }
        const Tiles tiles = {first, 0, last - first, tile_columns};
        const int64_t share = over(over(tiles.count(), job.parts), STRIP) * STRIP;
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t panel = 0; panel < panels; ++panel)
            for (int64_t part = 0; part < job.parts; ++part) {
                if (part * share >= tiles.count()) continue;
                transform_weights(panel, u);
                multiply_tiles(tiles, part * share, std::min(tiles.count(), (part + 1) * share), panel, v, u, m,
                               job.sums ? job.sums + part * job.batch * job.out * 2 : nullptr);
            }
    }

    void run() const {
        // On a cache line, which Python's memory may not be.
        float* common = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(job.scratch) + 63) / 64 * 64);
#pragma omp parallel num_threads(job.threads)
        {
            float* mine = common + shared + thread() * own;
            float *m = mine + (few ? v_size : u_size), *staged = m + m_size;
            if (few) {
                run_rectangles(common, mine, m, staged);
            } else {
                for (int64_t first = 0; first < all_rows; first += block_rows)
                    run_block(first, std::min(all_rows, first + block_rows), common, mine, m, staged);
            }
        }
    }
};

template <class Way>
void convolve_so(const Job& job, int64_t* scratch) {
    const Convolution<Way> convolution{job};
    if (scratch)
        *scratch = convolution.scratch();
    else
        convolution.run();
}

// Or only says how many floats of scratch memory that takes, where `scratch` is given.
inline void convolve(const Job& job, int way, int64_t* scratch) {
    switch (way) {
        case 0: convolve_so<Same>(job, scratch); break;
        case 1: convolve_so<SameSmall>(job, scratch); break;
        case 2: convolve_so<Doubled>(job, scratch); break;
        default: convolve_so<Halved>(job, scratch);
    }
}
