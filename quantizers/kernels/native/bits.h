// One bit per number: z > 0. Values +-scale and packed codes in one pass.
//
// Codes are consecutive, and so are their bits: the whole array is one stream of bits, read 64 at a time into a word,
// and codes are cut out of it wherever they lie. For "most significant first" the word is reversed once, so that the
// stream runs from its high end. SIGN_ROWS codes end with the end of a word, whatever their width.

constexpr int64_t SIGN_ROWS = 64;
// Above this, results do not fit the caches: storing past them saves reading lines that are about to be overwritten.
constexpr int64_t STREAM_BYTES = 24 << 20;

TMM_INLINE uint64_t reversed(uint64_t word) {
    word = (word >> 1 & 0x5555555555555555) | (word & 0x5555555555555555) << 1;
    word = (word >> 2 & 0x3333333333333333) | (word & 0x3333333333333333) << 2;
    word = (word >> 4 & 0x0f0f0f0f0f0f0f0f) | (word & 0x0f0f0f0f0f0f0f0f) << 4;
    return __builtin_bswap64(word);
}

template <bool Stream>
TMM_INLINE void put(float* to, vf value) {
#if defined(TMM_AVX512)
    if (Stream) return _mm512_stream_ps(to, (__m512)value);
#elif defined(TMM_AVX2) && LANES == 8
    if (Stream) return _mm256_stream_ps(to, (__m256)value);
#endif
    store(to, value);
}

template <bool Stream>
TMM_INLINE void put(int64_t* to, uint64_t value) {
#if defined(TMM_AVX512) || defined(TMM_AVX2)
    if (Stream) return _mm_stream_si64(reinterpret_cast<long long*>(to), value);
#endif
    *to = value;
}

// Signs of 64 numbers: bit l is set where z[l] > 0.
template <bool Stream>
TMM_INLINE uint64_t sign_word(const float* z, float* q, vf scale) {
    uint64_t word = 0;
#pragma GCC unroll 16
    for (int v = 0; v < 64 / LANES; ++v) {
        const vf value = load(z + v * LANES);
        word |= uint64_t(bits(less(vf{}, value))) << (v * LANES);
        put<Stream>(q + v * LANES, value > vf{} ? scale : -scale);
    }
    return word;
}

// What is left of the stream between two words: `count` bits.
struct Carry {
    uint64_t word;
    int count;
};

// Append `count` bits to the carry and cut codes of `width` <= 62 bits; count + carry.count >= width.
template <bool Stream, bool Msb>
TMM_INLINE int64_t* cut(uint64_t word, int count, int width, Carry& carry, int64_t* code) {
    const int take = width - carry.count;  // in 1..width
    int left = count - take;
    const uint64_t low = (uint64_t(1) << width) - 1;
    if (Msb) {
        word = reversed(word);
        put<Stream>(code++, carry.word << take | word >> (64 - take));
        word <<= take;
        for (; left >= width; left -= width, word <<= width) put<Stream>(code++, word >> (64 - width));
        carry.word = left ? word >> (64 - left) : 0;
    } else {
        put<Stream>(code++, (carry.word | word << carry.count) & low);
        word >>= take;
        for (; left >= width; left -= width, word >>= width) put<Stream>(code++, word & low);
        carry.word = word;
    }
    carry.count = left;
    return code;
}

template <bool Stream, bool Msb>
TMM_INLINE void sign_rows(const float* z, float* q, int64_t* code, int64_t rows, int width, float scale) {
    const int64_t total = rows * width, whole = total / 64 * 64;
    const vf scales = splat(scale);
    Carry carry{0, 0};
    for (int64_t i = 0; i < whole; i += 64)
        code = cut<Stream, Msb>(sign_word<Stream>(z + i, q + i, scales), 64, width, carry, code);
    if (whole == total) return;
    uint64_t word = 0;
    for (int64_t i = whole; i < total; ++i) {
        word |= uint64_t(z[i] > 0) << (i - whole);
        q[i] = z[i] > 0 ? scale : -scale;
    }
    cut<Stream, Msb>(word, int(total - whole), width, carry, code);
}

template <bool Stream, bool Msb>
void sign_quantize_as(const float* z, float* q, int64_t* codes, int64_t count, int width, float scale, int threads) {
    const int64_t blocks = (count + SIGN_ROWS - 1) / SIGN_ROWS, share = (blocks + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = std::min(count, t * share * SIGN_ROWS);
        const int64_t last = std::min(count, (t + 1) * share * SIGN_ROWS);
        sign_rows<Stream, Msb>(z + first * width, q + first * width, codes + first, last - first, width, scale);
#if defined(TMM_AVX512) || defined(TMM_AVX2)
        if (Stream) _mm_sfence();
#endif
    }
}

void sign_quantize(const float* z, float* q, int64_t* codes, int64_t count, int width, float scale, bool msb,
                   int threads) {
    const bool stream = count * (4 * width + 8) > STREAM_BYTES && reinterpret_cast<uintptr_t>(q) % (4 * LANES) == 0;
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, count * width / 4096)));
    if (stream)
        msb ? sign_quantize_as<true, true>(z, q, codes, count, width, scale, threads)
            : sign_quantize_as<true, false>(z, q, codes, count, width, scale, threads);
    else
        msb ? sign_quantize_as<false, true>(z, q, codes, count, width, scale, threads)
            : sign_quantize_as<false, false>(z, q, codes, count, width, scale, threads);
}
