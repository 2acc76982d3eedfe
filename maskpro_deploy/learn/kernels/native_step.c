/* A step of the logits of some groups: what `contract.move_chunk` does, in one pass through memory.

   `native_step.py` puts macros of the pattern in front of this text, and `native_numbers.c`. With them every loop over groups has a
   straight body, which a compiler turns into vector instructions:

     EACH_MASK(X)    X(s, product, sum) for each mask s: its probability but for a factor, and <m, h> counted from the mode's,
                     as expressions in keep[i], drop[i] (factors) and kept[i], dropped[i] (what it adds to <m, h>); not for
                     patterns of many masks, which a recursion goes over;
     EACH_WEIGHT(X)  X(i, sum) for each weight i of a group: the sum over the masks that keep it, in terms of part[s];
     NETWORK(X)      X(i, j), i < j: comparators that sort M numbers. */

/* what is worked on, as `native_step.py` describes it; planes are a stride apart */
typedef struct {
    const void *grad, *weight; /* both float32 or both bfloat16 */
    ptrdiff_t is_float32;
    uint16_t *logits, *second;
    ptrdiff_t logits_stride, second_stride;
    int8_t *first;
    ptrdiff_t first_stride;
    const int32_t *dither;
    ptrdiff_t dither_stride;
    uint8_t *packed;
    ptrdiff_t groups, begun; /* all of them, and how many some thread has taken */
    constants adam;
    float scale;
} chunk;

/* Denormal float16 are normal float32; no denormal float32 comes up on the way, as those may be flushed to zero. */
static inline float from_half(uint16_t x) {
    uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t normal = magnitude + (112u << 23);
    uint32_t small = bits_of(float_of(magnitude + (113u << 23)) - 0x1p-14f);
    uint32_t result = magnitude < (1u << 23) ? small : normal;
    return float_of((magnitude >= (31u << 23) ? magnitude | 0x7f800000 : result) | sign);
}

/* What `optimizer.round_to_half` does: the random bits below the last one decide, and carry with the right probability. */
static inline uint16_t to_half(float x, int32_t dither) {
    x = 60000.0f < x ? 60000.0f : x; /* a NaN passes */
    x = -60000.0f > x ? -60000.0f : x;
    uint32_t all = bits_of(x), sign = all >> 16 & 0x8000, plain = all & 0x7fffffff;
    uint32_t cut = (plain + (uint32_t)dither) & ~0x1fffu;
    uint32_t small = bits_of(float_of(cut) + 0.5f) - 0x3f000000; /* below 2^-14 steps are 2^-24: the addition rounds to them */
    uint32_t result = cut < (113u << 23) ? small : (cut - (112u << 23)) >> 13;
    return (uint16_t)((plain > 0x7f800000 ? 0x7e00 : result) | sign);
}

/* e^-x for x >= 0, and e^-80 beyond 80; the relative error is at most 2.6e-7 */
static inline float exp_of_minus(float x) {
    x = x < 80.0f ? -x : -80.0f;
    float shifted = x * 0x1.715476p+0f + 0x1.8p+23f; /* the integer is in the low bits */
    float whole = shifted - 0x1.8p+23f;
    float r = x - whole * 0x1.62e4p-1f - whole * 0x1.7f7d1cp-20f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666668e-2f + r * (8.3333770e-3f + r * 1.3888889e-3f)))));
    return float_of(bits_of(p) + (bits_of(shifted) << 23)); /* at least 2^-116: a normal number */
}

