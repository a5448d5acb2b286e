// Scalar quantization: digit = thresholds that a value reaches, q = (digit - center) / half, code = digits in mixed
// radix, first channel least significant.
//
// Vectors run along the flat array. The channels of their lanes repeat every lcm(dim, LANES) floats, so what a lane
// needs (thresholds, center, half, place value) is spread over vectors once per call; `slots` vectors make one round.
// Few thresholds are counted, many are searched by halving.

namespace scalar {

constexpr int64_t MOST_COMPARED = 64;   // thresholds: above, halving is faster
constexpr int ROUNDS = 4;               // rounds at a time: a threshold is loaded once for all of them
constexpr int64_t BLOCK_FLOATS = 2048;  // at a time per thread: it stays in the first cache

TMM_INLINE vi count_reached(vi count, vf z, vf threshold) {
#if defined(TMM_AVX512)
    const __mmask16 reached = _mm512_cmp_ps_mask((__m512)z, (__m512)threshold, _CMP_GE_OQ);
    return (vi)_mm512_mask_add_epi32((__m512i)count, reached, (__m512i)count, _mm512_set1_epi32(1));
#else
    return count - (vi)(z >= threshold);  // a lane of a true comparison is -1
#endif
}

TMM_INLINE vi load_ints(const int32_t* from) {
    vi value;
    std::memcpy(&value, from, sizeof(vi));
    return value;
}

// What the kernel knows about the channels, spread over the lanes.
struct Channels {
    int64_t dim, slots, steps;  // steps: thresholds to compare, or, if `halving`, the first step of the search
    bool halving, narrow;       // narrow: every code fits an int32
    Buffer<float> thresholds, center, half;
    Buffer<int32_t> place, row;  // place value of a digit; where the thresholds of a lane's channel start
    Buffer<float> rows;
    Buffer<int64_t> basis;
};

Channels spread(const float* threshold, const int64_t* level, const float* center, const float* half, int64_t dim,
                int64_t steps) {
    Channels c;
    int64_t common = LANES;
    while (dim % common) common /= 2;
    c.dim = dim, c.slots = dim / common, c.steps = steps, c.halving = steps > MOST_COMPARED;
    c.basis = buffer<int64_t>(dim);
    int64_t total = 1;
    for (int64_t d = 0; d < dim; ++d) c.basis[d] = total, total *= level[d];
    c.narrow = total <= (int64_t(1) << 31);
    c.center = buffer<float>(c.slots * LANES), c.half = buffer<float>(c.slots * LANES);
    c.place = buffer<int32_t>(c.slots * LANES), c.row = buffer<int32_t>(c.slots * LANES);
    c.thresholds = buffer<float>(c.halving ? 0 : c.slots * steps * LANES);
    int64_t width = 0;
    if (c.halving) {
        for (c.steps = 1; 2 * c.steps <= steps;) c.steps *= 2;
        width = 2 * c.steps;
        c.rows = buffer<float>(dim * width);
        std::fill(c.rows.get(), c.rows.get() + dim * width, std::numeric_limits<float>::infinity());
        for (int64_t d = 0; d < dim; ++d)
            std::copy(threshold + d * steps, threshold + (d + 1) * steps, &c.rows[d * width]);
    }
    for (int64_t at = 0; at < c.slots * LANES; ++at) {
        const int64_t d = at % dim, slot = at / LANES, lane = at % LANES;
        c.center[at] = center[d], c.half[at] = half[d];
        c.place[at] = c.narrow ? int32_t(c.basis[d]) : 1, c.row[at] = int32_t(d * width);
        if (!c.halving)
            for (int64_t t = 0; t < steps; ++t)
                c.thresholds[(slot * steps + t) * LANES + lane] = threshold[d * steps + t];
    }
    return c;
}

TMM_INLINE void count_digits(const Channels& c, int64_t p, const vf (&z)[ROUNDS], vi (&digit)[ROUNDS]) {
    const float* threshold = &c.thresholds[p * c.steps * LANES];
    vi count[ROUNDS] = {};
    for (int64_t t = 0; t < c.steps; ++t) {
        const vf least_z = load(threshold + t * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROUNDS; ++r) count[r] = count_reached(count[r], z[r], least_z);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROUNDS; ++r) digit[r] = count[r];
}

TMM_INLINE void search_digits(const Channels& c, int64_t p, const vf (&z)[ROUNDS], vi (&digit)[ROUNDS]) {
    const float* rows = c.rows.get();
    const vi start = load_ints(&c.row[p * LANES]);
    vi at[ROUNDS];
    for (int r = 0; r < ROUNDS; ++r) at[r] = start;
    for (int32_t step = int32_t(c.steps); step; step /= 2)
#pragma GCC unroll 8
        for (int r = 0; r < ROUNDS; ++r) {
            vf threshold;
#pragma GCC unroll 16
            for (int l = 0; l < LANES; ++l) threshold[l] = rows[at[r][l] + step - 1];
            at[r] += (vi)(z[r] >= threshold) & step;
        }
    for (int r = 0; r < ROUNDS; ++r) digit[r] = at[r] - start;
}

// ROUNDS rounds: vectors q, and the digits, times their place value where that fits.
template <bool Stream>
TMM_INLINE void quantize_rounds(const Channels& c, const float* z, float* q, int32_t* digits) {
    for (int64_t p = 0; p < c.slots; ++p) {
        vf value[ROUNDS];
        vi digit[ROUNDS];
        const vf center = load(&c.center[p * LANES]), half = load(&c.half[p * LANES]);
        const vi place = load_ints(&c.place[p * LANES]);
#pragma GCC unroll 8
        for (int r = 0; r < ROUNDS; ++r)  // infinity must not reach the padding of short rows; NaN reaches nothing
            value[r] = least(splat(std::numeric_limits<float>::max()), load(z + (r * c.slots + p) * LANES));
        if (c.halving)
            search_digits(c, p, value, digit);
        else
            count_digits(c, p, value, digit);
#pragma GCC unroll 8
        for (int r = 0; r < ROUNDS; ++r) {
            const int64_t at = (r * c.slots + p) * LANES;
            const vf vector = (__builtin_convertvector(digit[r], vf) - center) / half;
            put<Stream>(q + at, vector);
            digit[r] *= place;
            std::memcpy(digits + at, &digit[r], sizeof(vi));
        }
    }
}

template <bool Stream>
TMM_INLINE void add_up(const int32_t* digits, int64_t tokens, int64_t dim, int64_t* codes) {
    for (int64_t n = 0; n < tokens; ++n) {
        int32_t code = 0;
        for (int64_t d = 0; d < dim; ++d) code += digits[n * dim + d];
        put<Stream>(codes + n, code);
    }
}

#if defined(TMM_AVX2) || defined(TMM_AVX512)
// Four channels, eight tokens at a time: two rounds of sums of neighbours leave tokens 0 2 4 6 1 3 5 7.
template <bool Stream>
TMM_INLINE void add_up_four(const int32_t* digits, int64_t tokens, int64_t* codes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    int64_t n = 0;
    for (; n + 8 <= tokens; n += 8) {
        __m256i pair[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            pair[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(digits + 4 * n + 8 * i));
        const __m256i low = _mm256_hadd_epi32(pair[0], pair[1]), high = _mm256_hadd_epi32(pair[2], pair[3]);
        const __m256i sum = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(low, high), order);
        int64_t wide[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide), _mm256_cvtepi32_epi64(_mm256_castsi256_si128(sum)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide + 4),
                            _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sum, 1)));
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) put<Stream>(codes + n + i, wide[i]);
    }
    add_up<Stream>(digits + 4 * n, tokens - n, 4, codes + n);
}
#else
template <bool Stream>
TMM_INLINE void add_up_four(const int32_t* digits, int64_t tokens, int64_t* codes) {
    add_up<Stream>(digits, tokens, 4, codes);
}
#endif

