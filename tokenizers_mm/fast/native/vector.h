// Parts of vectors, and the activation.

#include "lanes.h"

// The first `count` lanes; the others are zero, or left alone.
TMM_INLINE vf load(const float* from, int64_t count) {
    if (count >= LANES) return load(from);
    float lanes[LANES] = {};
    std::memcpy(lanes, from, count * sizeof(float));
    return load(lanes);
}
TMM_INLINE void store(float* to, vf value, int64_t count) {
    if (count >= LANES) return store(to, value);
    float lanes[LANES];
    store(lanes, value);
    std::memcpy(to, lanes, count * sizeof(float));
}

// exp to 1e-7, as 2^n times a polynomial; Cephes' coefficients.
TMM_INLINE vf exponential(vf x) {
    x = x > 88.0f ? splat(88.0f) : x;
    x = x < -87.0f ? splat(-87.0f) : x;
    const vf shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  // adding 1.5 * 2^23 rounds
    const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

TMM_INLINE vf silu(vf x) { return x / (1.0f + exponential(-x)); }