/* Cov(m) h: theta is relative to the cut, a flip out of the mode costs |theta|, so no factor is above 1 */
#ifdef EACH_MASK
static void covariance(const uint16_t *restrict logits, ptrdiff_t stride, const float *restrict h, float (*restrict theta)[BLOCK],
                       float (*restrict slope)[BLOCK], int groups) {
#define FACTOR(i, sum)                                                             \
    for (int g = 0; g < groups; g++) theta[i][g] = from_half(logits[i * stride + g]);
    EACH_WEIGHT(FACTOR)
    for (int g = 0; g < groups; g++) {
        float keep[M], drop[M], kept[M], dropped[M], part[8], along[8], total = 0, mean = 0;
#define WEIGHT(i, sum)                                                             \
    {                                                                              \
        float x = theta[i][g], y = h[g * M + i], e = exp_of_minus(fabsf(x));       \
        keep[i] = x >= 0 ? 1.0f : e, drop[i] = x >= 0 ? e : 1.0f;                  \
        kept[i] = x >= 0 ? 0.0f : y, dropped[i] = x >= 0 ? -y : 0.0f;              \
    }
        EACH_WEIGHT(WEIGHT)
#define MASK(s, product, sum) part[s] = product, along[s] = sum, total += part[s], mean += part[s] * along[s];
        EACH_MASK(MASK)
        float inverse = 1.0f / total;
        mean *= inverse;
#define PART(s, product, sum) part[s] *= (along[s] - mean) * inverse;
        EACH_MASK(PART)
#define SLOPE(i, sum) slope[i][g] = sum;
        EACH_WEIGHT(SLOPE)
    }
}
#else
/* Weight by weight: sums over all choices of k among the weights so far, of their probability (but for a factor) and of that times
   <m, h>. What comes before a weight, the weight flipped, and what comes after make its share of masks out of the mode. */
enum { LANES = 16 }; /* groups side by side */
typedef float lanes[LANES];
#define EACH_LANE for (int l = 0; l < LANES; l++)

static void extend(lanes *restrict to, lanes *restrict to_sum, lanes *restrict from, lanes *restrict from_sum, const float *keep,
                   const float *drop, const float *kept, const float *dropped) {
    for (int k = 1; k <= N; k++)
        EACH_LANE {
            float with = keep[l] * from[k - 1][l], without = drop[l] * from[k][l];
            to_sum[k][l] = keep[l] * from_sum[k - 1][l] + with * kept[l] + drop[l] * from_sum[k][l] + without * dropped[l];
            to[k][l] = with + without;
        }
    EACH_LANE {
        float without = drop[l] * from[0][l];
        to_sum[0][l] = drop[l] * from_sum[0][l] + without * dropped[l];
        to[0][l] = without;
    }
}

static void covariance(const uint16_t *restrict logits, ptrdiff_t stride, const float *restrict h, float (*restrict theta)[BLOCK],
                       float (*restrict slope)[BLOCK], int groups) {
    static const lanes nothing = {0};
    for (int i = 0; i < M; i++)
        for (int g = 0; g < groups; g++) theta[i][g] = from_half(logits[i * stride + g]);
    for (int start = 0; start < groups; start += LANES) {
        lanes keep[M], drop[M], kept[M], dropped[M], front[M + 1][N + 1], front_sum[M + 1][N + 1];
        lanes behind[2][N + 1], behind_sum[2][N + 1];
        for (int i = 0; i < M; i++)
            EACH_LANE {
                float x = theta[i][start + l], y = h[(start + l) * M + i], e = exp_of_minus(fabsf(x));
                keep[i][l] = x >= 0 ? 1.0f : e, drop[i][l] = x >= 0 ? e : 1.0f;
                kept[i][l] = x >= 0 ? 0.0f : y, dropped[i][l] = x >= 0 ? -y : 0.0f;
            }
        for (int k = 0; k <= N; k++)
            EACH_LANE front[0][k][l] = behind[M % 2][k][l] = k == 0, front_sum[0][k][l] = behind_sum[M % 2][k][l] = 0;
        for (int i = 0; i < M; i++)
            extend(front[i + 1], front_sum[i + 1], front[i], front_sum[i], keep[i], drop[i], kept[i], dropped[i]);
        lanes inverse, mean;
        EACH_LANE inverse[l] = 1.0f / front[M][N][l], mean[l] = front_sum[M][N][l] * inverse[l];
        for (int i = M - 1; i >= 0; i--) {
            lanes share = {0}, along = {0}, *back = behind[(i + 1) % 2], *back_sum = behind_sum[(i + 1) % 2];
            for (int k = 0; k <= N; k++) { /* so many before it; it is dropped where the mode keeps it, and the other way round */
                const float *other = k < N ? back[N - 1 - k] : nothing, *other_sum = k < N ? back_sum[N - 1 - k] : nothing;
                EACH_LANE {
                    int high = theta[i][start + l] >= 0;
                    float b = high ? back[N - k][l] : other[l], b_sum = high ? back_sum[N - k][l] : other_sum[l];
                    share[l] += front[i][k][l] * b;
                    along[l] += front_sum[i][k][l] * b + front[i][k][l] * b_sum;
                }
            }
            EACH_LANE {
                int high = theta[i][start + l] >= 0;
                float flip = high ? drop[i][l] : keep[i][l], gain = high ? dropped[i][l] : kept[i][l];
                float part = flip * (along[l] + share[l] * (gain - mean[l])) * inverse[l];
                slope[i][start + l] = high ? -part : part;
            }
            extend(behind[i % 2], behind_sum[i % 2], back, back_sum, keep[i], drop[i], kept[i], dropped[i]);
        }
    }
}
#endif