template <bool Stream>
TMM_INLINE void codes_of(const Channels& c, const int32_t* digits, int64_t tokens, int64_t* codes) {
    if (!c.narrow) {
        for (int64_t n = 0; n < tokens; ++n) {
            int64_t code = 0;
            for (int64_t d = 0; d < c.dim; ++d) code += digits[n * c.dim + d] * c.basis[d];
            put<Stream>(codes + n, code);
        }
        return;
    }
    switch (c.dim) {  // lengths known to the compiler become straight code
        case 3: return add_up<Stream>(digits, tokens, 3, codes);
        case 4: return add_up_four<Stream>(digits, tokens, codes);
        case 5: return add_up<Stream>(digits, tokens, 5, codes);
        case 6: return add_up<Stream>(digits, tokens, 6, codes);
        case 8: return add_up<Stream>(digits, tokens, 8, codes);
        default: return add_up<Stream>(digits, tokens, c.dim, codes);
    }
}

template <bool Stream>
TMM_INLINE void quantize_block(const Channels& c, const float* z, int64_t floats, float* q, int64_t* codes,
                               int32_t* digits) {
    const int64_t step = ROUNDS * c.slots * LANES;
    for (int64_t at = 0; at < floats; at += step) quantize_rounds<Stream>(c, z + at, q + at, digits + at);
    codes_of<Stream>(c, digits, floats / c.dim, codes);
}

void quantize(const float* z, const float* threshold, const int64_t* level, const float* center,
              const float* half, float* q, int64_t* codes, int64_t count, int64_t dim, int64_t steps, int threads) {
    const Channels c = spread(threshold, level, center, half, dim, steps);
    const int64_t round = ROUNDS * c.slots * LANES;  // a multiple of LANES and of dim
    const int64_t block = std::max<int64_t>(1, BLOCK_FLOATS / round) * round;
    const int64_t whole = count * dim / block, tokens = block / dim;
    // Streaming needs whole vectors on their boundaries.
    const bool stream = count * (dim * 4 + 8) >= STREAM_BYTES && uintptr_t(q) % (LANES * 4) == 0;
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, whole / 4)));
#pragma omp parallel num_threads(threads)
    {
        auto digits = buffer<int32_t>(block);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < whole; ++b)
            if (stream)
                quantize_block<true>(c, z + b * block, block, q + b * block, codes + b * tokens, digits.get());
            else
                quantize_block<false>(c, z + b * block, block, q + b * block, codes + b * tokens, digits.get());
#if defined(TMM_AVX512) || defined(TMM_AVX2)
        if (stream) _mm_sfence();  // each thread orders its own stores
#endif
    }
    const int64_t rest = count - whole * tokens;
    if (!rest) return;
    auto z_end = buffer<float>(block), q_end = buffer<float>(block);
    auto codes_end = buffer<int64_t>(tokens);
    auto digits = buffer<int32_t>(block);
    std::fill(z_end.get(), z_end.get() + block, 0.0f);
    std::copy(z + whole * block, z + count * dim, z_end.get());
    const int64_t floats = (rest * dim + round - 1) / round * round;
    quantize_block<false>(c, z_end.get(), floats, q_end.get(), codes_end.get(), digits.get());
    std::copy(q_end.get(), q_end.get() + rest * dim, q + whole * block);
    std::copy(codes_end.get(), codes_end.get() + rest, codes + whole * tokens);
}

}  // namespace scalar
