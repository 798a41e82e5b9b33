/* Bicubic scaling of 8-bit RGB with the arithmetic of Pillow's Resample.c (Keys' cubic with a = -1/2, widened when an
 * image shrinks; weights with 22 fractional bits, 8 bits between the passes), in a form that compilers vectorize.
 * All pixel arithmetic is on integers: the result is the same on every processor. Called by resize.py, which also has
 * the same without a compiler.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22
#define ROWS 4
#define HALF (1 << (BITS - 1))

/* One function, compiled for several generations of processors; the best one is taken at run time. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

/* Two pixels of three numbers, and what lies behind them; at any place in memory. */
typedef int32_t eight __attribute__((vector_size(32), aligned(4), may_alias));
#ifdef __clang__
#define SECOND_PIXEL_FIRST(v) __builtin_shufflevector(v, v, 3, 4, 5, 6, 7, 0, 1, 2)
#else
#define SECOND_PIXEL_FIRST(v) __builtin_shuffle(v, (eight){3, 4, 5, 6, 7, 0, 1, 2})
#endif

/* Every output is a sum of as many inputs, so that loops are of one length, which processors foresee. */
typedef struct {
    int count;      /* inputs per output */
    int *first;     /* per output: the first of them, */
    int32_t *value; /* and their weights, some of them 0 */
} weights;

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static int first_input(int place, double scale, double support) {
    const int first = (int)((place + 0.5) * scale - support + 0.5);
    return first < 0 ? 0 : first;
}

static int last_input(int place, int in, double scale, double support) {
    const int last = (int)((place + 0.5) * scale + support + 0.5);
    return last > in ? in : last;
}

/* The weights that scale `in` places to `out`; 0 where memory ran out. */
static int make_weights(weights *w, int in, int out) {
    const double scale = (double)in / out, widening = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * widening, inverse = 1.0 / widening;
    w->count = 0;
    for (int place = 0; place < out; place++) {
        const int count = last_input(place, in, scale, support) - first_input(place, scale, support);
        w->count = count > w->count ? count : w->count;
    }
    w->first = malloc(sizeof(int) * out);
    w->value = calloc((size_t)out * w->count, sizeof(int32_t));
    double *exact = malloc(sizeof(double) * w->count);
    const int ok = w->first && w->value && exact;
    for (int place = 0; ok && place < out; place++) {
        const double center = (place + 0.5) * scale;
        const int first = first_input(place, scale, support), last = last_input(place, in, scale, support);
        double total = 0.0;
        for (int i = first; i < last; i++) total += exact[i - first] = cubic((i - center + 0.5) * inverse);
        w->first[place] = first < in - w->count ? first : in - w->count;
        int32_t *to = w->value + (size_t)place * w->count + (first - w->first[place]);
        for (int i = 0; i < last - first; i++) {
            const double value = exact[i] / total * (1 << BITS);
            to[i] = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
    }
    free(exact);
    return ok;
}

/* The weights, each three times, for the pixels of a pair; NULL where memory ran out. */
static eight *make_pairs(const weights *w, int out) {
    const int num_pairs = (w->count + 1) / 2;
    eight *pairs = calloc((size_t)out * num_pairs, sizeof(eight));
    for (ptrdiff_t place = 0; pairs && place < out; place++)
        for (int i = 0; i < 3 * w->count; i++)
            pairs[place * num_pairs + i / 6][i % 6] = w->value[place * w->count + i / 3];
    return pairs;
}

static void free_weights(weights *w) {
    free(w->first);
    free(w->value);
}

/* Sums of weighted bytes to bytes. (Here and below the places are of type ptrdiff_t: Python has C compiled with
 * -fwrapv, under which loops over int are not vectorized well.)
 */
INLINE void to_bytes(const int32_t *sums, uint8_t *to, int count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        const int32_t sum = sums[i] >> BITS;
        to[i] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
    }
}