/* `optimizer.move` for one plane; theta becomes what the logits move to */
static void adam(const float *restrict slope, float *restrict theta, int8_t *restrict first, uint16_t *restrict second,
                 const int32_t *restrict dither, constants constants, float scale, int groups) {
    for (int g = 0; g < groups; g++) theta[g] -= scale * advance(slope[g], first + g, second + g, dither[g], constants);
}

/* `optimizer.store`: what is stored is relative to the cut between the N-th and the (N+1)-th highest */
static void centre(const float (*restrict theta)[BLOCK], float *restrict cut, int groups) {
    for (int g = 0; g < groups; g++) {
        float x[M];
#define LOAD(i, sum) x[i] = theta[i][g];
        EACH_WEIGHT(LOAD)
#define COMPARE(i, j)                                                              \
    {                                                                              \
        float a = x[i], b = x[j];                                                  \
        x[i] = a > b ? a : b, x[j] = a > b ? b : a;                                \
    }
        NETWORK(COMPARE)
        cut[g] = 0.5f * (x[N - 1] + x[N]);
    }
}

static void store(const float *restrict theta, const float *restrict cut, const int32_t *restrict dither,
                  uint16_t *restrict logits, int16_t *restrict stored, int groups) {
    for (int g = 0; g < groups; g++) {
        uint16_t half = to_half(theta[g] - cut[g], dither[g]);
        logits[g] = half, stored[g] = (int16_t)half;
    }
}

/* `planes.top_of_centred`: above the cut, then on it, +0 before -0 and first ones first */
static void choose(const int16_t (*restrict stored)[BLOCK], uint8_t (*restrict kept)[BLOCK], int groups) {
    for (int g = 0; g < groups; g++) {
        int16_t count = 0, taken[M];
#define ABOVE(i, sum) taken[i] = stored[i][g] > 0, count += taken[i];
        EACH_WEIGHT(ABOVE)
#define ZERO(i, sum)                                                               \
    {                                                                              \
        int16_t more = (stored[i][g] == 0) & (count < N);                          \
        taken[i] |= more, count += more;                                           \
    }
        EACH_WEIGHT(ZERO)
#define MINUS_ZERO(i, sum)                                                         \
    {                                                                              \
        int16_t more = (stored[i][g] == INT16_MIN) & (count < N);                  \
        taken[i] |= more, count += more;                                           \
    }
        EACH_WEIGHT(MINUS_ZERO)
#define KEEP(i, sum) kept[i][g] = (uint8_t)taken[i];
        EACH_WEIGHT(KEEP)
    }
}

