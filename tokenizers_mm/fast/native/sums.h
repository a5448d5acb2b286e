// Sum and sum of squares of every channel of [batch, position, channel]: to[batch][channel][2].

inline void channel_sums(const float* x, double* to, int64_t batch, int64_t positions, int64_t channels, int threads) {
    constexpr int64_t SINGLE = 16;  // positions summed in single precision
    const int64_t pieces = (channels + LANES - 1) / LANES;
    const int64_t parts = std::max<int64_t>(1, std::min(positions / SINGLE, 4 * int64_t(threads) / batch));
    const int64_t share = (positions + parts - 1) / parts;
    const Buffer<double> all = buffer<double>(batch * parts * pieces * LANES * 2);
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t part = 0; part < parts; ++part) {
            double* here = all.get() + (b * parts + part) * pieces * LANES * 2;
            std::fill(here, here + pieces * LANES * 2, 0.0);
            for (int64_t from = part * share; from < std::min(positions, (part + 1) * share); from += SINGLE) {
                const int64_t end = std::min({from + SINGLE, positions, (part + 1) * share});
                for (int64_t piece = 0; piece < pieces; ++piece) {
                    vf sum = {}, squares = {};
                    for (int64_t n = from; n < end; ++n) {
                        const float* at = x + (b * positions + n) * channels + piece * LANES;
                        const vf value = load(at, channels - piece * LANES);
                        sum += value;
                        squares += value * value;
                    }
                    for (int l = 0; l < LANES; ++l) {
                        here[(piece * LANES + l) * 2] += sum[l];
                        here[(piece * LANES + l) * 2 + 1] += squares[l];
                    }
                }
            }
        }
    std::fill(to, to + batch * channels * 2, 0.0);
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t i = 0; i < channels * 2; ++i)
                to[b * channels * 2 + i] += all[(b * parts + part) * pieces * LANES * 2 + i];
}