/* ROWS rows of `in` pixels to as many of `out` pixels, one after the other at `to`. A row has 3 * in + 5
 * numbers of `spread` and 3 * out + 1 of `sums`: more than its own, for what is read and written beside its end.
 */
FOR_EACH_PROCESSOR
static void scale_rows(const uint8_t *rows[ROWS], int in, int32_t *spread, int32_t *sums, uint8_t *to, int out,
                       const int *first, const eight *pairs, int num_pairs) {
    const ptrdiff_t spread_length = 3 * in + 5, sums_length = 3 * out + 1;
    for (int row = 0; row < ROWS; row++)
        for (ptrdiff_t i = 0; i < 3 * in; i++) spread[row * spread_length + i] = rows[row][i];
    for (ptrdiff_t place = 0; place < out; place++, pairs += num_pairs) {
        const int32_t *from = spread + 3 * first[place];
        eight sum[ROWS];
        for (int row = 0; row < ROWS; row++) sum[row] = (eight){HALF, HALF, HALF};
        for (ptrdiff_t i = 0; i < num_pairs; i++)
            for (int row = 0; row < ROWS; row++)
                sum[row] += pairs[i] * *(const eight *)(from + row * spread_length + 6 * i);
        for (int row = 0; row < ROWS; row++) { /* the next pixel overwrites the fourth number */
            const eight both = sum[row] + SECOND_PIXEL_FIRST(sum[row]);
            memcpy(sums + row * sums_length + 3 * place, &both, 4 * sizeof(int32_t));
        }
    }
    for (int row = 0; row < ROWS; row++) to_bytes(sums + row * sums_length, to + 3 * (size_t)out * row, 3 * out);
}

/* `count` rows of `bytes` bytes each, one after the other, to one row. */
FOR_EACH_PROCESSOR
static void scale_column(const uint8_t *rows, int32_t *sums, uint8_t *to, int bytes, const int32_t *value, int count) {
    for (ptrdiff_t i = 0; i < bytes; i++) sums[i] = HALF;
    for (int row = 0; row < count; row++, rows += bytes)
        for (ptrdiff_t i = 0; i < bytes; i++) sums[i] += value[row] * rows[i];
    to_bytes(sums, to, bytes);
}

/* Scales the box of `height` x `width` RGB pixels at `image`, whose rows are `stride` bytes apart, to `out_height` x
 * `out_width` pixels at `to`, without gaps. Returns 0 where memory ran out, and 1 otherwise.
 */
int resnext_jax_resize(const uint8_t *image, int64_t stride, int height, int width, uint8_t *to, int out_height,
                       int out_width) {
    weights across = {0}, down = {0};
    const int bytes = 3 * out_width;
    uint8_t *scaled = malloc(((size_t)height + ROWS) * bytes);
    int32_t *spread = calloc(ROWS * (3 * (size_t)width + 5), sizeof(int32_t));
    int32_t *sums = malloc(ROWS * ((size_t)bytes + 1) * sizeof(int32_t));
    const int weighted = make_weights(&across, width, out_width) && make_weights(&down, height, out_height);
    eight *pairs = weighted ? make_pairs(&across, out_width) : NULL;
    const int ok = scaled && spread && sums && pairs;
    for (int y = 0; ok && y < height; y += ROWS) {
        const uint8_t *rows[ROWS]; /* behind the last row the last one again */
        for (int row = 0; row < ROWS; row++) rows[row] = image + (y + row < height ? y + row : height - 1) * stride;
        scale_rows(rows, width, spread, sums, scaled + (size_t)y * bytes, out_width, across.first,
                   pairs, (across.count + 1) / 2);
    }
    for (int y = 0; ok && y < out_height; y++)
        scale_column(scaled + (size_t)down.first[y] * bytes, sums, to + (size_t)y * bytes, bytes,
                     down.value + y * down.count, down.count);
    free(scaled);
    free(spread);
    free(sums);
    free(pairs);
    free_weights(&across);
    free_weights(&down);
    return ok;
}
