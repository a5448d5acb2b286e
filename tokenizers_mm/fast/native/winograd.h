// The one-dimensional transforms of four ways to convolve with 3 taps (Winograd, https://arxiv.org/abs/1509.09308).
//
// Each takes IN neighbouring inputs and gives OUT outputs, STEP inputs further on for the next tile, with POINTS products:
// output = results(inputs(x) * taps(w)). In two dimensions each is applied along both sides, so a tile costs POINTS^2
// products a channel pair. LEAD is how many inputs the first tile reaches beyond the edge.

// Four outputs from six products instead of twelve. The points 0, +-5/8, +-3/2 and infinity keep the rounding error at
// that of the plain sum; the usual 0, +-1, +-2 give about twice as much. All constants are exact in binary.
struct Same {
    static constexpr int IN = 6, POINTS = 6, OUT = 4, STEP = 4, LEAD = 1;
    static constexpr float A = 0.625f, B = 1.5f, AA = A * A, BB = B * B;

    template <class V>
    TMM_INLINE static void inputs(const V* x, V* v, int from, int to) {
        const V x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
        const V far = x4 - BB * x2, odd_far = A * (x3 - BB * x1), near = x4 - AA * x2, odd_near = B * (x3 - AA * x1);
        v[0] = x4 - (AA + BB) * x2 + (AA * BB) * x0;
        v[to] = far + odd_far;
        v[2 * to] = far - odd_far;
        v[3 * to] = near + odd_near;
        v[4 * to] = near - odd_near;
        v[5 * to] = x5 - (AA + BB) * x3 + (AA * BB) * x1;
    }

    template <class V>
    TMM_INLINE static void taps(const V* w, V* u, int from, int to) {
        constexpr double a = 1.0 / (2.0 * AA * (AA - BB)), b = 1.0 / (2.0 * BB * (BB - AA));
        const V w0 = w[0], w1 = w[from], w2 = w[2 * from];
        const V even_a = float(a) * w0 + float(a * AA) * w2, odd_a = float(a * A) * w1;
        const V even_b = float(b) * w0 + float(b * BB) * w2, odd_b = float(b * B) * w1;
        u[0] = float(1.0 / (double(AA) * BB)) * w0;
        u[to] = even_a + odd_a;
        u[2 * to] = even_a - odd_a;
        u[3 * to] = even_b + odd_b;
        u[4 * to] = even_b - odd_b;
        u[5 * to] = w2;
    }

    template <class V>
    TMM_INLINE static void results(const V* m, V* y, int from, int to) {
        const V sum_a = m[from] + m[2 * from], sum_b = m[3 * from] + m[4 * from];
        const V gap_a = m[from] - m[2 * from], gap_b = m[3 * from] - m[4 * from];
        y[0] = m[0] + sum_a + sum_b;
        y[to] = A * gap_a + B * gap_b;
        y[2 * to] = AA * sum_a + BB * sum_b;
        y[3 * to] = (A * AA) * gap_a + (B * BB) * gap_b + m[5 * from];
    }
};

// Two outputs from four products instead of six: fewer savings, a third of the rounding error.
struct SameSmall {
    static constexpr int IN = 4, POINTS = 4, OUT = 2, STEP = 2, LEAD = 1;

    template <class V>
    TMM_INLINE static void inputs(const V* x, V* v, int from, int to) {
        v[0] = x[0] - x[2 * from];
        v[to] = x[from] + x[2 * from];
        v[2 * to] = x[2 * from] - x[from];
        v[3 * to] = x[3 * from] - x[from];
    }

    template <class V>
    TMM_INLINE static void taps(const V* w, V* u, int from, int to) {
        const V even = 0.5f * (w[0] + w[2 * from]), odd = 0.5f * w[from];
        u[0] = w[0];
        u[to] = even + odd;
        u[2 * to] = even - odd;
        u[3 * to] = w[2 * from];
    }

    template <class V>
    TMM_INLINE static void results(const V* m, V* y, int from, int to) {
        y[0] = m[0] + m[from] + m[2 * from];
        y[to] = m[from] - m[2 * from] + m[3 * from];
    }
};

// Nearest-neighbour doubling first: of the two outputs that a doubled input has, each sees one neighbour and itself,
// so three products do instead of six.
struct Doubled {
    static constexpr int IN = 3, POINTS = 3, OUT = 2, STEP = 1, LEAD = 1;

    template <class V>
    TMM_INLINE static void inputs(const V* x, V* v, int from, int to) {
        v[0] = x[0] - x[from];
        v[to] = x[from];
        v[2 * to] = x[2 * from] - x[from];
    }

    template <class V>
    TMM_INLINE static void taps(const V* w, V* u, int from, int to) {
        u[0] = w[0];
        u[to] = w[0] + w[from] + w[2 * from];
        u[2 * to] = w[2 * from];
    }

    template <class V>
    TMM_INLINE static void results(const V* m, V* y, int from, int to) {
        y[0] = m[0] + m[from];
        y[to] = m[from] + m[2 * from];
    }
};

// Stride 2, padded at the end only: two outputs from five products instead of six.
struct Halved {
    static constexpr int IN = 5, POINTS = 5, OUT = 2, STEP = 4, LEAD = 0;

    template <class V>
    TMM_INLINE static void inputs(const V* x, V* v, int from, int to) {
        v[0] = x[0] - x[2 * from];
        v[to] = x[2 * from];
        v[2 * to] = x[4 * from] - x[2 * from];
        v[3 * to] = x[from];
        v[4 * to] = x[3 * from];
    }

    template <class V>
    TMM_INLINE static void taps(const V* w, V* u, int from, int to) {
        u[0] = w[0];
        u[to] = w[0] + w[2 * from];
        u[2 * to] = w[2 * from];
        u[3 * to] = w[from];
        u[4 * to] = w[from];
    }

    template <class V>
    TMM_INLINE static void results(const V* m, V* y, int from, int to) {
        y[0] = m[0] + m[from] + m[3 * from];
        y[to] = m[from] + m[2 * from] + m[4 * from];
    }
};
