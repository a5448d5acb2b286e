// A vector of LANES floats (a GCC and Clang extension), and what the extension has no operator for.

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef float vf_unaligned __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));

TMM_INLINE vf load(const float* from) { return *reinterpret_cast<const vf_unaligned*>(from); }
TMM_INLINE void store(float* to, vf value) { *reinterpret_cast<vf_unaligned*>(to) = value; }
TMM_INLINE vf splat(float value) { return value - vf{}; }