/* `packed.pack`: eight weights a byte, first weight first; a last byte is filled with zeros */
static void pack(uint8_t (*restrict kept)[BLOCK], uint8_t *restrict packed, int groups) {
#if 8 % M == 0
    enum { IN_BYTE = 8 / M }; /* groups */
    uint8_t number[BLOCK];
    for (int g = 0; g < groups; g++) {
        unsigned x = 0;
#define DIGIT(i, sum) x = x << 1 | kept[i][g];
        EACH_WEIGHT(DIGIT)
        number[g] = (uint8_t)x;
    }
    for (int g = groups; g % IN_BYTE; g++) number[g] = 0;
    for (int b = 0; b < (groups + IN_BYTE - 1) / IN_BYTE; b++) {
        unsigned x = 0;
        for (int j = 0; j < IN_BYTE; j++) x = x << M | number[b * IN_BYTE + j];
        packed[b] = (uint8_t)x;
    }
#elif M % 8 == 0
    for (int g = 0; g < groups; g++) {
        unsigned x[M / 8] = {0};
#define DIGIT(i, sum) x[i / 8] = x[i / 8] << 1 | kept[i][g];
        EACH_WEIGHT(DIGIT)
        for (int b = 0; b < M / 8; b++) packed[g * (M / 8) + b] = (uint8_t)x[b];
    }
#else
    memset(packed, 0, (size_t)(groups * M + 7) / 8);
    for (int g = 0, place = 0; g < groups; g++)
        for (int i = 0; i < M; i++, place++) packed[place / 8] |= (uint8_t)(kept[i][g] << (7 - place % 8));
#endif
}

/* what a block's gradients and weights come to, group by group as they lie in memory */
static void multiply_bfloat16(const uint16_t *restrict grad, const uint16_t *restrict weight, float *restrict h, int count) {
    for (int j = 0; j < count; j++) h[j] = from_bfloat(grad[j]) * from_bfloat(weight[j]);
}

static void multiply_float32(const float *restrict grad, const float *restrict weight, float *restrict h, int count) {
    for (int j = 0; j < count; j++) h[j] = grad[j] * weight[j];
}

static __attribute__((noinline)) void blocks(const void *work, ptrdiff_t begin, ptrdiff_t end) {
    const chunk *c = work;
    float h[M * BLOCK] = {0}, theta[M][BLOCK] = {{0}}, slope[M][BLOCK], cut[BLOCK]; /* a last block is read beyond its groups */
    int16_t stored[M][BLOCK];
    uint8_t kept[M][BLOCK];
    for (ptrdiff_t start = begin; start < end; start += BLOCK) {
        int groups = end - start < BLOCK ? (int)(end - start) : BLOCK;
        if (c->is_float32)
            multiply_float32((const float *)c->grad + start * M, (const float *)c->weight + start * M, h, groups * M);
        else
            multiply_bfloat16((const uint16_t *)c->grad + start * M, (const uint16_t *)c->weight + start * M, h, groups * M);
        uint16_t *logits = c->logits + start;
        const int32_t *dither = c->dither + start;
        covariance(logits, c->logits_stride, h, theta, slope, groups);
        for (int i = 0; i < M; i++)
            adam(slope[i], theta[i], c->first + i * c->first_stride + start, c->second + i * c->second_stride + start,
                 dither + i * c->dither_stride, c->adam, c->scale, groups);
        centre(theta, cut, groups);
        for (int i = 0; i < M; i++)
            store(theta[i], cut, dither + i * c->dither_stride, logits + i * c->logits_stride, stored[i], groups);
        choose(stored, kept, groups);
        pack(kept, c->packed + start * M / 8, groups);
    }
}

void step(void *shared) {
    chunk *c = shared;
    take_blocks(c, c->groups, &c->begun, blocks);
}
