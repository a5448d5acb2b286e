// The few operations on vectors that the search needs beside those of lanes.h.

#include "lanes.h"

#if defined(TMM_AVX512)
typedef __mmask16 mask;
TMM_INLINE vf least(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
TMM_INLINE mask less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
TMM_INLINE mask equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
TMM_INLINE mask either(mask a, mask b) { return a | b; }
TMM_INLINE unsigned bits(mask a) { return a; }
TMM_INLINE float least_lane(vf a) { return _mm512_reduce_min_ps((__m512)a); }
#elif defined(TMM_AVX2) && LANES == 8
typedef __m256 mask;
TMM_INLINE vf least(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
TMM_INLINE mask less(vf a, vf b) { return _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ); }
TMM_INLINE mask equal(vf a, vf b) { return _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ); }
TMM_INLINE mask either(mask a, mask b) { return _mm256_or_ps(a, b); }
TMM_INLINE unsigned bits(mask a) { return _mm256_movemask_ps(a); }
TMM_INLINE float least_lane(vf a) {
    __m128 low = _mm_min_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    low = _mm_min_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_min_ss(low, _mm_movehdup_ps(low)));
}
#else
typedef vi mask;
TMM_INLINE vf least(vf a, vf b) { return a < b ? a : b; }
TMM_INLINE mask less(vf a, vf b) { return a < b; }
TMM_INLINE mask equal(vf a, vf b) { return a == b; }
TMM_INLINE mask either(mask a, mask b) { return a | b; }
// Bit l is lane l.
TMM_INLINE unsigned bits(mask a) {
    unsigned all = 0;
    for (int l = 0; l < LANES; ++l) all |= (a[l] & 1u) << l;
    return all;
}
TMM_INLINE float least_lane(vf a) {
    float value = a[0];
    for (int l = 1; l < LANES; ++l) value = a[l] < value ? a[l] : value;
    return value;
}
#endif
