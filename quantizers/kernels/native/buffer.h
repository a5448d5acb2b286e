// Memory that is freed when its owner goes out of scope.

namespace {
struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> buffer(size_t count) {
    void* memory = std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64);
    if (!memory) std::abort();
    return Buffer<T>(static_cast<T*>(memory));
}
}  // namespace
